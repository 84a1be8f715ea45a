"""Vector instructions for a kernel's inner loops, which Numba lacks: LLVM operations emitted one by one.

They work on vectors as wide as the processor's (`<16 x float>` or `<8 x float>`), since the automatic vectoriser gives
up on pointers that might alias. A multiply-add may be fused; nothing is reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features

__all__ = [
    "LANES", "VECTOR", "declare", "either", "fused", "load", "load_f32", "load_i32", "loop", "offset", "splat", "store",
]  # fmt: skip

LANES = 16 if get_host_cpu_features().get("avx512f") else 8
"""float32 numbers in a vector."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()
VECTOR = ir.VectorType(_F32, LANES)


def declare(builder: Any, name: str, kind: Any) -> Any:
    """Return a function of the module, declared when it was not."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, fused where the processor can."""
    lanes = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
    return builder.call(declare(builder, f"llvm.fmuladd.{lanes}", ir.FunctionType(a.type, [a.type] * 3)), [a, b, c])


def offset(builder: Any, address: Any, count: int) -> Any:
    """Return the address `count` bytes on."""
    return builder.add(address, ir.Constant(_I64, count)) if count else address


def load(builder: Any, kind: Any, address: Any) -> Any:
    """Load a value, aligned to its elements."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def store(builder: Any, value: Any, address: Any, streaming: bool = False) -> None:
    """Store a value; `streaming` goes past the caches and needs an address that is a multiple of its size."""
    instruction = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    instruction.align = 4 * LANES if streaming else 4
    if streaming:
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))


def load_f32(builder: Any, base: Any, index: Any) -> Any:
    """Load element `index` of the float32 array at `base`."""
    return load(builder, _F32, builder.add(base, builder.shl(index, ir.Constant(_I64, 2))))


def load_i32(builder: Any, base: Any, index: Any) -> Any:
    """Load element `index` of the int32 array at `base`, as int64."""
    return builder.sext(load(builder, _I32, builder.add(base, builder.shl(index, ir.Constant(_I64, 2)))), _I64)


def splat(builder: Any, kind: Any, value: Any) -> Any:
    """Return a vector with the value in all lanes (or the value itself for a scalar kind)."""
    if not isinstance(kind, ir.VectorType):
        return value
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


def either(builder: Any, chosen: Any, codes: Mapping[int, Callable[[], None]]) -> None:
    """Emit the code of each number, and the choice of one of them by a value; none for any other number."""
    done = builder.append_basic_block()
    choice = builder.switch(chosen, done)
    for number, emit in codes.items():
        block = builder.append_basic_block()
        choice.add_case(ir.Constant(_I64, number), block)
        builder.position_at_end(block)
        emit()
        builder.branch(done)
    builder.position_at_end(done)


def loop(
    builder: Any,
    bounds: tuple[Any, Any],
    step: int,
    starts: list[Any],
    body: Callable[[Any, list[Any]], list[Any]],
    *,
    may_be_empty: bool = False,
) -> list[Any]:
    """Emit a loop over i = first, first + step, … < last, with values that stay in registers from one pass to the next.

    `bounds` are first and last, int64; there is a pass for first whatever last is, unless the loop may be empty.
    `starts` are the values before the first pass; `body` emits one, without branches: (i, the values before it) -> the
    values after it. Returns those after the last.
    """
    first, last = bounds
    before, block, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    if may_be_empty:
        builder.cbranch(builder.icmp_signed("<", first, last), block, after)
    else:
        builder.branch(block)
    builder.position_at_end(block)
    i = builder.phi(_I64)
    values = [builder.phi(start.type) for start in starts]
    new = body(i, values)
    following = builder.add(i, ir.Constant(_I64, step))
    builder.cbranch(builder.icmp_signed("<", following, last), block, after)
    for phi, start, change in zip([i, *values], [first, *starts], [following, *new], strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(change, block)
    builder.position_at_end(after)
    if not may_be_empty:
        return new
    results = [builder.phi(start.type) for start in starts]
    for phi, start, change in zip(results, starts, new, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(change, block)
    return results
