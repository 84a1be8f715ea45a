"""Named baselines at the gate: what `--baseline NAME` compares with, and what `--save-baseline NAME` keeps.

    meprop-bench gate --candidate after.json --save-baseline main     keeps it; of one that is there, shows what changes
    meprop-bench gate --baseline main --candidate later.json          judged against it

A baseline is worth something in its own environment. Once that is gone, another processor, another Python, another
torch, times cannot be compared with it any more: it has expired, which one line says with what differs (exit code 3).
Ratios sparse / dense do not expire (`--ratios-only`).

Who replaces a baseline is shown what that changes, and confirms it: at a terminal by a `y`, elsewhere by naming the
digest of what is replaced (`--replace DIGEST`).
"""

from __future__ import annotations

from pathlib import Path

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files import Compared, read, read_file
from meprop_bench.gate.files.compared import OtherEnvironment
from meprop_bench.gate.files.figures import Figures
from meprop_bench.gate.files.machine import common_machine
from meprop_bench.gate.names import shown
from meprop_bench.results.baselines import Baseline, Baselines

__all__ = ["compared", "compared_with", "save"]

_OF_SUITE = "benchmarks.json"
"""What asv keeps beside a result, or in the folder above: the units of its benchmarks."""


def compared(baseline: Path, candidate: Path | None, folder: Path, *, ratios_only: bool = False) -> Compared:
    """Return what a baseline, by its path or its name in `folder`, and a candidate have in common, as `files.read`."""
    if (found := _named(baseline, folder)) is None:
        return read(baseline, candidate, ratios_only=ratios_only)
    if candidate is None:
        raise UserError(f"what the baseline {found.name} is compared with has to be named: add --candidate FILE")
    return compared_with(found, candidate, ratios_only=ratios_only)


def _named(baseline: Path, folder: Path) -> Baseline | None:
    """Return the baseline of a name, None for a path; `UserError`: it could be either, or is no longer what was saved.

    A path has a separator, or is there.
    """
    text, baselines = str(baseline), Baselines(folder)
    if len(baseline.parts) != 1:
        return None
    if text not in baselines:
        return None if baseline.exists() or baseline.suffix else baselines.named(text)
    if baseline.exists():
        raise UserError(f"{shown(text)} is a baseline, and a path: write ./{shown(text)} for the path")
    return baselines.named(text)


def compared_with(baseline: Baseline, candidate: Path, *, ratios_only: bool = False) -> Compared:
    """Return what a baseline and a candidate have in common; `UserError` (exit code 3): its environment is gone."""
    base, head = read_file(baseline.results), read_file(candidate)
    base.name = f"baseline {baseline.name}"
    base.source = f"baseline {baseline.line}"
    try:
        return Compared(base, head, ratios_only=ratios_only)
    except OtherEnvironment as error:
        raise UserError(
            f"the baseline {baseline.name} has expired, saved {baseline.saved:%Y-%m-%d} in another environment:"
            f" {error.reason}; save it anew with --save-baseline {baseline.name}, or compare ratios (--ratios-only)",
            ExitCode.NOT_COMPARABLE,
        ) from None


def save(name: str, candidate: Path, folder: Path, *, replaces: str = "") -> Baseline:
    """Keep results under a name.

    `UserError`: they have no figures (exit code 5), or do not say where they were measured; or `replaces` is not the
    digest of the baseline that has the name.
    """
    found = read_file(candidate)
    if not len(found):
        raise UserError(f"{found.name} holds no figures, so it cannot be a baseline", ExitCode.NOTHING_MEASURED)
    if not all(found.environments.get(key) for key in found.environment_keys):
        raise UserError(f"{found.name} does not say where it was measured, so nothing could be compared with it later")
    units = (place / _OF_SUITE for place in (candidate.parent, candidate.parent.parent))
    beside = [path for path in units if path.is_file()][:1] if "(asv" in found.source else []
    machine = common_machine(_used(found))
    return Baselines(folder).save(name, [candidate, *beside], source=found.source, machine=machine, replaces=replaces)


def _used(found: Figures) -> list[dict[str, object]]:
    return [dict(found.environments.get(key, {})) for key in found.environment_keys]
