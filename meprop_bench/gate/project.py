"""A project of its own in two revisions: both are installed, its cases measured, and what only one names has a line.

    settings of the head -> Targets -> both installed -> measured, as any plan is (`revisions`) -> series

That a revision cannot be installed is a result like any other: in the head alone something that the base does fails, in
the base alone there is nothing to compare with. In both it is the command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Unpack

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.environments import InstallError, installed
from meprop_bench.gate.names import shown
from meprop_bench.gate.revisions import SLICE_S, GateProgress, Hooks, Measured, measure
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.targets import Targets, names_of
from meprop_bench.gate.worktree import Checkout, linked

__all__ = ["NotInstalledError", "both_installed", "compare"]

_INSTALL = "installation"
"""The case that stands for all of them."""
_LINES = 5
"""Of what a command printed, that are noted."""


class NotInstalledError(UserError):
    """One of the revisions cannot be installed, and the other one can."""

    def __init__(self, checkout: Checkout, error: InstallError) -> None:
        self.side, self.error = checkout.side, error
        code = ExitCode.NOT_COMPARABLE if checkout.side == "base" else ExitCode.REGRESSION
        super().__init__(f"the {checkout.side}, {checkout.name}, cannot be installed: {error}", code)

    @property
    def found(self) -> Measured:
        """What a comparison without measurements is."""
        why = {"failure": str(self)} if self.side == "head" else {"unjudged": f"not comparable: {self}"}
        one = Series(case=_INSTALL, figure="environment", quantity="count", unit="1", **why)  # type: ignore[arg-type]
        notes = tuple(f"the {self.side}: {shown(line)}" for line in self.error.tail.splitlines()[-_LINES:])
        return Measured((one,), notes, {}, 0, {_INSTALL: (str(self), False)} if self.side == "base" else {}, 1)


def both_installed(
    base: Checkout, head: Checkout, settings: Settings, progress: Callable[[], None] = lambda: None
) -> tuple[Checkout, Checkout]:
    """Return both revisions, each with its environment; `progress` is called before one is made.

    Raises:
        NotInstalledError: one of them cannot be installed.
        UserError: neither can.

    """
    made: list[Checkout] = []
    failed: list[NotInstalledError] = []
    for checkout in (base, head):
        linked(checkout, settings.link)
        progress()
        try:
            made.append(installed(checkout, settings))
        except InstallError as error:
            failed.append(NotInstalledError(checkout, error))
    if len(failed) > 1:
        reasons = dict.fromkeys(str(one.error) for one in failed)
        raise UserError(f"neither revision can be installed: {'; '.join(reasons)}")
    if failed:
        raise failed[0]
    return made[0], made[1]


def compare(
    plan: Targets,
    base: Checkout,
    head: Checkout,
    settings: Settings,
    *,
    undecided: Callable[[Sequence[Series]], Collection[str]],
    every: Collection[str] | None = None,
    slice_s: float = SLICE_S,
    **hooks: Unpack[Hooks],
) -> Measured:
    """Measure the cases of a project; arguments and errors as `revisions.measure` has them.

    `every` has the labels of all cases that the settings name, where others measure some of them.
    """
    budget_s, total = plan.budget * len(plan.cases), len(plan.cases)

    def installing() -> None:
        if (progress := hooks.get("progress")) is not None:
            progress(GateProgress("installing", 0, None, total, total, 0.0, budget_s))

    try:
        first, second = both_installed(base, head, settings, installing)
    except NotInstalledError as error:
        return error.found
    found = measure(plan, first, second, undecided=undecided, slice_s=slice_s, **hooks)
    known = {case.label for case in plan.cases} if every is None else every
    gone = [name for name in names_of(first.folder) if name not in known and settings.measured(name)]
    series = tuple(
        Series(
            case=name,
            figure="times",
            quantity="time",
            unit="s",
            unjudged="gone: the head's settings name it not",
            gone=True,
        )
        for name in gone
    )
    return replace(found, series=(*found.series, *series))
