"""A table's results as pictures."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="needs the report extra")
from meprop_bench.paper.folder import curves


def test_a_legend_names_the_neurons_that_were_trained(evidence, on_mnist):
    """The paper's row says h=500; a scale that trains fewer says how many it trained."""
    run = on_mnist("icml:1")
    places = {place: [90.0, 91.0] for place, arm in run.arms.items() if arm.setting.hidden == 128}
    assert places
    assert any("500" in row for _, row in places)
    drawn = curves(evidence("icml:1", places))
    lines = {line[0] for plot in drawn for line in plot.lines}
    assert any("h=128" in name for name in lines)
    assert not any("h=500" in name for name in lines)
    assert "h=128" in drawn[0].inline
