"""`compare` and `profile`: a model, by the function that builds it, and axes as keywords.

    compare(build, k=[0.02, 0.05, 0.1], method=["meprop", "unified"])
    compare("my_model.py:build", k=0.05)
    compare(workload="linear", hidden=2048, k=[8, 32])

They are the commands `speedup` and `profile`: the same plan, the same processes, the same checks.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meprop_bench.api.keywords import in_python
from meprop_bench.api.profiled import Profiled
from meprop_bench.api.results import Results
from meprop_bench.errors import UserError, one_of
from meprop_bench.measure.environment import machine_slug
from meprop_bench.progress import lines, showing, state_before
from meprop_bench.results.axes import AXES
from meprop_bench.results.store import Store
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import Plan, one_case, plan_axes
from meprop_bench.sweep.profile import check_trace, profile_case
from meprop_bench.sweep.runner import Runner
from meprop_bench.tasks.build import named
from meprop_bench.tasks.recipe import by_layer_text

if TYPE_CHECKING:
    from meprop_bench.training import Training

__all__ = ["compare", "profile"]

_AXES = {option.replace("-", "_"): option for option in AXES}
"""An axis's name as a keyword -> as the command line and presets have it."""


def compare(
    build: str | Path | Callable[[], Training] | None = None,
    *,
    target: float | None = None,
    budget: float | None = None,
    processes: int | None = None,
    pin: bool = False,
    utilization: bool = True,
    parity: bool = False,
    seeds: int | None = None,
    steps: int | None = None,
    deadline: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **axes: Any,
) -> Results:
    """Measure sparsified back propagation against dense, in interleaved pairs and fresh processes, as `speedup` does.

    An interrupt (Ctrl-C) ends it with the cases that are done, if there are any.

    Args:
        build: a function that returns a `Training`, which is pickled for the measuring processes, or its name
            (`my_model.py:build`), or that of a task. None for another workload than a model's training.
        target: half-width of the interval at which a case ends [default: 0.02, ±2%].
        budget: longest timing of a case, in seconds [default: 20].
        processes: fresh processes for each case [default: 5].
        pin: bind each process to as many cores as it has threads.
        utilization: watch utilization, power and energy, too, 4 s more for each case.
        parity: compare quality as well, after short trainings from so many `seeds` [default: 5], of so many `steps`
            [default: 400].
        seeds: see parity.
        steps: see parity.
        deadline: begin no case that would not be done after so many seconds.
        out: a folder for the results folder, as `reports`; by default nothing is left behind: see `Results.save`.
        resume: continue the latest unfinished run of the same plan in `out`.
        progress: show how far it is.
        axes: of the cases, a value or a list of them, of which every combination is a case: method, k, gradient,
            threads, device, optimizer, leave, ... (see the table of axes; `in_features` is the axis in-features).

    Raises:
        UserError: in one line, what is wrong with an argument, with the model, or what this machine cannot measure.

    """
    until = Deadline(deadline)
    if not parity and (seeds, steps) != (None, None):
        raise UserError("seeds and steps are for the trainings that compare quality: add parity=True")
    if resume and out is None:
        raise UserError("resume continues in a folder: name it by out")
    given = {"target": target, "budget": budget, "processes": processes}
    given |= {"accuracy_seeds": seeds, "accuracy_steps": steps}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings["checks"] = ("gradients", "accuracy") if parity else ("gradients",)
    with in_python(), ExitStack() as stack:
        chosen = _axes(compare, build, axes, stack)
        if "seed" in chosen:
            settings["seed"] = chosen["seed"][0]
        plan = plan_axes(chosen, name="compare", pin=pin, utilization=utilization, **settings)
        check_feasible(plan.cases, pin=pin, evaluates=parity, ranks=True, say=_saying(progress))
        if out is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meprop-bench-")))
        else:
            root = Path(out).expanduser()
        machine, call = machine_slug(plan.cases[0].device), _call("compare", build, axes)
        store = stack.enter_context(Store.begun(root, plan.name, machine, call, plan.to_json(), resume=resume))
        notes = _run(plan, store, until, progress=progress)
        return Results.of(store, stored=out is not None, notes=notes)


def profile(
    build: str | Path | Callable[[], Training] | None = None,
    *,
    search: float = 10.0,
    trace: str | Path | None = None,
    progress: bool = True,
    **axes: Any,
) -> Profiled:
    """Show where the time of one step goes, and why it is not less, as the command does.

    Args:
        build: as for `compare`.
        search: longest search for the k and size that break even, in seconds; 0 skips it.
        trace: a file for a trace that Perfetto shows, .json or .json.gz.
        progress: show what is being done.
        axes: of the case, one value each.

    Raises:
        UserError: in one line, what is wrong with an argument or the model, what this machine cannot measure, or that
            the gradients are wrong.

    """
    path = None if trace is None else Path(trace).expanduser()
    with in_python(), ExitStack() as stack:
        case = one_case(_axes(profile, build, axes, stack))
        check_trace(path)
        check_feasible([case], say=_saying(progress))
        show = lines() if progress else lambda _: None
        found, environments = profile_case(
            case, search_s=search, trace=path, progress=lambda stage: show(f"{case.label}: {stage}")
        )
        show(f"{case.label}: done")
        return Profiled(found, environments)


def _axes(function: Callable[..., Any], build: Any, axes: Mapping[str, Any], stack: ExitStack) -> dict[str, list[Any]]:
    """Return the values of each axis, by the names that plans have; the model's is the name that workers find it by."""
    known = dict.fromkeys([*signature(function).parameters, *_AXES])
    for name in axes:
        one_of("argument", name, [each for each in known if each != "axes"])
    found = {_AXES[name]: _many(name, value) for name, value in axes.items()}
    if build is not None:
        if "model" in axes:
            raise UserError("the model is given twice: leave out model=")
        found["model"] = [stack.enter_context(named(build))]
    elif not axes.keys() & {"model", "workload"}:
        raise UserError("there is nothing to measure: give a function that builds a model, or workload='linear', say")
    return found


def _many(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else [value]
    if not values:
        raise UserError(f"{name} has no value: give it one")
    return [_plain(each) for each in values]


def _plain(value: Any) -> Any:
    """Return the number of NumPy's scalars, the name of torch's devices and dtypes, and the text of k by layer."""
    if isinstance(value, Mapping):
        return by_layer_text(value.items())
    if type(value).__module__.partition(".")[0] == "torch":
        return str(value).removeprefix("torch.")
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def _run(plan: Plan, store: Store, deadline: Deadline, *, progress: bool) -> list[str]:
    """Measure what is not measured yet, and return what a reader has to know; an interrupt ends it."""
    try:
        with showing(plan) if progress else nullcontext(lambda _: None) as show:
            state = partial(state_before, say=_saying(progress))
            Runner(plan, store, progress=show, state=state, deadline=deadline).run()
    except KeyboardInterrupt:
        done = len(store.done_case_ids())
        if not done:
            raise
        return [f"interrupted after {done} of {len(plan.cases)} cases"]
    return []


def _saying(progress: bool) -> Callable[[str], object]:
    """Return what shows a line that is none of the result."""
    return partial(print, file=sys.stderr) if progress else lambda _: None


def _call(function: str, build: Any, axes: Mapping[str, Any]) -> str:
    """Return the call as it was written, about."""
    model = repr(str(build)) if isinstance(build, str | Path) else getattr(build, "__name__", type(build).__name__)
    words = [*([] if build is None else [model]), *(f"{name}={value!r}" for name, value in axes.items())]
    return f"meprop_bench.{function}({', '.join(words)})"
