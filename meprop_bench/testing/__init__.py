"""A pytest plugin: the fixture `paired`, by which a test claims that one thing is as fast as another.

    pytest_plugins = ["meprop_bench.testing"]          # conftest.py at the root; or -p meprop_bench.testing

    def test_parse(paired):
        paired(parse_new, data).not_slower_than(paired(parse_old, data), margin=0.05)

    def test_step(paired):
        paired.speedup(build, method="unified", k=0.05).at_least(1.2)

What is claimed is measured in interleaved pairs in several fresh processes, and decided as the gate decides: it passes
when the whole interval is within the claim, fails when the whole interval is beyond it, and is undecided otherwise,
which fails as well unless `--paired-undecided` says skip or xfail.

It is no entry point, by which pytest would load it in every project of an environment. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest

from meprop_bench.testing.fixture import OUTCOME, Paired, PairedCall, PairedTraining, PairedWarning, Surroundings
from meprop_bench.testing.settings import BUDGET, UNDECIDED

__all__ = ["Paired", "PairedCall", "PairedTraining", "PairedWarning", "paired"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, and the keys of pytest's configuration by the same names."""
    group = parser.getgroup("paired", "paired comparisons (meprop-bench)")
    group.addoption(BUDGET.option, metavar="SECONDS", help=f"{BUDGET.help} (default: {BUDGET.default})")
    group.addoption(UNDECIDED.option, metavar="OUTCOME", help=f"{UNDECIDED.help} (default: {UNDECIDED.default})")
    for setting in (BUDGET, UNDECIDED):
        parser.addini(setting.name, setting.help, default=setting.default)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have pytest-benchmark, where it is there, take a test with our fixture for one of its own: --benchmark-only."""
    if not config.pluginmanager.hasplugin("pytest-benchmark"):
        return
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        if "paired" in names and "benchmark" not in names:
            names.append("benchmark")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have the fixture know how its test ended."""
    report = yield
    if call.when == "call":
        item.stash[OUTCOME] = report.outcome
    return report


@pytest.fixture
def paired(request: pytest.FixtureRequest) -> Iterator[Paired]:
    """Make claims about times: see `Paired`."""
    surroundings = Surroundings(request)
    yield Paired(surroundings)
    surroundings.leave()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not decided; with -v also each verdict."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    lines = [
        f"{report.nodeid}: {line}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for line, verdict in _verdicts(report.user_properties)
        if verdict in ("not judged", "inconclusive") or terminalreporter.verbosity > 0
    ]
    if lines:
        terminalreporter.section("paired comparisons")
        for line in lines:
            terminalreporter.line(line)


def _verdicts(properties: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each claim's line, and its verdict."""
    lines, verdicts = ([value for name, value in properties if name == kind] for kind in ("paired", "paired_verdict"))
    yield from zip(lines, verdicts, strict=True)
