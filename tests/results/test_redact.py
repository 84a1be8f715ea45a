import pytest
from hypothesis import given
from hypothesis import strategies as st

from meprop_bench.results.redact import one_line, without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--out /home/someone/my-reports --k 8", "--out …/my-reports --k 8"),
        ("MEPROP_BENCH_DATA=/data/sets meprop-bench", "MEPROP_BENCH_DATA=…/sets meprop-bench"),
        ("see '/tmp/a/b.py', line 3", "see '…/b.py', line 3"),
        ("--out ~/reports", "--out …/reports"),
        (r"open C:\Users\Some One\x.txt", "open …/x.txt"),
        ("1.5 GB/s, 3/4 of ../shared/data and ./x/y", "1.5 GB/s, 3/4 of ../shared/data and ./x/y"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_absolute_paths_are_shortened_and_nothing_else(text, expected):
    assert without_paths(text) == expected


@given(st.text(max_size=400))
def test_one_line_is_printable_bounded_and_stable(text):
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 300
    assert one_line(line) == line
