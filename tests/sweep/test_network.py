"""What a profile and a network say of many ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from meprop_bench.errors import UserError
from meprop_bench.report.network import as_text
from meprop_bench.results.profile import Profile
from meprop_bench.sweep.network import EXCHANGED, outlook_of
from meprop_bench.workloads.network import Network

_TIMES = {
    ("dense", "forward"): 0.01, ("dense", "backward"): 0.03, ("dense", "update"): 0.01,
    ("sparse", "forward"): 0.01, ("sparse", "backward"): 0.006, ("sparse", "update"): 0.001,
}  # fmt: skip


def _profile(exchanged: Any = ((2048, 2048, 64), (2048, 1, None))) -> Profile:
    found: Any = SimpleNamespace(exchanged=exchanged, seconds=lambda side, phase: _TIMES.get((side, phase)))
    return cast("Profile", found)


def test_a_step_lies_between_all_and_nothing_hidden() -> None:
    outlook = outlook_of(_profile(), Network(64, 25e9, 20e-6))
    assert {one.ranks for one in outlook.lines} == {2, 4, 8, 16, 32, 64}
    for one in outlook.lines:
        side = "sparse" if one.exchange in ("gathered", "agreed") else "dense"
        forward, backward, update = (_TIMES[side, phase] for phase in ("forward", "backward", "update"))
        if one.exchange != "gathered":
            assert one.slowest_s == pytest.approx(forward + backward + one.communication_s + update)
            assert one.fastest_s == pytest.approx(forward + max(backward, one.communication_s) + update)


def test_the_update_after_gathering_moves_the_rows_of_all() -> None:
    alone, many = (outlook_of(_profile(), Network(ranks, 1e15)).of("gathered", ranks) for ranks in (2, 64))
    rows = [2048 * (1 - (1 - 64 / 2048) ** ranks) for ranks in (2, 64)]
    for line, count in zip((alone, many), rows, strict=True):
        update = _TIMES["sparse", "update"] * (2048 * count + 2048) / (2048 * 64 + 2048)
        assert line.slowest_s == pytest.approx(0.016 + update + line.communication_s)


def test_it_says_from_where_on_agreeing_takes_less() -> None:
    by_bytes = outlook_of(_profile(), Network(64, 1e9, 0.0))
    assert by_bytes.agree_from == 3
    by_messages = outlook_of(_profile(), Network(64, 1e12, 1.0))  # agreeing has more of them
    assert by_messages.agree_from is None


def test_it_says_below_which_k_rows_beat_a_ring() -> None:
    outlook = outlook_of(_profile(((2048, 2048, 64),)), Network(64, 1e9, 0.0))
    assert outlook.gathered_below == pytest.approx(2 / 64, rel=0.01)
    assert outlook.agreed_below == pytest.approx(1.0, rel=0.01)


def test_it_prints_its_assumptions() -> None:
    outlook = outlook_of(_profile(), Network(64, 25e9, 20e-6))
    text = as_text(outlook)
    for word in ("25 Gbit/s", "20 µs", "from 4 ranks on", "Assumed", *EXCHANGED.values()):
        assert word in " ".join(text.split()), word
    assert outlook.to_json()["network"] == {"ranks": 64, "bandwidth": 25e9, "latency": 20e-6}


def test_without_rows_there_is_nothing_to_say() -> None:
    with pytest.raises(UserError, match="no rows to exchange"):
        outlook_of(_profile(((10, 10, None),)), Network(2, 1e9))
