"""The order of examples: one endless sequence, a fresh permutation for each pass over them, cut into batches.

So every batch is full, whatever B is (a step's cost must not vary, and B may exceed the data), and a batch may straddle
two passes. The order depends on the seed alone, never on torch's global random state, which a method (random-k,
dropout) may use up at its own pace; and it can be gone on with anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["example_numbers"]


def example_numbers(
    count: int, batch: int, *, seed: int, steps: int, start: int = 0, together: int = 1
) -> Iterator[Tensor]:
    """Yield the numbers of `steps` batches' examples, 0 to `count` - 1, int64 on the CPU.

    The first `start` batches are left out. `together` batches come in one tensor `(together B,)`, the last fewer: one
    by one costs a step of B = 10 more Python than it has to do. Raises ValueError without examples, or for B or `steps`
    below 1.
    """
    if count < 1 or batch < 1 or steps < 1:
        raise ValueError(f"{steps} batches of {batch} from {count} examples")
    return _example_numbers(count, batch, seed, steps, start, together)


def _example_numbers(count: int, batch: int, seed: int, steps: int, start: int, together: int) -> Iterator[Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    skipped, offset = divmod(start * batch, count)
    for _ in range(skipped):
        torch.randperm(count, generator=generator)
    queue = torch.randperm(count, generator=generator)[offset:]
    while steps:
        taken = min(together, steps)
        while len(queue) < taken * batch:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[: taken * batch]
        queue = queue[taken * batch :]
        steps -= taken
