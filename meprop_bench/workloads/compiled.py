"""What is timed, through `torch.compile`: at set-up, before any check, and never again.

    with compilation(wanted) as made:           what is set up within may be compiled
        f = function(forward)                   a layer's forward pass, and with it its backward pass
        compile_steps([step], batch, seed)      a model in place, with all that it calls
    made.notes()                                how often a graph was broken

Both sides are compiled alike, by torch's defaults, as a user would. What they are held to is in `as_eager` and
`as_eager_step`: outputs and all gradients of the compiled call are those of the same call, run eagerly.

*A graph that is kept.* A layer's backward pass is timed again and again on one graph. A compiled backward pass may
write into what its forward pass saved (torch's donated buffers), and then refuses to run twice. So for layers donation
is off, on both sides alike. It changes nothing about what is timed here: only buffers of the graph's own are donated,
and of a linear layer and a convolution only inputs are saved. Models run forward before each backward pass, as in
training, and have it on.

*Nothing is compiled while the clock runs.* When the case is set up, torch is put into the stance "fail_on_recompile": a
call that its graphs do not fit is an error, not a slow value, until the next case. Nor may Dynamo give up quietly at
its limit of recompilations and go on eagerly. Kernels for the CPU are compiled for a number of threads, which has to be
the case's meanwhile. The compiler's own pool of processes would go on beside the measurement, and is not started.

*Found again.* Every process compiles for itself; what the first one's C++ compiler, or Triton, made is found by the
others in torch's cache (TORCHINDUCTOR_CACHE_DIR).

Nothing here loads Dynamo, which takes two seconds, before something is to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from meprop_bench.errors import UserError
from meprop_bench.training import Step
from meprop_bench.workloads.check import compare
from meprop_bench.workloads.same_step import difference, numbers

__all__ = ["CannotCompile", "Made", "as_eager", "as_eager_step", "compilation", "compile_steps", "function"]

_P = ParamSpec("_P")

BACKEND = "inductor"
"""torch's default."""

_lasting = ExitStack()
"""What holds in this process until the next case is set up."""


class CannotCompile(UserError):
    """It cannot be compiled, or not here; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; leave --compile off")
        self.reason = reason


@dataclass
class Made:
    """What torch.compile made of a case."""

    graphs: int = 0  # that were compiled
    breaks: dict[str, int] = field(default_factory=dict)  # why a graph was broken -> how often

    def notes(self) -> tuple[str, ...]:
        """Say that graphs were broken, and the first reason; nothing where none was."""
        if not (count := sum(self.breaks.values())):
            return ()
        times = "once" if count == 1 else f"{count} times"
        return (f"torch.compile broke the graph {times}, and made {self.graphs} of it: {next(iter(self.breaks))}",)


@contextmanager
def compilation(wanted: bool, *, keep_graph: bool = False, beside: bool = False) -> Iterator[Made]:
    """Forget what earlier cases compiled; where it is wanted, let what is set up in the block be compiled, no later.

    Args:
        wanted: whether something is to be compiled.
        keep_graph: whether backward passes will run again on a graph, as a layer's do.
        beside: forget nothing; what is there may run beside, and its graphs serve again.

    Raises:
        CannotCompile: it cannot be compiled here, or nothing of it was.

    """
    if not beside:
        _lasting.close()
    made = Made()
    if not wanted:
        yield made
        return
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config
    from torch._dynamo.utils import counters

    counters.clear()
    with ExitStack() as lasting:
        if not beside:
            lasting.callback(torch.compiler.reset)
        if keep_graph:
            lasting.enter_context(torch._functorch.config.patch(donated_buffer=False))
        with (
            _explained(),
            torch.compiler.set_stance("default"),
            torch._inductor.config.patch(compile_threads=1),
            torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
        ):
            yield made
        made.graphs = counters["stats"]["unique_graphs"]
        made.breaks = {_line(reason): count for reason, count in counters["graph_break"].items()}
        if not (made.graphs or beside):
            why = f" ({next(iter(made.breaks))})" if made.breaks else ""
            raise CannotCompile(f"torch.compile finds nothing to compile in it{why}")
        lasting.enter_context(torch.compiler.set_stance("fail_on_recompile"))
        _lasting.enter_context(lasting.pop_all())


@contextmanager
def _explained() -> Iterator[None]:
    """Turn an error of torch's compiler into one line."""
    try:
        yield
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise CannotCompile(f"torch.compile cannot be used for it here: {reason}") from error


