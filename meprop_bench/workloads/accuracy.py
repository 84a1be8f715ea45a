"""Does the accuracy hold? Short training runs of both sides from the same seeds on the same batches.

The figure is development-set accuracy in percent at the *end* of a run, not the best of many evaluations, which would
favour the noisier side. A short run says whether the method learns about as fast as dense training in the beginning;
it does not say where both end up.
"""

from __future__ import annotations

from collections.abc import Sequence

from meprop_bench.tasks import load_task
from meprop_bench.tasks.run import RunSettings, run
from meprop_bench.tasks.task import Method
from meprop_bench.workloads.case import Case

__all__ = ["accuracies"]


def accuracies(case: Case, *, sparsified: bool, seeds: Sequence[int], steps: int) -> list[float]:
    """Return one side's accuracy in percent for each seed."""
    assert case.data is not None
    task = load_task(case.data, batch=case.batch, hidden=case.out_features, layers=case.layers, device=case.device)
    method = Method(case.method, case.k, case.gradient, case.kernel) if sparsified else Method()
    return [
        run(task, RunSettings(method=method, optimizer=case.optimizer, steps=steps, seed=seed)).final_dev
        for seed in seeds
    ]
