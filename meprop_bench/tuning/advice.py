"""What to do with an answer: the code that does it, and the commands that measure it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from meprop_bench.methods import METHODS
from meprop_bench.results.axes import AXES
from meprop_bench.tasks.build import is_model
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.processes import options_text

__all__ = ["code_of", "parity_command", "speedup_command"]


def code_of(arm: Arm, layers: Sequence[Layer], steps: int) -> str:
    """Return the lines that make a model train as the arm does; the layers are those that can be converted."""
    words = [f"k={arm.k!r}", f"selection={METHODS[arm.method].selection!r}"]
    if arm.gradient == "rows":
        words.append("sparse=True")
    if arm.kernel != "auto":
        words.append(f"kernel={arm.kernel!r}")
    taken = [layer for layer in layers if layer.converted and not arm.leaves(layer.name)]
    kinds = list(dict.fromkeys(layer.kind for layer in taken))
    lines = ["from meprop_bench import nn"]
    if kinds not in ([], ["Linear"]):
        lines.insert(0, "import torch")
        words.append(f"kinds=({', '.join(f'torch.nn.{kind}' for kind in kinds)},)")
    if (names := _filter(taken, layers, kinds)) is not None:
        words.append(f"filter=lambda module, name: {names}")
    lines += ["", f"nn.convert(model, {', '.join(words)})"]
    if arm.compiled:
        lines.append("model.compile()")
    if arm.end is not None:
        shape = arm.shape.capitalize()
        lines.insert(1, f"from meprop_bench.algorithms.schedule import {shape}, KScheduler")
        lines.append(f"scheduler = KScheduler(model, {shape}({arm.k!r}, {arm.end!r}, steps={steps}))")
        lines.append("# scheduler.start_step(step) before each step, counted from 0")
    return "\n".join(lines)


def _filter(taken: Sequence[Layer], layers: Sequence[Layer], kinds: Sequence[str]) -> str | None:
    """Return the condition that picks these layers by their names; None where `convert` does so by itself."""
    candidates = [layer for layer in layers if layer.kind in kinds]
    linear = [layer for layer in layers if layer.kind == "Linear"]
    usual = [layer for layer in candidates if layer is not (linear[-1] if linear else None)]
    if [layer.name for layer in taken] == [layer.name for layer in usual]:
        return None
    left = [layer.name for layer in candidates if layer not in taken]
    names, verb = ([layer.name for layer in taken], "in") if len(taken) <= len(left) else (left, "not in")
    return f"name {verb} {{{', '.join(map(repr, names))}}}"


def speedup_command(arm: Arm, recipe: Recipe, threads: int) -> str:
    """Return the command that measures the arm's step again, with all phases and as long as `speedup` does."""
    words = ["--workload", "model", "--model", recipe.task]
    if (options := options_text(recipe)) is not None:
        words += ["--options", options]
    words += _of_arm(arm, [arm.k] if arm.end is None else [arm.k, arm.end])
    words += [
        *_footing(arm),
        "--optimizer",
        recipe.optimizer,
        *_device(recipe),
        "--threads",
        str(threads),
        "--no-parity",
    ]
    return shlex.join(["meprop-bench", "speedup", *words])


def parity_command(arm: Arm, recipe: Recipe, *, steps: int, seeds: int, margin: float) -> str:
    """Return the command that compares the arm's quality with dense again, at equal steps."""
    words = ["--model" if is_model(recipe.task) else "--task", recipe.task]
    for name, value in recipe.options.items():
        if name != "device" and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += [*_device(recipe), *_of_arm(arm, [arm.k])]
    if arm.end is not None:
        words += ["--algorithm", "schedule", "--end", repr(arm.end), "--shape", arm.shape]
    words += ["--optimizer", recipe.optimizer, "--schedule", recipe.schedule]
    words += ["--steps", str(steps), "--seeds", str(max(seeds, 5)), "--margin", f"{margin:g}"]
    return shlex.join(["meprop-bench", "parity", *words])


def _of_arm(arm: Arm, ks: Sequence[float]) -> list[str]:
    words = ["--method", arm.method, "--k", ",".join(map(repr, ks)), "--gradient", arm.gradient]
    words += [] if arm.kernel == "auto" else ["--kernel", arm.kernel]
    return words + (["--leave", ";".join(arm.left)] if arm.left else [])


def _footing(arm: Arm) -> list[str]:
    """Return what says how both sides are run, where that can be chosen."""
    return (["--baseline", "best"] if "baseline" in AXES else []) + (["--compile", "on"] if arm.compiled else [])


def _device(recipe: Recipe) -> list[str]:
    device = recipe.options.get("device")
    return [] if device in (None, "cpu") else ["--device", str(device)]
