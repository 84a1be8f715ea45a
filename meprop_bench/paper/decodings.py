"""What decoding cost before and after meSimp, arm by arm, in `decodings.json` of the results folder.

Times are seconds of decoding the test set on one thread, in interleaved pairs, by some fresh processes; the interval is
over these. The sizes are means over the arm's seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from meprop_bench.paper.trainings import Trained
from meprop_bench.results.incoming import Count, Name, Seconds, checked, parsed, refused
from meprop_bench.results.store import replace_file
from meprop_bench.stats import Interval, median, paired_ratio

__all__ = ["DECODINGS", "Decoding", "Decodings", "sizes_of"]

DECODINGS = "decodings.json"


@dataclass(frozen=True)
class Decoding:
    """One arm's cost of decoding.

    Attributes:
        arm_id: of the arm.
        sizes: layer -> neurons left.
        multiplications: of an item, before and after.
        runs: process -> pairs of seconds, before and after.
        environment_id: where.
        git_revision: of the code that was timed.
        origin: the results folder that it was measured for, where another one has taken it over.

    """

    arm_id: Name
    sizes: Mapping[str, Count]
    multiplications: tuple[Count, Count]
    runs: Annotated[tuple[Annotated[tuple[tuple[Seconds, Seconds], ...], Meta(min_length=1)], ...], Meta(min_length=1)]
    environment_id: Name
    git_revision: Name | None = None
    origin: Name | None = None

    @property
    def speedup(self) -> Interval:
        """How many times as fast decoding is after."""
        return paired_ratio(self.runs)

    @property
    def fewer(self) -> float:
        """How many times fewer multiplications an item takes after."""
        return self.multiplications[0] / self.multiplications[1]

    def seconds(self, side: int) -> float:
        """Return the median time before (0) or after (1)."""
        return median(pair[side] for pairs in self.runs for pair in pairs)


class Decodings:
    """The decodings of one results folder.

    Args:
        folder: that is there.

    Raises:
        UserError: the file is damaged.

    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / DECODINGS
        self.found: dict[str, Decoding] = {}
        if not self.path.exists():
            return
        try:
            each = checked(parsed(self.path.read_bytes()), list[Decoding])
        except ValueError as error:
            where = f"{folder.name}/{DECODINGS} is damaged"
            raise refused(where, error, "delete it and run again with --resume") from None
        self.found = {one.arm_id: one for one in each}

    def get(self, arm_id: str, sizes: Mapping[str, int]) -> Decoding | None:
        """Return what is known of an arm at these sizes."""
        found = self.found.get(arm_id)
        return found if found is not None and dict(found.sizes) == dict(sizes) else None

    def add(self, decoding: Decoding) -> None:
        """Save one more: it is on the disk when this returns."""
        self.found[decoding.arm_id] = decoding
        replace_file(self.path, json.dumps([asdict(one) for one in self.found.values()], indent=1) + "\n")


def sizes_of(trained: Sequence[Trained]) -> Mapping[str, int]:
    """Return the neurons that training left in each layer, the mean over seeds; empty where nothing was simplified."""
    names = trained[0].layers if trained else ()
    return {name: max(1, round(sum(one.layers[name] for one in trained) / len(trained))) for name in names}
