"""What to do with an answer: the code that does it, and what measures it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from meprop_bench.methods import METHODS
from meprop_bench.report.conversion import conversion
from meprop_bench.tasks.build import is_model, is_pickled
from meprop_bench.tasks.recipe import Recipe, by_layer_text
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.processes import options_text

__all__ = ["again", "code_of"]

_SEEDS = 5
"""That qualities are compared over again, at least."""


def code_of(arm: Arm, layers: Sequence[Layer], steps: int) -> str:
    """Return the lines that make a model train as the arm does; the layers are those that can be converted."""
    package, _, module = METHODS[arm.method].module.rpartition(".")
    found = conversion(
        {layer.name: (layer.kind, arm.k_of(layer)) for layer in layers} or None,
        function=f"{module}.convert",
        method=arm.method,
        k=arm.k,
        rows=arm.gradient == "rows",
        kernel=arm.kernel,
    )
    own = f"from {package} import {module}" if package else f"import {module}"
    imports, lines = [*found.imports, own], [*found.calls]
    if arm.compiled:
        lines.append("model.compile()")
    if arm.end is not None:
        imports.append(f"from meprop_bench.algorithms.schedule import {arm.shape.capitalize()}, KScheduler")
        lines.append(f"scheduler = KScheduler(model, {_schedules(arm, layers, steps)})")
        lines.append("# scheduler.start_step(step) before each step, counted from 0")
    return "\n".join([*imports, "", *lines])


def _schedules(arm: Arm, layers: Sequence[Layer], steps: int) -> str:
    """Return the schedule of all layers, or of each that the user's `Training` lets begin elsewhere."""
    kind = arm.shape.capitalize()
    ks = {layer.name: k for layer in layers if (k := arm.k_of(layer)) is not None}
    if set(ks.values()) <= {arm.k}:
        return f"{kind}({arm.k!r}, {arm.end!r}, steps={steps})"
    each = [f'"{name}": {kind}({k!r}, {arm.end!r}, steps={steps})' for name, k in ks.items()]
    return f"{{{', '.join(each)}}}"


def again(arm: Arm, recipe: Recipe, threads: int, *, steps: int, seeds: int, margin: float) -> list[str]:
    """Return what measures the arm again: two commands, or a call where no command finds the model."""
    if is_pickled(recipe.task):
        return [_compare_call(arm, recipe, threads, steps=steps, seeds=seeds)]
    parity = _parity_command(arm, recipe, steps=steps, seeds=seeds, margin=margin)
    return [_speedup_command(arm, recipe, threads), parity]


def _compare_call(arm: Arm, recipe: Recipe, threads: int, *, steps: int, seeds: int) -> str:
    """Return the call that measures the arm again, of a function that was given as it is."""
    given: dict[str, Any] = {"method": arm.method, "k": arm.k if arm.end is None else [arm.k, arm.end]}
    given |= {"gradient": arm.gradient, "kernel": arm.kernel, "k_by_layer": dict(arm.ks), "leave": ";".join(arm.left)}
    given |= {"compile": "on" if arm.compiled else "", "device": recipe.options.get("device"), "threads": threads}
    usual: tuple[Any, ...] = ("", "auto", "cpu", {}, None)
    words = [f"{name}={json.dumps(value)}" for name, value in given.items() if value not in usual]
    if recipe.optimizer != "own":
        words.append(f'optimizer="{recipe.optimizer}"')
    if arm.constant:
        words.append(f"parity=True, seeds={max(seeds, _SEEDS)}, steps={steps}")
    return f"mb.compare({recipe.task.rpartition('@')[0]}, {', '.join(words)})"


def _speedup_command(arm: Arm, recipe: Recipe, threads: int) -> str:
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


def _parity_command(arm: Arm, recipe: Recipe, *, steps: int, seeds: int, margin: float) -> str:
    """Return the command that compares the arm's quality with dense again, at equal steps."""
    words = ["--model" if is_model(recipe.task) else "--task", recipe.task]
    for name, value in recipe.options.items():
        if name != "device" and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += [*_device(recipe), *_of_arm(arm, [arm.k])]
    if arm.end is not None:
        words += ["--algorithm", "schedule", "--end", repr(arm.end), "--shape", arm.shape]
    words += ["--optimizer", recipe.optimizer, "--schedule", recipe.schedule]
    words += [] if recipe.evaluations == 1 else ["--evaluations", str(recipe.evaluations)]
    words += ["--steps", str(steps), "--seeds", str(max(seeds, _SEEDS)), "--margin", f"{margin:g}"]
    return shlex.join(["meprop-bench", "parity", *words])


def _of_arm(arm: Arm, ks: Sequence[float]) -> list[str]:
    words = ["--method", arm.method, "--k", ",".join(map(repr, ks)), "--gradient", arm.gradient]
    words += [] if arm.kernel == "auto" else ["--kernel", arm.kernel]
    words += ["--k-by-layer", text] if (text := by_layer_text(arm.ks)) is not None else []
    return words + (["--leave", ";".join(arm.left)] if arm.left else [])


def _footing(arm: Arm) -> list[str]:
    """Return what says how both sides are run."""
    return ["--baseline", "best", *(["--compile", "on"] if arm.compiled else [])]


def _device(recipe: Recipe) -> list[str]:
    device = recipe.options.get("device")
    return [] if device in (None, "cpu") else ["--device", str(device)]
