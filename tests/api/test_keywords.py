from __future__ import annotations

import pytest

from meprop_bench.api.keywords import as_keywords


@pytest.mark.parametrize(
    ("advice", "expected"),
    [
        ("add --in-features", "add in_features"),
        ("one k for all is --k", "one k for all is k"),
        ("use --threads 2, or less", "use threads=2, or less"),
        ("--resume with a --budget of about 20m.", "resume with a budget of about 20m."),
        ("search anew with --seeds 8.", "search anew with seeds=8."),
        ("add --optimizer sgd (or adagrad)", 'add optimizer="sgd" (or adagrad)'),
        ("leave --compile and --baseline best out", 'leave compile and baseline="best" out'),
        ("leave --gradient out, or --compile off.", 'leave gradient out, or compile="off".'),
        ("add --model path/to/file.py:function, or", 'add model="path/to/file.py:function", or'),
        ("a state-of-the-art -- dash", "a state-of-the-art -- dash"),
    ],
)
def test_advice_is_written_as_python_has_it(advice: str, expected: str) -> None:
    assert as_keywords(advice) == expected
