"""JSON that comes in: the fast way gives what the slow way gives, and refuses nothing less."""

from __future__ import annotations

import json

import msgspec
import pytest

from meprop_bench.results import incoming
from meprop_bench.results.incoming import parsed, unique

SOUND = [
    "null", "1", "-0", "1.5e-7", '"a: b"', "[]", "{}", '{"a": {"b": [1, {"c": ":"}]}}', '{"a:b": "::", "c": [":", 2]}',
    '{"\\u003a": 1}', '{"a": "\\u003a\\u003A"}', '  {"a" : 1 }\n', '{"a": "\\ud83d\\ude00", "é": "ü:"}',
    '{"a": 12345678901234567890123456789}', '{"a": 0.1}', '{"a": 1e22, "b": 123456789012345.678}',
]  # fmt: skip


@pytest.mark.parametrize("text", SOUND)
def test_both_ways_agree(text):
    wanted = json.loads(text)
    assert parsed(text) == parsed(text.encode()) == wanted
    assert json.dumps(parsed(text)) == json.dumps(wanted)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"b": [{"x": {"a": 1, "a" : 1}}], "c": "::"}', "the key 'a' twice"),
        ('{"a": "", "\\u0061": 2}', "the key 'a' twice"),
        ('{"a:": 1, "a:": 2}', "twice"),
        ('{"x": "\\u003a", "a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "beyond what a float holds"),
        ("[-1e400]", "beyond what a float holds"),
        ('{"a": 1', "cut off"),
        ("", "no JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_sound_is_refused_with_its_reason(text, reason):
    for data in (text, text.encode()):
        with pytest.raises(ValueError, match=reason):
            parsed(data)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="UTF-8"):
        parsed(b'{"a": "\xff"}')


def test_a_row_takes_the_fast_way(monkeypatch):
    def slow(*_, **__):
        raise AssertionError("the slow way")

    text = json.dumps(
        {"case_id": "a:b", "values_s": [1e-3, 2.5e-4] * 50, "notes": ["a: b"], "unavailable": {"x": "y: z"}}
    )
    monkeypatch.setattr(incoming.json, "loads", slow)
    assert parsed(text)["case_id"] == "a:b"
    assert parsed(text.encode()) == msgspec.json.decode(text)


def test_a_key_that_is_there_twice_is_named():
    with pytest.raises(ValueError, match="'b' twice"):
        unique([("a", 1), ("b", 2), ("b", 3)])
