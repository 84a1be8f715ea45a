"""The options that say what is trained and how, for every command that trains: `with_recipe`, and their `Recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

from meprop_bench.errors import UserError, one_of
from meprop_bench.methods import METHODS
from meprop_bench.optimizers import OPTIMIZERS, SCHEDULES
from meprop_bench.results.axes import AXES
from meprop_bench.tasks import TASKS
from meprop_bench.tasks.algorithm import ALGORITHMS
from meprop_bench.tasks.build import check_name, is_model
from meprop_bench.tasks.recipe import Recipe

__all__ = ["RECIPE_GROUPS", "recipe_of", "with_recipe"]

_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    (
        "batch",
        int,
        "Examples in a mini-batch [default: as in the papers 10 images, 1 sentence, 10,000 transitions or 64 pairs; 16 "
        "windows].",
    ),
    ("hidden", int, "Neurons of a hidden layer, width of a GPT [default: 500; translation 512; language 256]."),
    ("layers", int, "Hidden layers, blocks of a GPT [default: 2; translation 3 in encoder and decoder; language 4]."),
    ("heads", int, "language: heads of its attention [default: 4]."),
    ("length", int, "language: characters of a window [default: 128]."),
    ("dropout", float, "Dropout rate of the hidden activations [default: 0]."),
    ("activation", str, "mnist, digits, parsing: relu, sigmoid, tanh or cube [default: relu; parsing cube]."),
    ("embedding", int, "translation: size of the embeddings [default: that of --hidden]."),
    ("vocabulary", int, "translation: largest number of word pieces per language [default: 3000]."),
    ("beam", int, "translation: beam width [default: 5]."),
    ("length_penalty", float, "translation: α of the length normalisation [default: 0, none]."),
    (
        "examples",
        int,
        "Examples to train on, the first ones (sentences of a treebank, windows of a text) [default: all].",
    ),
    ("tags", str, "pos: tag set, universal or language [default: universal]."),
    ("data", str, "language: the text, multi30k (captions) or ud-ewt (web pages) [default: multi30k]."),
    (
        "files",
        str,
        "pos, parsing: a treebank of your own, TRAIN,DEV,TEST in CoNLL-U [default: UD English EWT]. translation: "
        "parallel text, a source and a target file for each of the three [default: Multi30k, German to English]. "
        "language: a text of your own, TRAIN,DEV,TEST.",
    ),
    ("device", str, "Device: cpu, cuda or cuda:N [default: cpu]."),
)
"""Of tasks; each task says which it has."""

_DETAILS: tuple[tuple[str, Any, str], ...] = (
    ("rate", float, "meSimp's p: neurons active in a smaller share of the examples are removed [default: 0.1]."),
    ("prunes", int, "meSimp: removals in an epoch [default: 8]."),
    ("simplify", int, "meSimp: epochs with simplification in a stage [default: 5]."),
    ("normal", int, "meSimp: epochs without simplification in a stage [default: 5]."),
    ("share", float, "meAct's p: share of the gradient above which a neuron is trained [default: 0.004]."),
    ("pretrain", int, "meAct's e: epochs before each example's neurons are fixed [default: 10]."),
    ("end", str, "schedule: the last k."),
    ("shape", str, "schedule: linear or cosine [default: linear]."),
)
"""Of algorithms; each says which it has."""

RECIPE_GROUPS = {
    "Task and method": (
        "task", "model", "method", "k", "gradient", "kernel", "leave", "k-by-layer", "optimizer", "schedule",
        "epochs", "steps", "evaluations", "best-after",
    ),
    "Options of some tasks": tuple(name.replace("_", "-") for name, _, _ in _OPTIONS),
    "Algorithm": ("algorithm", *(name for name, _, _ in _DETAILS)),
}  # fmt: skip
"""Headings of the options of `with_recipe` in a help text."""


def with_recipe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what to train and how; `recipe_of` takes them."""
    count = partial(click.option, type=int, metavar="N")
    options = [
        click.option("--task", metavar="NAME", help=f"Task to train on: {', '.join(TASKS)}."),
        click.option("--model", metavar="NAME", help=f"{AXES['model'].help.partition(';')[0]}."),
        click.option("--method", metavar="NAME", help=f"How gradients are sparsified: {', '.join(METHODS)}."),
        click.option("--k", metavar="K", help="Outputs that get a gradient: an integer, or a ratio in (0, 1]."),
        click.option("--gradient", metavar="LAYOUT", help="Weight gradient: dense, or rows (sparse) [default: dense]."),
        click.option("--kernel", metavar="NAME", help="Implementation of the method [default: auto]."),
        click.option("--optimizer", metavar="NAME", help=f"Optimizer: {', '.join(OPTIMIZERS)} [default: adam]."),
        click.option("--leave", metavar="NAMES", help=AXES["leave"].help),
        click.option("--k-by-layer", metavar="NAMES=K", help=AXES["k-by-layer"].help),
        click.option(
            "--schedule", metavar="NAME", help=f"Learning-rate schedule: {', '.join(SCHEDULES)} [default: constant]."
        ),
        count("--epochs", help="Passes over the training examples [default: 20]."),
        count("--steps", help="Steps to train for, instead of epochs."),
        count("--evaluations", help="Evaluations on the development set per epoch [default: 1]."),
        count("--best-after", help="Epochs before an evaluation can count as the best [default: 0]."),
        click.option("--algorithm", metavar="NAME", help=f"Algorithm to run during training: {', '.join(ALGORITHMS)}."),
        *(
            click.option(f"--{name.replace('_', '-')}", type=kind, metavar="VALUE", help=text)
            for name, kind, text in (*_OPTIONS, *_DETAILS)
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """Return the recipe that the options of `with_recipe` describe; `UserError` for a wrong k or task."""
    from meprop_bench.sweep.plan import parse_axis

    given = {name: value for name, value in options.items() if value is not None}
    if ("task" in given) == ("model" in given):
        raise UserError("nothing to train: give --task NAME or --model path/to/file.py:function, one of the two")
    if "model" in given:
        given["task"] = given.pop("model")
        if not is_model(given["task"]):
            raise UserError(f"{given['task']!r} is not a model: name it as path/to/file.py:function, or use --task")
        check_name(given["task"])
        given.setdefault("optimizer", "own")
    else:
        one_of("task", given["task"], tuple(TASKS))
    for name in ("k", "end"):
        if name in given:
            (given[name], *more) = parse_axis("k", [given[name]])
            if more:
                raise UserError(f"a training has one {name}: give --{name} one value")
    of_task, of_algorithm = (
        {name: given.pop(name) for name, _, _ in table if name in given} for table in (_OPTIONS, _DETAILS)
    )
    given.setdefault("method", "meprop" if "k" in given else "dense")
    return Recipe(**given, options=of_task, details=of_algorithm)
