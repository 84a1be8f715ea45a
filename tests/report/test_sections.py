from dataclasses import replace

from meprop_bench.report.sections import parity_section, sections, summary


def column(section, name):
    place = section.columns.index(name)
    return [line[place].text for group in section.groups for line in group]


def test_sections_are_workload_then_allocator_and_the_default_comes_last_with_a_reason(rows):
    made = sections(rows)
    assert [one.title for one in made] == ["linear, kept allocator", "mlp, kept allocator", "linear, default allocator"]
    assert [bool(one.remark) for one in made] == [False, False, True]
    assert "default allocator" in made[2].remark


def test_the_default_allocator_alone_needs_no_apology(make_row):
    (only,) = sections([make_row("a", allocator="default")])
    assert only.remark == ""


def test_groups_are_phases_in_the_order_of_a_step(rows):
    mlp = sections(rows)[1]
    assert [group[0][0].text for group in mlp.groups] == ["linear-backward", "forward", "backward", "update", "step"]
    assert all(len({line[0].text for line in group}) == 1 for group in mlp.groups)


def test_what_is_constant_is_said_once(rows):
    linear = sections(rows)[0]
    assert "dtype float32" in linear.constants
    assert "dtype" not in linear.columns
    assert {"method", "k", "gradient", "kernel"} <= set(linear.columns)
    assert "parity" not in linear.columns  # no row has one


def test_failures_and_notes_are_footnotes(rows):
    linear = sections(rows)[0]
    assert linear.footnotes == (
        "(1) budget spent",
        "(2) dw differs from the oracle by 0.31",
        "(3) killed by signal 9, probably out of memory",
    )
    assert column(linear, "check")[-2:] == ["FAILED (2)", "ERROR (3)"]
    assert [text for text in column(linear, "speed-up") if "(1)" in text] == [
        "1.01x [0.95, 1.07] ~ not significant (1)"
    ]
    assert column(linear, "sparse")[-2:] == ["–", "–"]


def test_accuracy_has_a_section_of_its_own(rows):
    section = parity_section(rows)
    assert column(section, "verdict") == ["pass", "inconclusive", "fail"]
    assert column(section, "difference")[0] == "+0.04 [-0.26, +0.34]"
    assert parity_section([row for row in rows if row.workload == "linear"]) is None


def test_accuracies_are_of_what_their_metric_says(rows):
    section = parity_section(rows)
    assert "in points of development-set accuracy, with" in section.remark
    other = [replace(row, parity=replace(row.parity, metric="test UAS")) for row in rows if row.parity]
    assert "in points of test UAS, with" in parity_section(other).remark
    assert "in points of development-set accuracy or test UAS, with" in parity_section([*rows, *other]).remark


def test_the_summary_counts_what_failed(rows):
    assert summary(rows) == [
        "24 cases: 22 ran and passed the correctness check, 1 failed it, 1 could not be run.",
        "linear backward: 0.81x to 150x the speed of dense in 15 cases, geometric mean 18.5x, 1 of them"
        " not significant, 1 of them slower.",
        "mlp backward: 6.50x the speed of dense in 3 cases, geometric mean 6.50x [6.44, 6.56].",
        "mlp step: 2.90x the speed of dense in 3 cases, geometric mean 2.90x [2.87, 2.93].",
        "Accuracy parity with dense: broken in 1, inconclusive in 1, kept in 1.",
    ]


def test_nothing_measured_is_told_without_a_fault(failed_row):
    assert sections([]) == []
    assert summary([]) == ["0 cases: 0 ran and passed the correctness check."]
    assert summary([failed_row("a", error="out of memory")])[1] == "linear backward: no speed-up could be measured."


def test_what_passed_everywhere_needs_no_column(make_row):
    (section,) = sections([make_row("a"), make_row("b", k=9)])
    assert "check" not in section.columns
    assert section.constants.endswith("; check passed")


def test_cold_caches_are_named_and_warm_ones_are_not(make_row):
    (warm,) = sections([make_row("a")])
    (cold,) = sections([make_row("a", caches="cold")])
    (both,) = sections([make_row("a"), make_row("b", caches="cold")])
    assert "caches" not in warm.constants
    assert "caches cold" in cold.constants
    assert column(both, "caches") == ["warm", "cold"]


def test_many_speed_ups_are_judged_together(make_row, noisy_row):
    """Alone its interval misses 1; among twenty such, one would by chance."""
    rows = [noisy_row(str(seed), seed=seed) for seed in range(20)]
    weak = min((row for row in rows if row.significant), key=lambda row: abs(row.speedup - 1))
    (alone,), (among,) = sections([weak]), sections(rows)
    assert "not significant" not in column(alone, "speed-up")[0]
    assert "not significant" in column(among, "speed-up")[rows.index(weak)]
    strong = make_row("strong", speedup=5.0)
    assert "not significant" not in column(sections([*rows, strong])[0], "speed-up")[-1]
