from __future__ import annotations

import pytest

from meprop_bench.doctor.check_result import SECTIONS, CheckResult, exit_code


def found(*pairs: tuple[str, str]) -> list[CheckResult]:
    return [CheckResult(section, "check", state, "text") for section, state in pairs]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([], 0),
        ([(section, state) for section in SECTIONS for state in ("ok", "note", "warning")], 0),
        ([("noise", "problem")], 4),
        ([("machine", "problem"), ("clock", "warning")], 4),
        ([("configuration", "problem")], 2),
        ([("data", "problem"), ("machine", "problem")], 2),
    ],
)
def test_a_mistake_comes_before_noise_and_nothing_optional_counts(pairs: list[tuple[str, str]], code: int) -> None:
    assert exit_code(found(*pairs)) == code
