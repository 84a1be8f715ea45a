"""The methods by name, one line each: what becomes of a model's layers, and what goes along with their training.

A method of somebody else's is a module with a `convert` like that of `nn`, or an algorithm in `tasks.algorithm`, and a
line here: `train`, `parity`, `tune`, the papers' tables and `speedup --model` have it then; the workloads that are made
of `nn`'s layers refuse it. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["METHODS", "SPARSE", "Method"]


@dataclass(frozen=True)
class Method:
    """What a method's name stands for."""

    selection: str | None = None  # which entries of dy survive (`ops.selection.SELECTIONS`); None leaves layers dense
    algorithm: str | None = None  # what goes along with training, a key of `tasks.algorithm.ALGORITHMS`
    module: str = "meprop_bench.nn"  # its `convert` changes layers and returns them, as that of `nn`


METHODS: Mapping[str, Method] = {
    "dense": Method(),  # the baseline
    "meprop": Method("example"),
    "unified": Method("unified"),
    "random": Method("random"),
    "random-unified": Method("random-unified"),
    "mesimp": Method("example", "mesimp"),
    "meact": Method(None, "meact"),
}
"""Name, as the papers have it where they do -> what it stands for."""

SPARSE = tuple(name for name, method in METHODS.items() if method.selection and not method.algorithm)
"""Those that are a selection alone: what any sparsified layer can be trained by."""
