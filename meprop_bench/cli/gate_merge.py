"""`meprop-bench gate merge`: one verdict over what several runners measured, each a shard of one gate.

Exit codes: those of the gate, as if one run had measured it all; 3 where a shard is missing or contradicts another, 5
where there is none.
"""

from __future__ import annotations

from pathlib import Path

import click

from meprop_bench.cli.gate_output import check_outputs, conclude, job, telling_refusals, with_outputs
from meprop_bench.cli.options import examples
from meprop_bench.errors import ExitCode, UserError

__all__ = ["merge"]


@click.command(
    name="merge",
    short_help="Judge what the shards of one gate measured, all at once.",
    epilog=examples(
        "meprop-bench gate merge shard-1.json shard-2.json shard-3.json",
        "meprop-bench gate merge shards --output gate.md",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_outputs
def merge(files: tuple[Path, ...], form: str, outputs: tuple[Path, ...], suite: str | None) -> int:
    """Judge what `gate --shard 1/N` to `--shard N/N` saved, by the settings that they had.

    A FILE may be a folder: all JSON files in it and below. The verdict is that of one run over all cases; without one
    of the shards there is none.
    """
    from meprop_bench.cli.gate_revisions import outcome_of
    from meprop_bench.gate.shards import merged, read

    check_outputs(outputs)
    name = suite or " / ".join(filter(None, (*job(), "gate")))
    with telling_refusals(outputs, name):
        whole = merged([read(path) for path in _files(files)])
        names, of = (whole.base, whole.head), whole.found
        outcome = outcome_of(of, whole.settings, names, whole.doubts, whole.machine, whole.repeat)
    return conclude(outcome, whole.settings, form, outputs, name, whole.seconds)


def _files(given: tuple[Path, ...]) -> list[Path]:
    """Return the files that are named, and those of folders; `UserError` where there is none."""
    found: dict[Path, Path] = {}
    for path in given:
        if not path.exists():
            raise UserError(f"{path} does not exist: no shard was handed on in it", ExitCode.NOTHING_MEASURED)
        for each in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if path == each and each.resolve() in found:
                raise UserError(f"{each.name} is named twice: name each shard once")
            found[each.resolve()] = each
    if not found:
        raise UserError(
            f"no shard was handed on: {given[0]} has no JSON file; see whether the jobs that measure failed",
            ExitCode.NOTHING_MEASURED,
        )
    return list(found.values())
