"""The code that converts what was measured, run on models, and held against what was to be converted."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import meprop_bench
from meprop_bench.nn import kinds_and_k
from meprop_bench.report.conversion import conversion, patterns


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8)}) for _ in range(12))
        self.head = nn.Linear(8, 4)


def run(layers: dict[str, tuple[str, float | None]] | None, **more: Any) -> tuple[dict[str, Any], str]:
    given: dict[str, Any] = {"method": "unified", "k": 0.25, "rows": False, "kernel": "auto"} | more
    found = conversion(layers, function="meprop_bench.convert", **given)
    model = Blocks()
    code = "\n".join([*found.imports, *found.calls])
    exec(code, {"meprop_bench": meprop_bench, "model": model})
    return kinds_and_k(model), code


LAYERS: dict[str, tuple[str, float | None]] = kinds_and_k(Blocks())


def chosen(**ks: float | None) -> dict[str, tuple[str, float | None]]:
    """Return the usual layers at 0.25, but others with these k: by the end of their names, _ for a dot."""

    def k(name: str, kind: str) -> float | None:
        usual = 0.25 if kind == "Linear" and name != "head" else None
        return next((own for end, own in ks.items() if name.endswith(end.replace("_", "."))), usual)

    return {name: (kind, k(name, kind)) for name, (kind, _) in LAYERS.items()}


def test_what_there_is_to_convert() -> None:
    assert list(LAYERS)[:3] == ["embed", "blocks.0.qkv", "blocks.0.out"]
    assert LAYERS["embed"] == ("Conv2d", None)
    assert LAYERS["head"] == ("Linear", None)


def test_what_is_usual_needs_no_word() -> None:
    layers, code = run(chosen())
    assert code == 'meprop_bench.convert(model, k=0.25, selection="unified")'
    assert layers == chosen()
    assert run(None, kernel="gather")[1] == 'meprop_bench.convert(model, k=0.25, selection="unified", kernel="gather")'


@pytest.mark.parametrize(
    ("ks", "words"),
    [
        ({"out": None}, "filter=lambda module, name: name"),
        ({"head": 0.25}, "filter=lambda module, name: name"),
        ({"out": 3}, '{"*.out": 3, "*": 0.25}'),
        ({"1_qkv": 3, "1_out": 3}, '"blocks.1.*": 3'),
        ({"out": 1, "qkv": 1.0}, '{"*.qkv": 1.0, "*.out": 1}'),
        ({"embed": 0.5}, "kinds=(torch.nn.Conv2d, torch.nn.Linear,)"),
        ({"embed": 0.5, "out": None, "head": 7}, "filter=lambda module, name: name"),
        ({"qkv": None, "out": None, "embed": 0.125}, "convert(model, k=0.125"),
    ],
)
def test_layers_and_their_k_are_those_that_were_measured(ks: dict[str, Any], words: str) -> None:
    wanted = chosen(**ks)
    found, code = run(wanted, method="meprop")  # of all kinds
    assert words in code
    assert found == wanted


def test_only_linear_layers_have_gradients_as_rows() -> None:
    wanted = chosen(embed=0.5)
    layers, code = run(wanted, method="meprop", rows=True)
    assert layers == wanted
    first, second = code.splitlines()[1:]
    assert "sparse=True" in first
    assert "kinds" not in first
    assert "sparse" not in second


def test_a_class_of_another_library_is_imported() -> None:
    found = conversion(
        {"h.0.c_fc": ("Conv1D", 0.25)}, function="convert", method="unified", k=0.25, rows=False, kernel="auto"
    )
    assert found.imports == ("from transformers.pytorch_utils import Conv1D",)
    assert "kinds=(Conv1D,)" in found.calls[0]


def test_patterns_fit_what_they_are_for_and_nothing_else() -> None:
    names = [name for name in LAYERS if name != "embed"]
    some = [name for name in names if name.startswith("blocks.1.") or name.endswith("out")]
    found = patterns(some, names)
    assert found == ["*.out", "blocks.1.qkv"]
    assert patterns(["blocks.1.qkv", "head"], names) == ["blocks.1.qkv", "head"]  # not blocks.11 and blocks.10
    assert patterns(["0", "2"], ["0", "2", "4"]) == ["0", "2"]
