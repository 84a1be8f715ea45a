"""Why is it not faster? What a profile answers in words.

A sparse backward pass of share s of a dense step, made free, leaves 1 - s: the step can become at most 1 / (1 - s)
times as fast (Amdahl), whatever k. Below that ceiling, what is left is at its floor, or the price of the calls, or
neither of them, and then there is something to gain. Each answer has its numbers, and how they were obtained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from meprop_bench.report.cells import capital, digits, ratio, ratio_within, seconds, seconds_within
from meprop_bench.report.machine import savings
from meprop_bench.results.profile import SIDES, BreakEven, Profile, Stage
from meprop_bench.stats import CANNOT_TELL, amdahl, too_wide

__all__ = ["ProfileAnswer", "answers", "phase_name", "spared", "stage_names"]

AT_FLOOR = 1.25
"""A part that takes at most this many times its floor is at it: the peaks themselves scatter by some percent."""

_WORTH_SPARING = 0.1
"""Share of the linear backward from which the zeros of a dense gradient are worth a hint."""

_STAGES = {
    "selection": "selection and db",
    "gather": "gather of dy and W",
    "dx": "product dx",
    "dW": "product dW",
    "scatter": "scatter into dense dW",
    "dense layers": "layers left dense",
    "rest": "rest (autograd, Python)",
}
_FUSED = {"dx": "gather and product dx", "dW": "gather and product dW"}
_PHASES = {"update": "update (optimizer)"}


def stage_names(profile: Profile) -> dict[str, str]:
    """Return the stages in their order, and what each is called in this profile."""
    names = {**_STAGES, **(_FUSED if profile.fused else {})}
    if any(row.gradient == "rows" for row in profile.rows):
        names["scatter"] = "scatter: tensor of rows"
    if any(row.workload != "linear" for row in profile.rows):
        names["rest"] = "rest (other operators, autograd)"
    return names


def phase_name(phase: str) -> str:
    """Return what a phase is called."""
    return _PHASES.get(phase, phase)


@dataclass(frozen=True)
class ProfileAnswer:
    """One question, its answer, and where the numbers come from."""

    question: str
    text: str
    how: str


def answers(profile: Profile) -> list[ProfileAnswer]:
    """Return what can be answered from this profile."""
    questions: tuple[Callable[[Profile], ProfileAnswer | None], ...] = (_where, _floors, _ceiling, _overhead, _saving)
    found = [answer for question in questions if (answer := question(profile)) is not None]
    if vague := profile.vague_phases:
        why = f"Cannot tell: the processes differ too much in the {' and the '.join(map(phase_name, vague))}."
        found = [replace(answer, text=why) for answer in found]
    return [*found, *map(_break_even, profile.break_even)]


def spared(profile: Profile) -> tuple[float, float] | None:
    """Return the seconds of a dense step and those of them that sparsifying can spare; None if unknown.

    These are dx and dW of the sparsified layers, or the whole backward pass where they are not known.
    """
    step_s = _step_s(profile, "dense")
    spared_s = sum(stage.seconds for name in ("dx", "dW") if (stage := profile.stage("dense", name)))
    if profile.stages_of is None:
        spared_s = profile.seconds("dense", "backward") or 0.0
    return (step_s, min(spared_s, step_s)) if step_s and spared_s else None


def _step_s(profile: Profile, side: str) -> float:
    """Return the seconds of a step, or of the phases that there are."""
    step_s = profile.seconds(side, "step")
    return step_s or sum(profile.seconds(side, phase) or 0.0 for phase in ("forward", "backward", "update"))


def _where(profile: Profile) -> ProfileAnswer | None:
    parts = {phase: found for phase in ("forward", "backward", "update") if (found := profile.seconds("sparse", phase))}
    total = sum(parts.values())
    dense_s, sparse_s = _step_s(profile, "dense"), _step_s(profile, "sparse")
    if not parts or not sparse_s:
        return None
    shares = ", ".join(f"{phase_name(phase)} {seconds(found)} ({found / total:.0%})" for phase, found in parts.items())
    largest = max(parts, key=lambda phase: parts[phase])
    text = f"Together {seconds(sparse_s)}, {ratio(dense_s / sparse_s)} the speed of dense: {shares}."
    if largest != "backward":
        text += f" Most of it is the {phase_name(largest)}, which the method leaves as it is."
    stages = [stage for stage in profile.stages.get("sparse", ()) if stage.seconds > 0 and not stage.vague]
    whole_s = profile.seconds("sparse", profile.stages_of) if profile.stages_of else None
    if stages and whole_s:
        longest = max(stages, key=lambda stage: stage.seconds)
        text += (
            f" The longest stage of the sparse {profile.stages_of} is {stage_names(profile)[longest.name]},"
            f" {seconds(longest.seconds)} or {longest.seconds / whole_s:.0%}."
        )
        scatter = profile.stage("sparse", "scatter")
        dense = not any(row.gradient == "rows" for row in profile.rows)
        if dense and scatter is not None and not scatter.vague and scatter.seconds >= _WORTH_SPARING * whole_s:
            share = f"{scatter.seconds / whole_s:.0%}"
            text += f" The scatter into a dense dW, {share}, most of it zeros, is spared by gradients as rows."
    return ProfileAnswer("Where does the time go?", text, "phases timed in interleaved pairs, without a profiler")


def _floors(profile: Profile) -> ProfileAnswer | None:
    every = [(stage_names(profile)[stage.name], stage) for stage in profile.stages.get("sparse", ())]
    parts, vague = [one for one in every if not one[1].vague], [name for name, stage in every if stage.vague]
    for phase in ("forward", "update") if every else ("forward", "backward", "update"):
        row = profile.row(phase)
        if row is not None and (side := row.sparse).median_s is not None and side.floor_s is not None:
            parts.append((phase_name(phase), Stage(name=phase, seconds=side.median_s, floor_s=side.floor_s)))
    known = [(name, stage.seconds / stage.floor_s, stage) for name, stage in parts if stage.floor_s and stage.seconds]
    if not known:
        return None
    at = [f"{name} ({digits(times)}x)" for name, times, _ in known if times <= AT_FLOOR]
    far = sorted((found for found in known if found[1] > AT_FLOOR), key=lambda found: -found[2].seconds)
    text = f"At its floor (within {AT_FLOOR:g}x): {', '.join(at) or 'nothing'}."
    if far:
        bounds = {name: f" (bound by {stage.bound})" if stage.bound else "" for name, _, stage in far}
        parts_far = (f"{name} {seconds(stage.seconds)}, {digits(times)}x{bounds[name]}" for name, times, stage in far)
        text += f" Above it: {'; '.join(parts_far)}."
    if vague:
        text += f" Cannot tell: {', '.join(vague)}."
    return ProfileAnswer(
        "Which part is at its floor?",
        text,
        "floor: the larger of operations / peak rate and least bytes / bandwidth, both measured on this machine",
    )


def _ceiling(profile: Profile) -> ProfileAnswer | None:
    found = spared(profile)
    if found is None:
        return None
    step_s, spared_s = found
    share = spared_s / step_s
    phases = "step" if profile.row("update") else "forward and backward together"
    most = ratio(amdahl(step_s, spared_s)) if share < 0.999 else "any factor"
    what = "dx and dW of the sparsified layers make up" if profile.stages_of else "The whole backward pass makes up"
    text = (
        f"{what} {share:.0%} of the dense {phases} ({seconds(spared_s)} of {seconds(step_s)}). Were that free, the"
        f" whole would be {most} as fast; it is"
        f" {ratio(step_s / _step_s(profile, 'sparse'))}."
    )
    if share < 0.999 and _step_s(profile, "sparse") < step_s - spared_s:
        text += " It is more than that, since the products, timed alone, take less than within the whole."
    if not profile.row("update"):
        text += " An optimizer would lower the ceiling: this workload has none."
    if any(stage.vague for stage in profile.stages.get("dense", ()) if stage.name in ("dx", "dW")):
        text = "Cannot tell: the processes differ too much in dx and dW."
    how = "the dense stages timed apart" if profile.stages_of else "the dense phases, a generous bound"
    return ProfileAnswer("What is the ceiling for this model (Amdahl)?", text, f"1 / (1 - share), share from {how}")


def _overhead(profile: Profile) -> ProfileAnswer | None:
    if "backward" not in profile.overhead or profile.stages_of is None:
        return None
    layers = profile.layers[0]
    parts = []
    for side, tiny in zip(SIDES, profile.overhead_of("backward"), strict=True):
        if too_wide(tiny.half_width):
            parts.append(f"{side}: {CANNOT_TELL}")
            continue
        whole_s = profile.seconds(side, profile.stages_of)
        floors = [stage.floor_s for stage in profile.stages.get(side, ()) if stage.floor_s is not None]
        if whole_s:
            calls_s = layers * tiny.estimate
            parts.append(
                f"{side}: {seconds(calls_s)} of {seconds(whole_s)} are the calls ({min(1.0, calls_s / whole_s):.0%}),"
                f" {seconds(sum(floors))} the stages' floors"
            )
    dense, sparse = map(seconds_within, profile.overhead_of("forward"))
    text = "; ".join(parts) + f". A forward pass of next to nothing takes {dense} dense and {sparse} sparse, per layer."
    layer = "1 layer" if layers == 1 else f"{layers} layers, each counted"
    return ProfileAnswer(
        "How much is launching, how much arithmetic?",
        capital(text),
        f"the same calls with a batch of 1 and 1 input, 2 outputs ({layer})",
    )


def _saving(profile: Profile) -> ProfileAnswer | None:
    row = next((found for phase in ("linear-backward", "backward") if (found := profile.row(phase))), None)
    if row is None or row.interval is None:
        return None
    flops, nbytes, floors = savings(row)
    if flops is None or nbytes is None or floors is None:
        return None
    text = (
        f"The {row.phase} needs {ratio(flops)} fewer operations and {ratio(nbytes)} fewer bytes than dense, so that at"
        f" this machine's floors it would be {ratio(floors)} as fast; measured:"
        f" {ratio_within(row.interval)}."
    )
    return ProfileAnswer(
        "How much was to be expected?", text, "counts from the method's definition, peaks of this machine"
    )


def _break_even(found: BreakEven) -> ProfileAnswer:
    how = f"{len(found.points)} quick measurements of the backward pass alone, so approximate: "
    how += ", ".join(f"{value}: {ratio(speedup)}" for value, speedup in sorted(found.points))
    if found.axis == "k":
        return ProfileAnswer("At which k does sparse break even?", _k_in_words(found), how)
    return ProfileAnswer("From which size does it pay?", _size_in_words(found), how)


def _k_in_words(found: BreakEven) -> str:
    if found.loses is None:
        if found.pays == found.ends[1]:
            return f"At none: with k={found.pays}, {found.held}, sparse is still faster."
        return f"Beyond k={found.pays}, {found.held}, where sparse is still faster; there was no time for more."
    if found.pays is None:
        if found.loses == found.ends[0]:
            return f"At none: not even with k={found.loses}, {found.held}, sparse is faster."
        return f"Below k={found.loses}, {found.held}, where sparse is not faster; there was no time for more."
    return f"At about k={_between(found)}, {found.held}: sparse pays at {found.pays} and no longer at {found.loses}."


def _size_in_words(found: BreakEven) -> str:
    if found.loses is None:
        if found.pays == found.ends[0]:
            return f"From the smallest on that has so many neurons, hidden={found.pays} ({found.held})."
        return f"From hidden={found.pays} or less ({found.held}); there was no time for smaller ones."
    if found.pays is None:
        why = "the largest that is tried" if found.loses == found.ends[1] else "there was no time for larger ones"
        return f"Not up to hidden={found.loses} ({found.held}): {why}."
    return (
        f"From about hidden={_between(found)} ({found.held}): sparse does not pay at {found.loses} and does at"
        f" {found.pays}."
    )


def _between(found: BreakEven) -> str:
    assert found.pays is not None
    assert found.loses is not None
    middle = round((found.pays * found.loses) ** 0.5)
    return str(middle) if middle < 100 else f"{float(f'{middle:.2g}'):g}"