def function(forward: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Return a forward pass that is compiled at its first call, for the shapes that it meets."""
    compiled: Callable[_P, Tensor] = torch.compile(forward, backend=BACKEND, dynamic=False)
    return compiled


def compile_steps(steps: Sequence[Step], batch: Any, seed: int) -> Callable[[], str | None]:
    """Compile the models of some steps in place, from their next call on; copies of them are as before.

    Returns what compares each with itself, run eagerly, on a batch: a line that says what differs, or None. The random
    numbers of a compiled model are others than those of an eager one. So where the loss depends on them (dropout), what
    is compared now is the same model compiled with eager's random numbers.
    """
    drawing = [step for step in steps if BACKEND == "inductor" and _draws(step, batch)]
    for step in drawing:
        _compile(step.model, {"fallback_random": True})
    found = [as_eager_step(step, batch, seed) for step in drawing]
    for step in steps:
        _compile(step.model, None)

    def differs() -> str | None:
        others = (as_eager_step(step, batch, seed) for step in steps if step not in drawing)
        return next(filter(None, (*found, *others)), None)

    return differs


def _compile(model: nn.Module, options: dict[str, Any] | None) -> None:
    import torch._dynamo

    # Without, `nn.Sequential` and other models whose `forward` is torch's own would run eagerly, silently.
    with torch._dynamo.config.patch(wrap_top_frame=True):
        model.compile(backend=BACKEND, options=options)


def _draws(step: Step, batch: Any) -> bool:
    """Whether a loss depends on random numbers."""
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(step.forward(batch).detach())
    return not torch.equal(*losses)


def as_eager(
    compiled: Callable[[], Tensor], eager: Callable[[], Tensor], inputs: Sequence[Tensor], dy: Tensor, seed: int
) -> str | None:
    """Compare y and the gradients of x, w and b for dy; return one line that says what differs, or None."""

    def numbers(forward: Callable[[], Tensor], dy: Tensor) -> list[Tensor]:
        torch.manual_seed(seed)
        y = forward()
        return [y.detach(), *torch.autograd.grad(y, list(inputs), dy)]

    names = ("y", "dx", "dw", "db")
    reason = compare(numbers(compiled, dy), numbers(eager, dy), names)
    if reason is None:  # what NaN a kernel leaves out is nothing to compare
        poisoned = dy.clone()
        poisoned.view(-1)[-1] = torch.nan
        pairs = zip(names, numbers(compiled, poisoned), numbers(eager, poisoned), strict=True)
        hidden = [name for name, mine, theirs in pairs if theirs.isnan().any() and not mine.isnan().any()]
        reason = f"a NaN in dy does not show in {', '.join(hidden)}" if hidden else None
    return reason and f"compiled and eager differ: {reason}"


def as_eager_step(step: Step, batch: Any, seed: int) -> str | None:
    """Compare the loss of a batch and all gradients of a compiled model; one line that says what differs, or None."""
    got = numbers(step, batch, seed)
    with torch.compiler.set_stance("force_eager"):
        true = numbers(step, batch, seed)
    return difference(got, true, "compiled and eager")


def _reason(error: BaseException) -> str | None:
    """Say in one line why torch.compile failed; None for an error that is not its own, nor made of one."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    if not isinstance(error, TorchDynamoException | FailOnRecompileLimitHit):
        if error.__cause__ is not None:
            return _reason(error.__cause__)
        return _line(str(error)) if "supported" in str(error) and "torch.compile" in str(error) else None
    if "InvalidCxxCompiler" in str(error):
        return "there is no C++ compiler (g++, clang++), which torch.compile needs"
    return _line(str(error))


def _line(text: str) -> str:
    """Return the first line that says something, which names no backend alone."""
    lines = (line.strip().rstrip(".") for line in text.splitlines())
    return next((line for line in lines if line and not line.endswith("raised:")), "no reason was given")
