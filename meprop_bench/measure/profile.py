"""Where the time of a call goes, as torch.profiler sees it: ranges, operators, kernels.

A profiler answers "which operator?", not "how long?": it adds about a microsecond to each operator, which is as long
as a small one takes. So the times of a profile are shares, to be applied to what a clock measured without it; the
ratio of both tells what the profiler added.

    range      a phase of one side, e.g. "sparse backward": one call, several times
    operator   what the range called (an autograd node, `aten::addmm`); own seconds, without what it called itself
    kernel     what an operator started on the GPU; its seconds overlap with the CPU's

Events are assigned to ranges by their time, since autograd runs the backward pass of a CUDA graph on a thread of its
own. What lies in a range and in no operator is Python, autograd's engine, and code that torch does not know, such as a
compiled kernel: that shows as the own time of the autograd node that called it.

The same ranges go to the trace (Chrome's format: open it at https://ui.perfetto.dev) and, where there is CUDA, to NVTX
for profilers outside (`nsys profile meprop-bench profile ...`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from meprop_bench.stats import mean_interval

__all__ = ["Node", "Range", "merged", "profile_ranges"]

_LEAST_SHARE = 0.01
"""Share of a range below which an operator is put among the others."""

_ENGINE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Range:
    """A call to be profiled under a name, after another one that is not."""

    name: str
    call: Callable[[], object]
    before: Callable[[], object] | None = None


@dataclass(frozen=True)
class Node:
    """A part of the profiled time, for one call of its range."""

    name: str  # of the range, operator or kernel
    seconds: float  # it and all below it, under the profiler; of a kernel, on the device
    calls: float  # how often; a mean, so not always whole
    device_s: float = 0.0  # seconds of the kernels that it started, 0 without a GPU
    children: tuple[Node, ...] = ()  # by falling seconds
    low: float | None = None  # with `high`, the 95% interval of the seconds over several processes; None of one
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object."""
        return msgspec.convert(record, cls)


def profile_ranges(ranges: Sequence[Range], device: str, *, rounds: int, trace: Path | None = None) -> list[Node]:
    """Run all ranges, of distinct names, `rounds` times under torch.profiler and return a tree for each.

    The trace is a file to be written, .json or .json.gz.
    """
    from torch.profiler import ProfilerActivity, profile

    if rounds < 1:
        raise ValueError(f"rounds is at least 1, got {rounds!r}")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with profile(activities=activities):  # the first profiler of a process starts its library, within the first range
        _run(ranges, device)
    with profile(activities=activities) as profiler:
        for _ in range(rounds):
            _run(ranges, device)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    events = list(profiler.events())
    return [_tree(found.name, events) for found in ranges]


def merged(trees: Sequence[Node]) -> Node:
    """Return one tree of those of several processes: means, with intervals where each process has the part.

    What some of them have among their others is put there for all.
    """
    if len(trees) == 1:
        return trees[0]
    names = [child.name for child in trees[0].children]
    by_name = [{child.name: child for child in tree.children} for tree in trees]
    common = [name for name in names if all(name in found for found in by_name)]
    children = [merged([found[name] for found in by_name]) for name in common]
    rest = [[child for child in tree.children if child.name not in common] for tree in trees]
    if any(rest):
        children.append(_mean("others", [_together("others", found) for found in rest], ()))
    return _mean(trees[0].name, trees, _ordered(children))


def _ordered(children: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(sorted(children, key=lambda child: -max(child.seconds, child.device_s)))


def _together(name: str, nodes: Sequence[Node]) -> Node:
    return Node(name, *(sum(getattr(node, what) for node in nodes) for what in ("seconds", "calls", "device_s")))


def _mean(name: str, nodes: Sequence[Node], children: tuple[Node, ...]) -> Node:
    found = mean_interval([node.seconds for node in nodes])
    calls, device_s = (sum(getattr(node, what) for node in nodes) / len(nodes) for what in ("calls", "device_s"))
    return Node(name, found.estimate, calls, device_s, children, found.low, found.high)


def _run(ranges: Iterable[Range], device: str) -> None:
    import torch

    for found in ranges:
        if found.before is not None:
            found.before()
        if device != "cpu":
            torch.cuda.synchronize(device)
        with _marked(found.name, device):
            found.call()
    if device != "cpu":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _marked(name: str, device: str) -> Iterator[None]:
    """Mark a range for torch.profiler, and for NVTX where there is CUDA."""
    import torch

    with torch.profiler.record_function(name):
        if device == "cpu":
            yield
            return
        with torch.cuda.nvtx.range(name):
            yield


class _Sum:
    """Seconds and calls of one name, while they are added up; what it called, by name."""

    def __init__(self) -> None:
        self.own_s = self.calls = self.own_device_s = 0.0
        self.parts: dict[str, _Sum] = {}

    def part(self, name: str) -> _Sum:
        return self.parts.setdefault(name, _Sum())

    @property
    def seconds(self) -> float:
        return self.own_s + sum(part.seconds for part in self.parts.values())

    @property
    def device_s(self) -> float:
        return self.own_device_s + sum(part.device_s for part in self.parts.values())

    def node(self, name: str, rounds: int, least_s: float) -> Node:
        """Return the tree; what is shorter than `least_s`, all rounds together, is put into one child."""
        parts = [part.node(key, rounds, least_s) for key, part in self.parts.items()]
        shown = [part for part in parts if max(part.seconds, part.device_s) >= least_s / rounds]
        if rest := [part for part in parts if max(part.seconds, part.device_s) < least_s / rounds]:
            shown.append(_together(f"{len(rest)} others", rest))
        return Node(name, self.seconds / rounds, self.calls / rounds, self.device_s / rounds, _ordered(shown))


def _tree(name: str, events: Sequence[Any]) -> Node:
    """Return range -> outermost operator -> operator -> kernel from torch.profiler's events."""
    spans = [event.time_range for event in events if event.name == name and _on_cpu(event)]
    total = _Sum()
    for event in events:
        # A range is an event as well; on a GPU it has a second one there.
        if not _on_cpu(event) or event.name == name or not any(_within(event.time_range, span) for span in spans):
            continue
        outermost = event
        while outermost.cpu_parent is not None and outermost.cpu_parent.name != name:
            outermost = outermost.cpu_parent
        top = total.part(_plain(outermost.name))
        if event is outermost:
            top.calls += 1
        if _plain(event.name) == _plain(outermost.name):  # the engine's call of a node and the node itself are one
            _add(top, event)
        else:
            part = top.part(_plain(event.name))
            part.calls += 1
            _add(part, event)
    elapsed_s = sum(span.elapsed_us() for span in spans) / 1e6
    total.own_s = max(0.0, elapsed_s - total.seconds)
    total.calls = len(spans)
    rounds = max(1, len(spans))
    return total.node(name, rounds, _LEAST_SHARE * elapsed_s)


def _add(part: _Sum, event: Any) -> None:
    part.own_s += event.self_cpu_time_total / 1e6
    for kernel in event.kernels:
        inner = part.part(f"kernel {kernel.name}")
        inner.calls += 1
        inner.own_device_s += kernel.duration / 1e6


def _on_cpu(event: Any) -> bool:
    return bool(event.device_type.name == "CPU")


def _within(inner: Any, outer: Any) -> bool:
    return bool(outer.start <= inner.start < outer.end)


def _plain(name: str) -> str:
    return name.removeprefix(_ENGINE)
