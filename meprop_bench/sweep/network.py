"""What a step would take of many ranks: what was measured of one process, and a model of the network between them.

    step = forward + backward + communication + update       nothing of the exchange is hidden
    step = forward + max(backward, communication) + update   all of it is that can be: behind the backward pass

Measured are forward, backward and update of one process, dense and by rows (`sweep.profile`); communication is
`workloads.network`'s. Gathered rows are more than a rank's own: P choices of k among n rows are n (1 - (1 - k/n)^P)
different ones if they are independent, and the update takes as much longer as it moves more numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.results.axis import EXCHANGES
from meprop_bench.results.profile import Profile
from meprop_bench.workloads.network import Load, Network, Tensors, agreed, dense, gathered

__all__ = ["EXCHANGED", "Line", "ScalingForecast", "outlook_of"]

EXCHANGED: dict[str, str] = {
    **{name: words for name, words in EXCHANGES.items() if name != "bf16"},
    "gathered": "rows, gathered",
    "agreed": "rows, agreed",
}
"""Exchange -> how a table says it."""

_MOST_RANKS = 1 << 16
_HALVINGS = 40


@dataclass(frozen=True)
class Line:
    """A step of so many ranks by one exchange."""

    ranks: int
    exchange: str
    bytes: float  # that a rank sends
    communication_s: float
    slowest_s: float  # of a step of which nothing is hidden
    fastest_s: float  # and of one of which all is hidden that can be


@dataclass(frozen=True)
class ScalingForecast:
    """Steps of several numbers of ranks, and where one exchange sends less than another."""

    network: Network
    lines: tuple[Line, ...]
    agree_from: int | None  # ranks from which on agreeing takes less time than gathering, at this k; None: nowhere
    gathered_below: float | None  # share k / n below which gathered rows take less than a dense ring, of these ranks
    agreed_below: float | None  # and agreed ones; None where there is none
    share: float  # k / n here, of all rows together
    compute_s: tuple[float, float]  # forward and backward pass of one process as measured, dense and by rows

    def of(self, exchange: str, ranks: int) -> Line:
        """Return a line."""
        return next(one for one in self.lines if (one.exchange, one.ranks) == (exchange, ranks))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)


def outlook_of(profile: Profile, network: Network) -> ScalingForecast:
    """Return what a profile and a network say of its case, for 2, 4, … and so many ranks.

    Raises:
        UserError: the profile has no step in training, or none by rows.

    """
    tensors = [Tensors(*one) for one in profile.exchanged]
    rows = [one for one in tensors if one.k is not None]
    times = {
        (side, phase): profile.seconds(side, phase)
        for side in ("dense", "sparse")
        for phase in ("forward", "backward", "update")
    }
    if not rows or None in times.values():
        raise UserError("there are no rows to exchange: take a method with --gradient rows, and k below the neurons")
    seconds = {key: value or 0.0 for key, value in times.items()}
    lines = [
        _line(tensors, replace(network, ranks=ranks), exchange, seconds)
        for ranks in _steps_to(network.ranks)
        for exchange in EXCHANGED
    ]
    return ScalingForecast(
        network,
        tuple(lines),
        _agree_from(tensors, network),
        _below(tensors, network, gathered),
        _below(tensors, network, agreed),
        sum(one.k or 0.0 for one in rows) / sum(one.n for one in rows),
        (
            seconds["dense", "forward"] + seconds["dense", "backward"],
            seconds["sparse", "forward"] + seconds["sparse", "backward"],
        ),
    )


def _steps_to(ranks: int) -> Iterator[int]:
    """Yield 2, 4, 8, … below a number, and that."""
    count = 2
    while count < ranks:
        yield count
        count *= 2
    yield ranks


def _line(tensors: Sequence[Tensors], network: Network, exchange: str, measured: dict[tuple[str, str], float]) -> Line:
    side = "sparse" if exchange in ("gathered", "agreed") else "dense"
    load = _load(tensors, network.ranks, exchange)
    taken = network.seconds(load)
    forward, backward, update = (measured[side, phase] for phase in ("forward", "backward", "update"))
    if exchange == "gathered":
        update *= _moved(tensors, network.ranks) / _moved(tensors, 1)
    rest = forward + update
    return Line(network.ranks, exchange, load.bytes, taken, rest + backward + taken, rest + max(backward, taken))


def _load(tensors: Sequence[Tensors], ranks: int, exchange: str) -> Load:
    ways: dict[str, Callable[[Sequence[Tensors], int], Load]] = {"gathered": gathered, "agreed": agreed}
    return ways[exchange](tensors, ranks) if exchange in ways else dense(tensors, ranks, exchange)


def _moved(tensors: Sequence[Tensors], ranks: int) -> float:
    """Return how many numbers an update moves after gathering."""
    return sum(one.numbers if one.k is None else one.m * one.n * (1 - (1 - one.k / one.n) ** ranks) for one in tensors)


def _agree_from(tensors: Sequence[Tensors], network: Network) -> int | None:
    for ranks in range(2, _MOST_RANKS):
        own = replace(network, ranks=ranks)
        if own.seconds(agreed(tensors, ranks)) < own.seconds(gathered(tensors, ranks)):
            return ranks
    return None


def _below(tensors: Sequence[Tensors], network: Network, way: Callable[[Sequence[Tensors], int], Load]) -> float | None:
    """Return the share k / n of all layers below which rows take less than a dense ring, by halving."""
    whole = network.seconds(dense(tensors, network.ranks))

    def pays(share: float) -> bool:
        own = [one if one.k is None else one._replace(k=share * one.n) for one in tensors]
        return network.seconds(way(own, network.ranks)) < whole

    low, high = 0.0, 1.0
    if not pays(low):
        return None
    if pays(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low
