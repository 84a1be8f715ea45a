"""The doctor: whether this machine can be trusted to measure, what is missing, and mistakes in the configuration.

    watch      one second of doing nothing: what others and the hypervisor take (before anything is started)
    start      a measuring process, as a sweep starts it; it imports while software, data and files are looked at
    A/A        a second and a half of pairs of identical code in that process, alone

Everything that is read is read by `measure`, `data` and `sweep`; this package judges it. It stands above all that
measures and below the command line: a verb's settings may be looked up here, and nothing needs the doctor.

About 7 seconds on the 2-core machine when it is calm; `fast` leaves the measuring process out and takes 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from meprop_bench.doctor import configuration, machine, noise, software
from meprop_bench.doctor.check_result import SECTIONS, CheckResult, exit_code
from meprop_bench.errors import ExitCode
from meprop_bench.measure.allocator import current
from meprop_bench.measure.environment import collect
from meprop_bench.measure.machine import state
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError
from meprop_bench.results.axes import default_threads
from meprop_bench.sweep.worker import start_for

__all__ = ["CheckResult", "Examination", "examine"]

_WATCH_S = 1.0


@dataclass(frozen=True)
class Examination:
    """What was found, in the order of the screen; and the environment of the examining process, as a result's."""

    findings: tuple[CheckResult, ...]
    environment: dict[str, Any]

    @property
    def exit_code(self) -> ExitCode:
        """2 for a mistake to put right, else 4 for a machine that cannot be trusted, else 0."""
        return exit_code(self.findings)


def examine(
    presets: Sequence[str] = (),
    *,
    fast: bool = False,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Examine this machine and the configuration of a folder, by default the working directory.

    `presets`, names or TOML files, are checked, too; `fast` leaves the noise, the kernels' cache and the contents of
    the data out; `progress` is called with what is being done.
    """
    progress("watching the machine")
    now = state(default_threads(), seconds=_WATCH_S)
    with _Trial() as trial:
        if not fast:
            trial.start()
        progress("looking at software, devices and data")
        environment = collect("cpu", current())
        rest = [
            *software.software(environment),
            *software.node(),
            *software.devices(),
            *software.data_sets(thorough=not fast),
            *configuration.project(folder := folder or Path.cwd()),
            *configuration.asv(folder),
        ]
        for name in presets:
            rest += configuration.preset(name)
        if not fast:
            progress("measuring identical code against itself")
        rest += trial.findings()
    found = [*machine.machine_state(environment, now), machine.allocators(), *machine.clock(environment), *rest]
    order = list(SECTIONS)
    found.sort(key=lambda finding: order.index(finding.section))  # stable
    return Examination(tuple(found), environment)


class _Trial:
    """A measuring process: it gets ready beside what else is looked at, and then measures alone."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._case = noise.identical()
        self._pool: Pool[int] | None = None
        self._loops: Any = None
        self._before = software.compiled()

    def start(self) -> None:
        """Start it, and let it import."""
        beside = self._closing.enter_context(ThreadPoolExecutor(1))
        self._pool = Pool.of(partial(start_for, self._case), 1, noise.PATIENCE_S)
        self._closing.callback(self._pool.close)  # before the thread, whose request it ends
        self._loops = beside.submit(noise.prepare, self._pool, self._case)

    def findings(self) -> list[CheckResult]:
        """Measure, if it was started, and judge; nothing is found of what was not tried."""
        found: list[CheckResult] = []
        loaded = False
        if self._pool is not None:
            try:
                loops = self._loops.result()
                loaded = True
                found = noise.judge(noise.measure(self._pool, loops))
            except WorkerError as error:
                advice = "try again when the machine is calm, and see the kernel cache"
                text = f"not measured; the measuring process: {noise.reason(error)}"
                found = [CheckResult("noise", "A/A", "warning", text, advice)]
        cache = software.kernels(self._before, software.compiled(), loaded=loaded)
        return found if cache is None else [*found, cache]

    def __enter__(self) -> _Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
