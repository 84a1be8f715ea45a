"""How often does the quick preset say that a method which keeps the accuracy keeps it? Trained; no part of CI.

    python -m tests.sweep.fresh_seeds --blocks 20

A verdict for each block of as many seeds as the preset compares (its own method, steps and margin, on the digits),
none of which was used before, least of all to choose split, steps and number of seeds by. Printed are the blocks that
pass with the 95% interval of their share (Clopper and Pearson), the difference over all pairs, and how many blocks that
are drawn at random from all pairs would pass. Accuracies depend on no timing: a busy machine only takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from scipy.special import betaincinv

from meprop_bench.results.schema import Parity
from meprop_bench.stats import mean_difference
from meprop_bench.sweep.accuracy import judged, trained
from meprop_bench.sweep.plan import Plan, load_preset, plan_preset
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.workloads.case import Case, recipe_of

FIRST = 200_001
"""Far from the seeds that reports, and whoever chose the preset's settings, have trained."""


def compared(plan: Plan) -> Case:
    """Return the preset's case whose accuracy is compared."""
    (case,) = [case for case in plan.cases if case.case_id in plan.compared]
    return case


def figure(recipe: Recipe, seed: int) -> float:
    """Return what one training comes to, on one thread."""
    import torch

    torch.set_num_threads(1)
    return trained(recipe, [seed]).of[seed]


def verdict(recipe: Recipe, pairs: Mapping[int, tuple[float, float]], steps: int) -> Parity:
    """Judge a block as the report would."""
    return judged(recipe, pairs, steps=steps, metric="accuracy_percent")


def within(passed: int, of: int) -> str:
    """Return a share with its exact interval."""
    low = float(betaincinv(passed, of - passed + 1, 0.025)) if passed else 0.0
    high = float(betaincinv(passed + 1, of - passed, 0.975)) if passed < of else 1.0
    return f"{passed} of {of}, {passed / of:.1%} [{low:.1%}, {high:.1%}]"


def _is_there(path: Path | None) -> bool:
    return path is not None and path.exists()


def main() -> None:
    """Train and print, block by block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--first", type=int, default=FIRST, help="first seed")
    parser.add_argument("--pairs", type=Path, help="file that keeps the pairs, a line each: a run that ended goes on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    plan = plan_preset(load_preset("quick"))
    seeds, steps = plan.accuracy_seeds, plan.accuracy_steps
    recipe = replace(recipe_of(compared(plan), steps), task="digits")
    blocks = f"{arguments.blocks} blocks of {seeds} seeds of {steps} steps"
    print(f"{recipe.label} on digits: {blocks}, from seed {arguments.first}")
    every: dict[int, tuple[float, float]] = {}
    known = (
        [json.loads(line) for line in arguments.pairs.read_text().splitlines()] if _is_there(arguments.pairs) else []
    )
    stored = {seed: (dense, sparse) for seed, dense, sparse in known}
    verdicts: list[str] = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        for block in range(arguments.blocks):
            own: Sequence[int] = range(arguments.first + block * seeds, arguments.first + (block + 1) * seeds)
            pairs = {seed: stored[seed] for seed in own if seed in stored}
            if left := [seed for seed in own if seed not in pairs]:
                both = [pool.map(figure, [side] * len(left), left, chunksize=2) for side in (recipe.dense(), recipe)]
                pairs |= dict(zip(left, zip(*both, strict=True), strict=True))
                if arguments.pairs is not None:
                    with arguments.pairs.open("a") as file:
                        file.writelines(json.dumps([seed, *pairs[seed]]) + "\n" for seed in left)
            found = verdict(recipe, pairs, steps)
            every |= pairs
            verdicts.append(found.verdict)
            figures = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
            print(f"block {block + 1}: {found.verdict} {figures}; passed {within(verdicts.count('pass'), block + 1)}",
                  flush=True)  # fmt: skip
    whole, source = mean_difference(list(every.values())), random.Random(0)
    again = [verdict(recipe, dict(source.sample(list(every.items()), seeds)), steps).verdict for _ in range(2000)]
    print(f"all {len(every)} pairs: {whole.estimate:+.3f} [{whole.low:+.3f}, {whole.high:+.3f}] points")
    print(f"passed: {within(verdicts.count('pass'), len(verdicts))}; of 2,000 blocks drawn from all pairs"
          f" {again.count('pass') / len(again):.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
