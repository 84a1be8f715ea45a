"""What a shard is of a sweep, and of a comparison over seeds: a plan that is run, resumed and reported as any other."""

from __future__ import annotations

from dataclasses import replace

from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.sweep.parity import ParityPlan
from meprop_bench.sweep.plan import Plan

__all__ = ["shard_of_parity", "shard_of_plan"]


def shard_of_plan(plan: Plan, shard: Shard) -> tuple[Plan, ShardOf]:
    """Return the plan of the cases that are a shard's own, and what its folder says of the whole.

    Raises:
        UserError: there are fewer cases than shards, and none for this one (exit code 5).

    """
    found = ShardOf(shard, plan.to_json(), tuple((case.case_id, case.label) for case in plan.order))
    own = found.checked_own()
    return replace(plan, cases=tuple(case for case in plan.cases if case.case_id in own)), found


def shard_of_parity(comparison: ParityPlan, shard: Shard) -> tuple[ParityPlan, ShardOf]:
    """Return the same of a comparison, whose seeds are split: both sides of a pair are trained on one machine."""
    seeds = range(1, comparison.seeds + 1)
    found = ShardOf(shard, comparison.to_json(), tuple((str(seed), f"seed {seed}") for seed in seeds))
    own = found.checked_own("seed")
    return replace(comparison, only=tuple(seed for seed in seeds if str(seed) in own)), found
