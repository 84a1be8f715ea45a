"""The facts are those of the instrument's own readers, changed by hand: what is judged is the judging."""

from __future__ import annotations

from typing import Any

import pytest

from meprop_bench.doctor.check_result import CheckResult
from meprop_bench.doctor.machine import allocators, clock, machine_state
from meprop_bench.measure import machine as instrument
from meprop_bench.measure.allocator import ALLOCATORS


def facts(**changes: Any) -> dict[str, Any]:
    calm = {
        "cpu_model": "A CPU",
        "cpu_physical_cores": 4,
        "cpu_usable_cores": 4,
        "cpu_boost": False,
        "variables": {},
        "clock_overhead_s": {"call": 2e-8, "single": 7e-8, "phase": 8e-8},
        "clock_source": "tsc",
        "unavailable": {},
    }
    return calm | changes


def state_of(**changes: Any) -> dict[str, Any]:
    """A state as the instrument describes it, with the instrument's own warnings."""
    calm = {
        "threads": 4,
        "cpu_logical_cores": 4,
        "cpu_usable_cores": 4,
        "cpu_limit": None,
        "others_cores": 0.1,
        "stolen_cores": 0.0,
        "cpu_governor": "performance",
        "cpu_frequency_mhz": 2000.0,
        "cpu_highest_frequency_mhz": 3000.0,
        "overheated": 0,
        "swap_used_bytes": 0,
        "swapping": False,
    }
    found = calm | changes
    lines = [": ".join(parts) for parts in instrument.warnings(found).values()]
    return {**found, "warnings": lines, "unavailable": {"cpu_limit": "no control group"}}


def by_check(findings: list[CheckResult]) -> dict[str, CheckResult]:
    return {finding.check: finding for finding in findings}


def test_a_calm_machine_is_fine() -> None:
    assert {finding.state for finding in machine_state(facts(), state_of())} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "check", "state", "words"),
    [
        ({"others_cores": 0.4}, "others", "warning", "took 0.40 of 4 cores"),
        ({"others_cores": 1.5}, "others", "problem", "took 1.50 of 4 cores, more than 25%"),
        ({"stolen_cores": 0.2}, "steal", "warning", "withheld 0.20 of 4 cores"),
        ({"stolen_cores": 0.5}, "steal", "problem", "more than 10%"),
        ({"cpu_limit": 2.5}, "quota", "problem", "4 threads under a CPU quota of 2.5 cores"),
        ({"cpu_limit": 4.0}, "quota", "ok", "4 cores"),
        ({"threads": 8}, "cores", "warning", "8 threads on 4 usable cores"),
        ({"cpu_logical_cores": 16}, "cores", "note", "16 logical, 4 usable"),
        ({"cpu_governor": "powersave"}, "frequency", "warning", "governor powersave, boost off, 2000 MHz now of 3000"),
        ({"overheated": 7}, "heat", "note", "7 times"),
        ({"swapping": True, "swap_used_bytes": 1 << 30}, "swap", "warning", "1024 MiB used"),
    ],
)
def test_what_is_wrong_with_a_machine(changes: dict[str, Any], check: str, state: str, words: str) -> None:
    found = by_check(machine_state(facts(), state_of(**changes)))
    assert (found[check].state, words in found[check].text) == (state, True), found[check]
    assert {name: f.state for name, f in found.items() if f.state != "ok"} == ({check: state} if state != "ok" else {})


def test_every_warning_of_the_instrument_is_told() -> None:
    worst = state_of(
        threads=8, cpu_limit=2.0, others_cores=0.4, stolen_cores=0.2, cpu_governor="schedutil", swapping=True
    )
    assert len(worst["warnings"]) == 6
    said = machine_state(facts(), worst)
    assert sum(finding.state in ("warning", "problem") for finding in said) == 6


def test_what_the_kernel_does_not_show_is_a_note_with_its_reason() -> None:
    nothing = dict.fromkeys(
        ["others_cores", "stolen_cores", "cpu_governor", "cpu_frequency_mhz", "overheated", "swap_used_bytes"]
    )
    state = state_of(**nothing)
    state["unavailable"] = dict.fromkeys(nothing, "the kernel does not show it")
    found = by_check(machine_state(facts(cpu_boost=None, cpu_model=None, cpu_physical_cores=None), state))
    for check in ("others", "steal", "frequency", "heat", "swap"):
        assert found[check].state == "note", found[check]
    assert found["heat"].text == "the kernel does not show it"


@pytest.mark.parametrize(
    ("variables", "state", "words"),
    [
        ({}, "ok", ""),
        ({"OMP_NUM_THREADS": "4"}, "note", ""),
        ({"OMP_NUM_THREADS": "64", "GOMP_SPINCOUNT": "0"}, "warning", "OMP_NUM_THREADS exceed 4 usable cores"),
        ({"OMP_NUM_THREADS": "4,2"}, "note", ""),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "warning", "unset CUDA_LAUNCH_BLOCKING"),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, "note", ""),
    ],
)
def test_variables_that_change_speed(variables: dict[str, str], state: str, words: str) -> None:
    found = by_check(machine_state(facts(variables=variables), state_of()))["variables"]
    assert found.state == state
    assert words in found.advice
    assert all(f"{name}={value}" in found.text for name, value in variables.items())


def test_a_slow_clock_is_a_warning() -> None:
    call, resolution = clock(facts())
    assert (call.state, resolution.state) == ("ok", "ok")
    assert "0.070 µs alone" in call.text
    slow, _ = clock(facts(clock_overhead_s={"call": 1e-6, "single": 4e-6, "phase": 4e-6}, clock_source="hpet"))
    assert (slow.state, "hpet" in slow.advice) == ("warning", True)
    absent, _ = clock(facts(clock_overhead_s=None, unavailable={"clock_overhead_s": "OSError while reading it"}))
    assert (absent.state, absent.text) == ("warning", "OSError while reading it")


def test_allocators_that_do_nothing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/libjemalloc_not.so")
    found = allocators()
    assert found.state == "note"
    assert "kept not: LD_PRELOAD replaces glibc's malloc by libjemalloc_not.so" in found.text
    assert all(name in found.text for name in ALLOCATORS)
