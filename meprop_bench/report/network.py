"""What a step would take of many ranks, as text: the sentence, the tables, and what is assumed."""

from __future__ import annotations

from meprop_bench.report.cells import digits, ratio, seconds
from meprop_bench.report.sections import plain_section
from meprop_bench.report.terminal import new_page, printed, say, show
from meprop_bench.sweep.network import EXCHANGED, Line, ScalingForecast

__all__ = ["as_text"]

_ASSUMED = (
    "Assumed: each rank's link carries {bandwidth} Gbit/s in each direction and takes {latency} µs for a message, and"
    " nothing else is on it; sums go round a ring, rows to every other rank in turn; all ranks compute as fast as this"
    " process did (forward and backward pass {dense} dense, {sparse} by rows) and wait for nobody; of the exchange"
    " nothing is hidden behind the backward pass, or, the second figure, all that fits. The ranks' choices of rows are"
    " independent. What it costs to add up and to compress is not counted. It is a model: `speedup --world-size 2`"
    " measures."
)


def as_text(outlook: ScalingForecast, *, terminal: bool = False) -> str:
    """Return the outlook as text, what it says first."""
    page = new_page(terminal=terminal, width=None)
    page.print()
    ranks = outlook.network.ranks
    say(page, "bold", f"What {ranks} ranks would take")
    say(page, "", _sentence(outlook))
    for title, lines in (
        (f"Each exchange, {ranks} ranks", [outlook.of(name, ranks) for name in EXCHANGED]),
        ("Rows over the number of ranks", [one for one in outlook.lines if one.exchange in ("gathered", "agreed")]),
    ):
        page.print()
        show(page, plain_section(title, _HEADS, [_cells(outlook, one) for one in lines], left=_HEADS[:1]))
    page.print()
    dense_s, sparse_s = (seconds(one) for one in outlook.compute_s)
    network = outlook.network
    say(
        page,
        "dim",
        _ASSUMED.format(
            bandwidth=f"{network.bandwidth / 1e9:g}",
            latency=f"{network.latency * 1e6:g}",
            dense=dense_s,
            sparse=sparse_s,
        ),
    )
    return printed(page)


_HEADS = ("exchange", "ranks", "sent by each", "takes", "step, nothing hidden", "x DDP", "step, hidden", "x DDP")


def _cells(outlook: ScalingForecast, line: Line) -> tuple[str, ...]:
    base = outlook.of("ddp", line.ranks)
    return (
        EXCHANGED[line.exchange],
        str(line.ranks),
        f"{digits(line.bytes / 1e6)} MB",
        seconds(line.communication_s),
        seconds(line.slowest_s),
        ratio(base.slowest_s / line.slowest_s),
        seconds(line.fastest_s),
        ratio(base.fastest_s / line.fastest_s),
    )


def _sentence(outlook: ScalingForecast) -> str:
    ranks, share = outlook.network.ranks, f"{outlook.share:.2g}"
    at = outlook.agree_from
    agree = (
        f"Here, at k = {share} n, agreeing takes less than gathering from {at} ranks on."
        if at is not None
        else f"Here, at k = {share} n, gathering takes less than agreeing, whatever the number of ranks."
    )

    def below(limit: float | None) -> str:
        if limit is None:
            return "for no k"
        return "for any k" if limit >= 1 else f"for k below {limit:.2g} n"

    return (
        f"{agree} With {ranks} ranks gathered rows take less than a dense ring {below(outlook.gathered_below)}, agreed"
        f" ones {below(outlook.agreed_below)}."
    )
