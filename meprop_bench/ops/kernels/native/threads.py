"""Parallel regions on the threads that torch has already.

A second pool of threads beside torch's would fight it for the cores. torch's CPU build runs on OpenMP, so a parallel
region here is a call of `GOMP_parallel`, where torch itself finds it: the same threads, at about 1.5 microseconds a
region. Without such a function (another build of torch), the kernels run on one thread.

OpenMP may give fewer threads than were requested: OMP_THREAD_LIMIT, OMP_DYNAMIC, a region within a region. So work is
cut into *shares*, as many as there should be threads, and those that there are deal them out among themselves: thread i
of t takes the shares i, i + t, i + 2t, ... A body computes one share, waits for nobody, and works in memory that
belongs to the share, not to a thread.

A region is always for all of torch's threads, and those without a share idle. Of a smaller one libgomp ends the
threads that are too many, and starts them anew for the next (pytorch issue 32008).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import callback, function, view

__all__ = ["OPENMP", "body", "parallel", "shares"]

LEAST = 1 << 14
"""Multiply-adds of a share at least: in one to two microseconds, which is what a region costs on two threads."""

_I32, _I64, _I8P = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


def shares(threads: int, work: int) -> int:
    """Return into how many shares some work is cut, of so many multiply-adds (or what takes as long) in all."""
    return max(1, min(threads, work // LEAST))


def body(f: Callable[..., Any]) -> int:
    """Compile `f(arguments: int64 pointer, share, shares)`, which computes one share of some work; return its address.

    It may run for the shares in any order, on any threads, at once or not.
    """
    return callback(types.void(types.CPointer(types.int64), types.int64, types.int64), f)


@intrinsic
def _run(typingctx: Any, run: Any, data: Any, share: Any, shares: Any) -> Any:
    """Run a body for a share."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        run, data, *rest = arguments
        kind = ir.FunctionType(ir.VoidType(), [_I8P, _I64, _I64])
        builder.call(builder.inttoptr(run, kind.as_pointer()), [builder.inttoptr(data, _I8P), *rest])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _answer(typingctx: Any, function: Any) -> Any:
    """Return the int that a function at an address gives."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I32, [])
        return builder.sext(builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), []), _I64)

    return types.int64(types.int64), codegen


# The words of `OPENMP`: functions of the OpenMP runtime, and what each thread of a region runs.
_GOMP_PARALLEL, _THREAD_NUM, _NUM_THREADS, _MEMBER = range(4)
# The words of a region: `OPENMP`, and the arguments of `_run`.
_OPENMP, _RUN, _DATA, _SHARES = range(4)


def _member(region):
    region = carray(region, 4)
    openmp = view(region[_OPENMP], 4, np.int64)
    first, step = _answer(openmp[_THREAD_NUM]), _answer(openmp[_NUM_THREADS])
    for share in range(first, region[_SHARES], step):
        _run(region[_RUN], region[_DATA], share, region[_SHARES])


@intrinsic
def _region(typingctx: Any, openmp: Any, run: Any, data: Any, shares: Any) -> Any:
    """Run a body for all shares on torch's threads."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        region = builder.bitcast(alloca_once(builder, ir.ArrayType(_I64, 4)), _I64.as_pointer())
        for word, value in enumerate(arguments):
            builder.store(value, builder.gep(region, [ir.Constant(_I32, word)]))
        openmp = builder.inttoptr(arguments[0], _I64.as_pointer())
        gomp, member = (
            builder.load(builder.gep(openmp, [ir.Constant(_I32, word)])) for word in (_GOMP_PARALLEL, _MEMBER)
        )
        kind = ir.FunctionType(ir.VoidType(), [_I8P, _I8P, _I32, _I32])
        as_torch_has_them = ir.Constant(_I32, 0)
        builder.call(
            builder.inttoptr(gomp, kind.as_pointer()),
            [builder.inttoptr(member, _I8P), builder.bitcast(region, _I8P), as_torch_has_them, ir.Constant(_I32, 0)],
        )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@function()
def parallel(openmp, shares, run, arguments):
    """Run a body for all shares, `arguments` being an array of int64: in a region, or here one after the other."""
    data = arguments.ctypes.data
    if shares > 1 and openmp != 0:
        _region(openmp, run, data, shares)
    else:
        for share in range(shares):
            _run(run, data, share, shares)


class _Place(ctypes.Structure):
    """`Dl_info`: where an address is."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("at", ctypes.c_void_p),
    )


def _runtime() -> list[int]:
    """Return the addresses of the runtime's functions, or nothing where there are none.

    torch's library finds them as any other does, first in what is global: what LD_PRELOAD names, then the runtime that
    torch brings. All must be of one library, since a runtime knows nothing of another's threads.
    """
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        everything = ctypes.CDLL(None)
        for library in (everything, torchs):
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
            places = [_Place() for _ in found]
            for address, place in zip(found, places, strict=True):
                everything.dladdr(ctypes.c_void_p(address), ctypes.byref(place))
            if len({place.base for place in places}) == 1:
                return found
    except (OSError, AttributeError):
        pass
    return []


_TABLE = np.array(_runtime(), np.int64)
if _TABLE.size:
    _TABLE = np.append(_TABLE, callback(types.void(types.CPointer(types.int64)), _member))
OPENMP: int = _TABLE.ctypes.data if _TABLE.size else 0
"""The address of what `parallel` needs, or 0 where there is no OpenMP."""
