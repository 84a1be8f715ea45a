"""What came of a search, for people and for programs: tables, Markdown, JSON, and the curve as a picture."""

from __future__ import annotations

from typing import Any

from meprop_bench.durations import duration
from meprop_bench.measure.machine import was_busy
from meprop_bench.report.markdown import as_section, code_block, escaped
from meprop_bench.report.sections import Section, plain_section
from meprop_bench.tuning.advice import again, code_of
from meprop_bench.tuning.curve import Curve, Point
from meprop_bench.tuning.judge import ArmResult, bounds, front, interval_json, times
from meprop_bench.tuning.run import Result

__all__ = ["advice", "as_json", "doubt", "drawn", "markdown", "tables"]


def tables(result: Result) -> list[Section]:
    """Return what there is to show: the arms of a search, or the qualities in each budget."""
    if result.curve is not None:
        return [_over_time(result.curve, result.metric)]
    assert result.answer is not None
    return [_arms(result)]


def _arms(result: Result) -> Section:
    assert result.answer is not None
    quality, pareto = result.answer.metric.quality, front(result.answer.findings)
    order = sorted(result.answer.findings, key=lambda found: (found.arm not in pareto, -_speed(found)))
    rows = tuple(
        (
            ("* " if found.arm in pareto else "  ") + found.arm.label,
            "" if found.timing is None or found.timing.failed else times(found.timing.speedup),
            "" if found.equal_steps is None else bounds(found.equal_steps, quality),
            "" if found.steps is None or not found.seeds else f"{found.steps:,} x {found.seeds}",
            "" if found.equal_time is None else bounds(found.equal_time, quality),
            found.reason if found.standing in ("pass", "behind") else f"{found.standing}: {found.reason}",
        )
        for found in order
    )
    head = ("arm", "step", f"{result.metric} at equal steps", "steps x seeds", "at equal time", "finding")
    note = (
        "* on the Pareto front: no other arm, nor dense, is both faster and better, by what was trained in full length"
    )
    dense = {found.timing.baseline for found in order if found.timing is not None and found.timing.baseline}
    against = f"dense ({'; '.join(sorted(dense))})" if dense else "dense"
    title = f"{result.request.recipe.task}: arms against {against}"
    return plain_section(title, head, rows, left={"arm", "finding"}, keys=frozenset({"arm"}), footnotes=(note,))


def _over_time(curve: Curve, metric: str) -> Section:
    rows = []
    for point in curve.points:
        quality = "" if point.quality is None else curve.quality.plain(point.quality.estimate)
        difference = "" if point.difference is None else bounds(point.difference, curve.quality)
        name = "dense" if point.arm is None else point.arm.label
        standing = "" if point.arm is None and point.standing != "left out" else point.standing
        steps = f"{point.clocks[0]:,} to {point.clocks[-1]:,}" if point.clocks else f"{point.steps:,}"
        rows.append((duration(point.budget_s), name, steps, quality, difference, standing))
    head = ("seconds", "side", "steps", metric, "difference from dense", "the arm is")
    note = "intervals of 95%; ahead and behind by Holm's step-down over all of them"
    left = {"side", "the arm is"}
    return plain_section(f"{metric} over virtual time", head, rows, left=left, footnotes=(note,))


def doubt(result: Result) -> str:
    """Return a line that says how busy the machine was, and what that means for the answer; empty where it was not."""
    busy = "so its times, and all that is judged at equal time, may be wrong by a factor of {factor} or more"
    return was_busy(result.store.header["states"], {}, busy)


def advice(result: Result) -> list[str]:
    """Return the code that does what is to be taken, and what measures it again; nothing for dense."""
    answer = result.answer
    if answer is None or answer.decision.arm is None or answer.plan is None or answer.clock is None:
        return []
    arm, recipe, steps = answer.decision.arm, result.request.recipe, answer.plan.steps
    seeds = next(found.seeds for found in answer.findings if found.arm == arm)
    margin = answer.metric.margin
    return [
        code_of(arm, answer.clock.costs.layers, steps),
        *again(arm, recipe, result.threads, steps=steps, seeds=seeds, margin=margin),
    ]


def markdown(result: Result) -> str:
    """Return it as Markdown, the sentence first."""
    lines = [escaped(result.sentence), ""]
    if parts := advice(result):
        lines += [code_block(parts[0], "python"), "", "Measured again by", "", code_block("\n".join(parts[1:])), ""]
    return "\n".join([*lines, *(f"{as_section(section)}\n" for section in tables(result))])


def as_json(result: Result) -> dict[str, Any]:
    """Return the JSON object of what came of it."""
    request = result.request
    found: dict[str, Any] = {
        "sentence": result.sentence,
        "task": request.recipe.task,
        "metric": result.metric,
        "exit_code": int(result.code),
        "real_clock": result.real,
    }
    if result.curve is not None:
        curve = result.curve
        points = [_point(point) for point in curve.points]
        slow = [arm.to_json() for arm in curve.slow]
        return found | {"points": points, "slow": slow, "left_out": list(curve.left_out)}
    answer = result.answer
    assert answer is not None
    arm, parts = answer.decision.arm, advice(result)
    return found | {
        "verdict": answer.decision.kind,
        "margin": answer.metric.margin,
        "take": None if arm is None else arm.to_json(),
        "code": parts[0] if parts else None,
        "commands": parts[1:],
        "steps": None if answer.plan is None else answer.plan.steps,
        "dense_step_s": None if answer.clock is None else answer.clock.dense_s,
        "batch_s": None if answer.clock is None else answer.clock.costs.batch_s,
        "evaluation_s": None if answer.clock is None else answer.clock.costs.evaluation_s,
        "pareto": [each.to_json() for each in front(answer.findings)],
        "arms": [each.to_json() for each in answer.findings],
        "left_out": list(answer.left_out),
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "seconds": point.budget_s,
        "arm": None if point.arm is None else point.arm.to_json(),
        "steps": point.steps,
        "figures": list(point.figures),
        "quality": interval_json(point.quality),
        "difference": interval_json(point.difference),
        "standing": None if point.arm is None else point.standing,
    } | ({"steps_by_clock": list(point.clocks)} if point.clocks else {})


def _speed(found: ArmResult) -> float:
    timing = found.timing
    return 0.0 if timing is None or timing.failed else timing.speedup.estimate


def drawn(curve: Curve, title: str, metric: str) -> bytes:
    """Draw the qualities over the seconds as SVG, dense and each arm; needs matplotlib (ImportError)."""
    from meprop_bench.report.plots.training import over_budgets

    sides = {
        "dense" if arm is None else arm.label: [
            (point.budget_s, point.quality) for point in curve.points if point.arm == arm and point.quality is not None
        ]
        for arm in (None, *curve.arms)
    }
    return over_budgets(sides, title, metric)
