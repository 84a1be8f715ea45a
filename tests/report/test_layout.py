"""Tables in every width: columns go in a stated order, words stay whole, and nothing but whole columns is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meprop_bench.paper.folder import load
from meprop_bench.report.cells import ABSENT, Cell
from meprop_bench.report.layout import fitted, wrapped
from meprop_bench.report.sections import Section, sections
from meprop_bench.report.terminal import as_table, tables

REPORTS = Path(__file__).parents[2] / "reports"
WIDTHS = (60, 80, 100, 120, 200)


def section(**changes):
    lines = [
        (
            "backward",
            "unified",
            "1024, 2048 → 2048",
            "30",
            "112 ms",
            "31.0x [27.1, 35.6] ~ (n, p)",
            "41%",
            "24.0 MiB → 24.0 MiB",
        ),
        (
            "backward",
            "meprop",
            "50, 784 → 500",
            "30",
            "872 µs",
            "0.99x [0.94, 1.05] ~ not significant (n, d)",
            "19%",
            ABSENT,
        ),
    ]
    given = {
        "columns": ("phase", "method", "batch, m → n", "k", "dense", "speed-up", "efficiency", "peak memory"),
        "left": frozenset({"phase", "method", "batch, m → n", "speed-up"}),
        "keys": frozenset({"phase", "method", "batch, m → n", "k"}),
        "drop": ("peak memory", "efficiency"),
        **changes,
    }
    return Section(title="linear", groups=(tuple(tuple(map(Cell, line)) for line in lines),), **given)


def test_columns_are_left_out_in_the_stated_order_and_said():
    assert fitted(section(), None).missing == fitted(section(), 200).missing == ()
    assert fitted(section(), 120).missing == ("peak memory",)
    assert fitted(section(), 103).missing == ("peak memory", "efficiency")
    assert "Not shown in this width: peak memory, efficiency." in tables([section()], terminal=True, width=80)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("0.99x [0.94, 1.05] ~ not significant (n, d)", 24, ["0.99x [0.94, 1.05] ~", "not significant (n, d)"]),
        ("is 1.11x [1.04, 1.18], the", 20, ["is", "1.11x [1.04, 1.18],", "the"]),
        ("24.0 MiB → 24.0 MiB", 10, ["24.0 MiB →", "24.0 MiB"]),
        ("1024, 2048 → 2048", 11, ["1024, 2048 → 2048"]),
        ("unified · 50, 784 → 500 · k 30", 24, ["unified ·", "50, 784 → 500 · k 30"]),
        ("", 5, [""]),
    ],
)
def test_what_belongs_together_stays_together(text, width, lines):
    assert wrapped(text, width) == lines


def test_what_a_line_is_of_becomes_one_column_then_times_go_and_then_it_is_a_paragraph():
    narrow = fitted(section(late=("dense",)), 70)
    assert narrow.section.columns == ("case", "dense", "speed-up")
    assert narrow.headings == ("backward",)
    assert narrow.missing == ("peak memory", "efficiency")
    narrower = fitted(section(late=("dense",)), 50)
    assert narrower.section.columns == ("case", "speed-up")
    assert narrower.missing == ("peak memory", "efficiency", "dense")
    first = fitted(section(late=("dense",)), 40)
    assert first.missing == ("peak memory", "efficiency")
    assert first.paragraphs[0].replace("\n", " ") == "backward · unified · 1024, 2048 → 2048 · k 30"
    assert first.paragraphs[1].splitlines() == ["  dense 112 ms;", "  speed-up 31.0x [27.1, 35.6] ~ (n, p)"]


def words(text):
    return set(re.findall(r"[^\s·;]+", text))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name",
    [
        "2026-11-28_amd-epyc-2c_quick",
        "2026-11-28_amd-epyc-2c_step-2",
        "2026-11-21_amd-epyc-2c_targets-2",
        "2026-11-21_amd-epyc-2c_methods",
        "2026-11-22_amd-epyc-2c_paper-icml-1-short-2",
        "2026-11-21_amd-epyc-2c_aa-2",
    ],
)
def test_no_report_is_wider_than_the_terminal_or_breaks_a_word(name, width):
    document, _ = load(REPORTS / name)
    text = as_table(document, terminal=True, width=width)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    whole = as_table(document)
    longest = [line for line in plain.splitlines() if len(line) > width and not line.startswith("made by: ")]
    assert not longest
    known = words(whole) | {"case", "Not", "shown", "in", "this", "width:"} | {f"{one}." for one in words(whole)}
    known |= {f"{one}," for one in words(whole)}
    assert not {word for word in words(plain) if word not in known and not set(word) <= set("─")}


def test_a_pipe_has_each_line_of_a_table_in_one_line(rows):
    text = as_table(
        type(
            "D",
            (),
            {"findings": [], "title": "t", "command": "c", "sections": sections(rows), "notes": [], "hints": []},
        )()
    )
    assert len([line for line in text.splitlines() if "unified " in line]) >= 9
    assert max(map(len, text.splitlines())) > 110


def test_the_speed_up_over_k_is_drawn(rows):
    (linear, *_) = sections(rows)
    assert linear.trends[0] == "backward, unified, gradient rows: k 8 150x ██▇▅ 16.0x k 512"
    assert linear.trends[0] in tables([linear], terminal=False)
    assert all("meprop" in line or "unified" in line for line in linear.trends)
