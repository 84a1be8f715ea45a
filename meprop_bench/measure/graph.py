"""CUDA graph replay as a clock: what a step costs on the device once its launches are recorded and replayed as one.

A launch costs the CPU 2 to 10 microseconds, and a sparse backward pass of a few small kernels is nothing but launches:
the device waits for the next one. A graph records the kernels of a call once, then one call replays them all.

    capture  a few rounds of warm-up on a side stream (libraries take their workspaces, which a capture may not), then
             each phase is recorded into a graph of its own, in order, all in one memory pool
    time     events around replays: no Python, no dispatcher, no allocator between them

The trade-off is what may be captured: fixed addresses and shapes, and nothing that waits for the device (`item()`, a
copy to the host, a sparse gradient whose number of rows depends on the data). Such a call is an error, never a
silent measurement of something else. A graph replays the work on the inputs that were captured; the optimizer's
state moves on with each replay, as it should.

Autograd runs a backward pass on the stream of its forward pass, and a capture sees its own stream alone. So whoever
wants a backward pass captured sets its graph up on that stream (`on_capture_stream`).

A function is captured once and known again by equality: hand over the same functions each time (bound methods are
equal to themselves), or every value pays for a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from meprop_bench.measure.clock import CudaEventClock

__all__ = ["CudaGraphClock", "on_capture_stream"]

_Call = Callable[[], object]

_WARM_ROUNDS = 3
"""As torch's own documentation of whole-network capture has it."""


_streams: dict[str, Any] = {}
"""Device -> the stream of all captures."""


@contextmanager
def on_capture_stream(device: str) -> Iterator[None]:
    """Issue what is done in the block on the stream that captures use; the device has finished it at the end."""
    import torch

    with torch.cuda.device(device), torch.cuda.stream(_capture_stream(device)):
        yield
    torch.cuda.synchronize(device)


def _capture_stream(device: str) -> Any:
    import torch

    if device not in _streams:
        new_stream: Any = torch.cuda.Stream
        with torch.cuda.device(device):
            _streams[device] = new_stream()
    return _streams[device]


class CudaGraphClock(CudaEventClock):
    """CUDA events around replays of CUDA graphs.

    Args:
        device: "cuda" or "cuda:N".

    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._name = device
        self._replays: dict[tuple[_Call, ...], tuple[_Call, ...]] = {}

    def replay(self, fn: _Call) -> _Call:
        """Return the call that replays `fn`; ValueError when it cannot be captured."""
        (replay,) = self._captured((fn,))
        return replay

    def time(self, fn: _Call, loops: int) -> float:
        """Return the device seconds of one replay of `fn`; ValueError when it cannot be captured."""
        return super().time(self.replay(fn), loops)

    def time_phases(self, phases: Mapping[str, _Call], loops: int) -> dict[str, float]:
        """Return the device seconds of each phase's replay, from one event at each boundary."""
        replays = self._captured(tuple(phases.values()))
        return super().time_phases(dict(zip(phases, replays, strict=True)), loops)

    def _captured(self, calls: tuple[_Call, ...]) -> tuple[_Call, ...]:
        if calls not in self._replays:
            self._replays[calls] = self._capture(calls)
        return self._replays[calls]

    def _capture(self, calls: tuple[_Call, ...]) -> tuple[_Call, ...]:
        import torch

        with torch.cuda.device(self._device):
            side, current = _capture_stream(self._name), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM_ROUNDS):
                    for call in calls:
                        call()
            current.wait_stream(side)
            pool = torch.cuda.graph_pool_handle()
            graphs = [torch.cuda.CUDAGraph() for _ in calls]
            try:
                for graph, call in zip(graphs, calls, strict=True):
                    with torch.cuda.graph(graph, pool=pool, stream=side):
                        call()
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(f"it cannot be captured as a CUDA graph: {reason}") from error
        return tuple(graph.replay for graph in graphs)
