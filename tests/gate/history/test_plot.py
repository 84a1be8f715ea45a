import re

import pytest

from meprop_bench.gate.explain import as_text
from meprop_bench.gate.machine_readable import json_pieces
from meprop_bench.gate.stored import of_outcome


@pytest.fixture
def stored(twenty, judged, tmp_path):
    """Return what stores the verdicts on a run, or two, and reads a figure of them again."""

    def go(figure, slow=1.3, **more):
        path = twenty.run(20, {"m.B.time_3": slow})
        again = [twenty.run(20, {"m.B.time_3": factor}, name=f"{name}.json") for name, factor in more.items()]
        (file := tmp_path / "gate.json").write_text("".join(json_pieces(judged(path, *again))))
        return of_outcome(file, figure)

    return go


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_each_run_is_a_line_beside_its_level(stored, width):
    text = as_text(stored("m.B.time_3(2)/value"), terminal=False, width=width)
    lines = text.splitlines()
    assert lines[0] == "m.B.time_3(2)/value: fail"
    assert max(map(len, lines)) <= width
    runs = [line for line in lines if re.match(r"2020-\d\d-\d\d [0-9a-f]{8} ", line)]
    (own,) = [line for line in lines if line.startswith("this run ")]
    assert len(runs) == 20
    assert runs[0].startswith("2020-09-13 00000000")
    assert all(line.count("●") == 1 for line in [*runs, own])
    assert all(line.index("●") < own.index("┊") for line in runs)
    assert own.index("│") < own.index("┊") < own.index("●")
    assert ("3.99 ms" in runs[0]) == (width >= 72)
    (spread,) = [line for line in lines if line.startswith("its spread ")]
    assert spread.index("┊") < spread.index("├") < spread.index("◆") < spread.index("┤")
    assert ("1.045" in text) == (width >= 100)  # where it does not touch 1.000


def test_a_second_run_is_drawn_and_what_passes_as_well(stored):
    text = as_text(stored("m.B.time_3(2)/value", second=1.3), terminal=False, width=100)
    assert re.search(r"^second run .*●$", text, re.MULTILINE)
    text = as_text(stored("m.B.time_3(2)/value", second=1.3, third=1.3), terminal=False, width=100)
    assert re.search(r"^third run .*●$", text, re.MULTILINE)
    assert "second run" not in as_text(stored("m.B.time_4(2)/value"), terminal=False, width=100)
    assert "m.B.time_4(2)/value: pass" in as_text(stored("m.B.time_4(2)/value"), terminal=False, width=100)


def test_only_the_runs_that_count_are_stored(twenty, judged):
    found = judged(twenty.run(20), window=8).past
    assert len(found.runs.names) == 20
    assert len(found.of(0)["past"]) == 8
