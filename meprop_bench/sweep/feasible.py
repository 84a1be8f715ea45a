"""Whether this machine can measure a plan: found before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from meprop_bench.errors import UserError
from meprop_bench.measure.affinity import chosen
from meprop_bench.measure.allocator import environment_of
from meprop_bench.workloads.case import TEXT, Case

__all__ = ["check_feasible"]


def check_feasible(
    cases: Iterable[Case],
    *,
    pin: bool = False,
    evaluates: bool = False,
    models: bool = True,
    ranks: bool = False,
    say: Callable[[str], object] | None = None,
) -> None:
    """Check that the machine has devices, threads, allocators and data, and with `pin` that it binds processes.

    With `models`, users' models are examined; with `evaluates` each has to say how good it is. `ranks`: whether whoever
    asks can measure several processes that train together. `say` is what is called while that takes long, in place of a
    line on standard error.

    Raises:
        UserError: what is missing, in one line.

    """
    cases = list(cases)
    for device in dict.fromkeys(case.device for case in cases if case.device != "cpu"):
        from meprop_bench.tasks.checks import on_device

        on_device(device)
    cores = os.cpu_count() or 1
    for case in cases:
        if case.world_size > 1:
            _check_ranks(case, cores, pin=pin, measured=ranks)
    for threads, allocator in dict.fromkeys((case.threads, case.allocator) for case in cases):
        if threads > cores:
            raise UserError(
                f"{threads} threads on {cores} cores would wait for each other: use --threads {cores}, or less"
            )
        if pin:
            chosen(threads)
        environment_of(allocator, threads)
    for data in dict.fromkeys(case.data for case in cases if case.data is not None):
        _check_data(data)
    if models and any(case.model is not None for case in cases):
        from meprop_bench.sweep.models import check_models

        check_models(cases, evaluates=evaluates, say=say)


def _check_ranks(case: Case, cores: int, *, pin: bool, measured: bool) -> None:
    size = case.world_size
    if not measured:
        raise UserError(f"--world-size {size} is measured by speedup alone: leave it out here")
    if pin:
        raise UserError(f"--pin binds one process, not {size} that train together: leave it, or --world-size, out")
    if case.device != "cpu":
        import torch

        number, there = int(case.device.removeprefix("cuda:")), torch.cuda.device_count()
        if number + size > there:
            raise UserError(
                f"--world-size {size} from {case.device} on needs {number + size} GPUs, and there"
                f" {'is' if there == 1 else 'are'} {there}: use --device cpu"
            )
    elif size > cores:
        raise UserError(
            f"{size} processes on {cores} cores would wait for each other: use --world-size {cores}, or less"
        )
    elif size * case.threads > cores:
        raise UserError(
            f"{size} processes with {case.threads} threads each on {cores} cores would wait for each other: use"
            f" --threads {max(1, cores // size)}"
        )


def _check_data(name: str) -> None:
    """Read the data once: a file that is cut off must not cost the cases before it.

    Another set in files of the same names is none of that: it is measured, and each row says so.
    """
    if name == "digits":
        from meprop_bench.data.images import check_installed

        check_installed()
        return
    if name in TEXT:
        from meprop_bench.data.characters import load_text

        if name != "made-up":
            load_text(name)
        return
    from meprop_bench.data import load_images
    from meprop_bench.data.content import condition
    from meprop_bench.data.sources import SOURCES, data_folder, is_here

    if condition(data_folder(), SOURCES[name], thorough=True)[0] == "present":
        return
    try:
        load_images(name)
    except UserError as error:
        raise UserError(f"{name} is corrupt: {error}") if is_here(SOURCES[name]) else error from None
