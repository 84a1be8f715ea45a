"""Does the accuracy hold? Short training runs of both sides from the same seeds on the same batches.

The figure is development-set accuracy in percent at the *end* of a run, not the best of many evaluations, which would
favour the noisier side. A short run says whether the method learns about as fast as dense training in the beginning;
it does not say where both end up.

meSimp prunes in stages of five epochs with it and five without, as in the paper, up to eight times an epoch, but never
before `_PRUNE` steps are over: an eighth of an epoch of the digits says little of a neuron. Of meAct's epochs the first
half settles what each example trains.
"""

from __future__ import annotations

from collections.abc import Sequence

from meprop_bench.tasks import load_task
from meprop_bench.tasks.algorithm import Activation, Algorithm, Simplification
from meprop_bench.tasks.run import RunSettings, run
from meprop_bench.tasks.task import DENSE, Method, Task
from meprop_bench.workloads.case import Case

__all__ = ["accuracies"]

_PRUNE = 64
"""Steps between two prunes at least; the workload mesimp has as many."""


def accuracies(case: Case, *, sparsified: bool, seeds: Sequence[int], steps: int) -> list[float]:
    """Return one side's accuracy in percent for each seed.

    Raises:
        UserError: fewer steps than meAct needs to fix its neurons and go on.

    """
    assert case.data is not None
    task = load_task(case.data, batch=case.batch, hidden=case.out_features, layers=case.layers, device=case.device)
    method, algorithm = _how(case, task, steps) if sparsified else (DENSE, None)

    def settings(seed: int) -> RunSettings:
        return RunSettings(method=method, optimizer=case.optimizer, steps=steps, seed=seed, algorithm=algorithm)

    return [run(task, settings(seed)).final_dev for seed in seeds]


def _how(case: Case, task: Task, steps: int) -> tuple[Method, Algorithm | None]:
    """Return how a case's method trains."""
    if case.workload == "mesimp":
        assert case.rate is not None
        prunes = min(Simplification.prunes, max(1, task.steps_per_epoch // _PRUNE))
        return Method("meprop", case.k), Simplification(rate=case.rate, prunes=prunes)
    if case.workload == "meact":
        assert case.share is not None
        return DENSE, Activation(share=case.share, pretrain=max(1, steps // task.steps_per_epoch // 2))
    return Method(case.method, case.k, case.gradient, case.kernel), None
