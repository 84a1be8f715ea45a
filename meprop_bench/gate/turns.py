"""Turns: blocks of base and head next to each other, which the two processes take by themselves.

    neighbours   one block of base and one of head, in random order: what is compared
    plan         the neighbours of one set-up, all that the two processes are told

The workers hand a baton to each other (`measure.baton`), so that neither JSON nor this process stands between two
blocks. That is what the sharpness of the gate rests on. On a shared machine (two vCPUs of an AMD EPYC, a neighbour on
the same cores) one and the same loop of half a millisecond, which touches nothing but the first cache, took 0.41 to
0.93 ms; blocks next to each other differed by 20%, blocks 100 ms apart by 30%, and no number of processes or set-ups
averages faster than more neighbours do. What differs between base and head besides is where their threads run
(`asking`).

A block has a lead-in of one iteration, after which the caches are its own again, unless one iteration is as long as a
block: there the lead-in would be half of the time, for nothing that can be seen.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from meprop_bench.gate.asking import Fault, ask, ask_both
from meprop_bench.gate.case_records import SIDES, Blocks, Side
from meprop_bench.measure.replicate import Asked

__all__ = ["Turns"]


class Turns:
    """What two workers that have met are asked for.

    Args:
        workers: one for each side; both have set the same case up, and checked it.
        loops: "method" and "baseline" -> iterations behind a value.
        rng: draws the order.

    """

    def __init__(self, workers: Mapping[Side, Asked], loops: Mapping[str, int], rng: random.Random) -> None:
        self._workers, self._loops, self._rng = workers, loops, rng
        self._number = 0
        port = ask("base", workers["base"], {"do": "meet"})["port"]
        ask("head", workers["head"], {"do": "meet", "port": port})

    def again(self) -> None:
        """Have both set the case up once more, elsewhere in memory."""
        ask_both(self._workers, *({"do": "again", "seed": self._rng.getrandbits(32)} for _ in SIDES))

    def take(self, which: str, count: int, slowdowns: Sequence[float] = (0.0,)) -> dict[float, list[Blocks]]:
        """Return neighbours: for each slowdown a block of base and one of head, `count` times.

        Each block of the head has one of the base for itself. Were there one for all slowdowns, the head would mostly
        come after itself, and find its own caches: identical code looked 3% faster.

        Args:
            which: "method" or "baseline", of the case.
            count: neighbours.
            slowdowns: of the head's blocks.

        Raises:
            Fault: one side could not.

        """
        order = [slowdown for _ in range(count) for slowdown in self._rng.sample(slowdowns, len(slowdowns))]
        plan = [
            (side, which, slowdown if side == "head" else 0.0)
            for slowdown in order
            for side in self._rng.sample(SIDES, 2)
        ]
        taken = self._taken(plan)
        found: dict[float, list[Blocks]] = {slowdown: [] for slowdown in slowdowns}
        for slowdown, base, head in zip(order, taken["base"], taken["head"], strict=True):
            found[slowdown].append({"base": base, "head": head})
        return found

    def _taken(self, plan: Sequence[tuple[Side, str, float]]) -> dict[Side, list[Mapping[str, Any]]]:
        self._number += 1
        common = {
            "do": "turns",
            "plan": plan,
            "loops": self._loops,
            "lead": int(self._loops[plan[0][1]] > 1),
            "number": self._number,
        }
        answers = ask_both(self._workers, *({**common, "me": side} for side in SIDES))
        for side in SIDES:
            if answers[side]["stopped"]:
                raise Fault(side, "lost sight of the other side's process", fatal=True)
        return {side: answers[side]["blocks"] for side in SIDES}
