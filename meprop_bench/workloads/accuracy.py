"""Does the accuracy hold? Short training runs of both sides from the same seeds on the same batches.

The figure is development-set accuracy in percent at the *end* of a run, not the best of many evaluations, which would
favour the noisier side. A short run says whether the method learns about as fast as dense training in the beginning;
it does not say where both end up.
"""

from __future__ import annotations

from collections.abc import Sequence

from meprop_bench.data import load_images
from meprop_bench.training import short_run
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.mlp import build_model

__all__ = ["accuracies"]


def accuracies(case: Case, *, sparsified: bool, seeds: Sequence[int], steps: int) -> list[float]:
    """Return one side's accuracy in percent for each seed."""
    assert case.data is not None
    data = load_images(case.data)
    runs = short_run(
        lambda seed: build_model(case, data, sparsified=sparsified, seed=seed),
        data,
        steps=steps,
        batch=case.batch,
        seeds=seeds,
        optimizer=case.optimizer,
        gradient=case.gradient,
        device=case.device,
    )
    return [run.final for run in runs]
