"""A note is data and is put into words in one place, from which texts of older versions are read, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meprop_bench.measure.notes import _KINDS, OTHER, Note, _names, together

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize("kind", _KINDS)
def test_every_kind_is_read_again_from_its_data_and_from_its_words_alone(kind):
    note = Note.of(kind, **dict.fromkeys(_names(_KINDS[kind]), 2))
    record = json.loads(json.dumps(note.to_json()))
    assert Note.read(note.text, record) == note
    assert Note.read(note.text).kind == kind
    assert together([note, note]) in (note.text, _KINDS[kind].together)


def test_what_is_of_no_kind_is_a_text():
    assert Note("anything").to_json() == {"kind": OTHER}
    assert Note.read("anything") == Note.read("anything", {"kind": OTHER}) == Note("anything")
    assert Note.read("from the future", {"kind": "unheard of", "x": [1]}) == Note("from the future")
    assert Note.read("other processes took 1e999% of the cores meanwhile").kind == OTHER
    with pytest.raises(ValueError, match="'others' has the values share"):
        Note.read("x", {"kind": "others", "share": 10**400})
    with pytest.raises(KeyError):
        Note.of("unheard of")
    with pytest.raises(KeyError):
        Note.of("others")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("differ by up to 24%", 0.24),
        ("differ by 24%", 0.24),
        ("differ by 21526%", 215.26),
        ("differ by more than 300%", 3.01),
    ],
)
def test_spreads_of_older_versions_keep_their_words_and_have_their_size(text, share):
    note = Note.read(f"the processes' speed-ups {text}")
    assert (note.kind, note.text[-len(text) :], note.values) == ("noisy-processes", text, {"share": share})


def test_several_of_a_kind_have_a_range_or_the_largest():
    assert together([Note.of("others", share=share) for share in (0.5, 0.07, 0.2)]).startswith(
        "other processes took 7 to 50% of"
    )
    largest = together([Note.of("noisy-processes", share=share) for share in (0.24, 0.09, 5.0)])
    assert largest == "the processes' speed-ups differ by more than 300%"
    assert together([Note.of("swap", pages=3), Note.of("swap", pages=3)]) == "3 pages came back from swap meanwhile"


def test_committed_rows_have_the_kinds_that_they_were_made_with():
    found: dict[str, int] = {}
    for path in REPORTS.glob("*/measurements.jsonl"):
        for line in path.read_text().splitlines():
            for text in json.loads(line)["notes"]:
                note = Note.read(text)
                assert note.text == text
                words = (text, _KINDS[note.kind].together) if note.kind != OTHER else ()
                assert not words or together([note]) in words or "more than 300%" in together([note])
                found[note.kind] = found.get(note.kind, 0) + 1
    assert {"noisy-pairs", "noisy-processes", "disturbed-pairs", "steal", "budget", "one-process"} <= set(found)
