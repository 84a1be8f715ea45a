"""How functions are compiled, cached and given memory: tensors are passed as addresses.

A `data_ptr()` costs 0.3 microseconds, `tensor.numpy()` several times that.

Compiled code is cached on disk, in a folder whose name is a digest of all sources of this package: Numba by itself
looks at the one file that holds a function, and would keep machine code inlined from a module that has changed. (A
digest of the modules imported so far would differ with their order, and lose what was compiled at installation.)
Without a folder that can be written, and where a cached file is damaged, functions are compiled without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from meprop_bench.cache import writable
from meprop_bench.ops.kernels.native.vectors import LANES, VECTOR, declare, load, offset, splat, store

__all__ = ["address", "callback", "function", "reached_block", "trailing_zeros", "view", "zero_row"]

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@cache
def _version() -> str:
    """Return a digest of Numba's version and of the sources."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _cache() -> Iterator[Path | None]:
    """Let Numba cache in a folder of this version of the sources; None where no such folder can be written."""
    folder = writable(f"numba-{_version()}")
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before if folder is None else str(folder)
    try:
        yield folder
    finally:
        numba.config.CACHE_DIR = before


def function(signature: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function: at once for a given signature, else inlined into what calls it."""

    def decorate(f: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
        if signature is None:
            return njit(f, **options)
        return _compiled(f, lambda cached: njit(signature, cache=cached, nogil=True, **options))

    return decorate


def _compiled(f: Callable[..., Any], decorator: Callable[[bool], Any]) -> Any:
    """Load a function from the cache, or compile it."""
    with _cache() as folder:
        if folder is not None:
            try:
                return decorator(True)(f)
            except Exception:  # noqa: BLE001 (half a file, another user's, a full disk: what is read may raise anything)
                for file in folder.rglob(f"*.{f.__qualname__}-*.nb?"):
                    with suppress(OSError):
                        file.unlink()
        return decorator(False)(f)


def address(compiled: Any) -> int:
    """Return where the machine code is of a function that was compiled for one signature, in Numba's own convention.

    That is `int f(result*, exception**, arguments...)`, 0 when nothing was raised.
    """
    (overload,) = compiled.overloads.values()
    return int(overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name))


def callback(signature: Any, f: Callable[..., Any]) -> int:
    """Compile a function for C to call and return its address."""
    compiled = _compiled(f, lambda cached: cfunc(signature, cache=cached, fastmath={"contract"}, error_model="numpy"))
    _CALLBACKS.append(compiled)  # its machine code lives as long as it does
    return int(compiled.address)


_CALLBACKS: list[Any] = []


@intrinsic
def _pointer(typingctx: Any, address: Any, dtype: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(types.int64, dtype), codegen


@function()
def view(address, shape, dtype):
    """Return the memory at an address as an array."""
    return carray(_pointer(address, dtype), shape)


@intrinsic
def reached_block(typingctx: Any, address: Any, least: Any) -> Any:
    """Return a bit for each of 64 float32 numbers at an address: whether its pattern without the sign is >= least."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_I32, 64)
        magnitude = builder.and_(load(builder, kind, arguments[0]), ir.Constant(kind, [0x7FFFFFFF] * 64))
        return builder.bitcast(builder.icmp_signed(">=", magnitude, splat(builder, kind, arguments[1])), _I64)

    return types.uint64(types.int64, types.int32), codegen


@intrinsic
def trailing_zeros(typingctx: Any, mask: Any) -> Any:
    """Return the number of the lowest bit that is set; the mask must not be zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = declare(builder, "llvm.cttz.i64", ir.FunctionType(_I64, [_I64, ir.IntType(1)]))
        return builder.call(count, [arguments[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(types.uint64), codegen


@intrinsic
def _stream_zeros(typingctx: Any, address: Any) -> Any:
    """Write zeros to the 64 bytes at an address, a multiple of 64, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for part in range(0, 64, 4 * LANES):
            store(builder, ir.Constant(VECTOR, [0.0] * LANES), offset(builder, arguments[0], part), streaming=True)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@function()
def zero_row(row, width, streaming):
    """Write zeros to the `width` float32 numbers at an address, past the caches if `streaming`."""
    c = 0
    if streaming and row & 63 == 0:
        while c + 16 <= width:
            _stream_zeros(row + 4 * c)
            c += 16
    view(row + 4 * c, width - c, np.float32)[:] = 0
