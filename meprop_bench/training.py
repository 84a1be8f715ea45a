"""Training as phases: forward, backward, update; one step is the three in this order, and nothing else.

    forward   loss = cross_entropy(model(images), labels)      images (B, features), labels (B,) -> ()
    backward  d loss / d parameter, for every parameter        what meProp makes cheaper
    update    the optimizer moves the parameters               often the largest part once backward is cheap

The phases are separate calls so that whoever measures can put a clock between them; training itself knows no clock.
The loop over these steps is in `tasks.run`.

`Training` is a user's description of a model and how it is trained: what his `build()` returns. Every command takes it
by the name of that function (`tasks.own`).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from meprop_bench.errors import UserError
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.nn.perceptron import FusedMLP

__all__ = ["FusedStep", "Step", "Training", "evaluate", "fused_step"]


@dataclass(frozen=True, eq=False)
class Step:
    """One training step of a classifier, phase by phase or as a whole; another model has another `forward`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None = field(default=None, kw_only=True)  # of the learning rate, advanced by each update
    accumulate: int = field(default=1, kw_only=True)
    """Batches whose gradients are added up before an update; where there are several, a step's batch is a sequence."""

    @property
    def autocast(self) -> torch.dtype | None:
        """What `forward` computes in where torch's autocast is on; None where it is not."""
        return None

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss over a batch of images and labels, a scalar that holds the graph."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of every parameter."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the parameters and drop their gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None:
            self.schedule.step()

    def advance(self, steps: int) -> None:
        """Bring the learning rate to where it is after so many steps: schedulers have states that no file can hold."""
        if self.schedule is not None:
            with warnings.catch_warnings(action="ignore"):  # that the optimizer has made none of these steps
                for _ in range(steps):
                    self.schedule.step()

    def __call__(self, batch: Any) -> Tensor:
        """Run the three phases; return the loss before the update, without its graph."""
        if self.accumulate == 1:
            loss = self.forward(batch)
            self.backward(loss)
            self.update()
            return loss.detach()
        losses = []
        for part in batch:
            loss = self.forward(part)
            self.backward(loss)
            losses.append(loss.detach())
        self.update()
        return torch.stack(losses).mean()


@dataclass(frozen=True, eq=False)
class FusedStep(Step):
    """A step of a perceptron that computes loss and gradients without autograd."""

    model: FusedMLP

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss over a batch of images and labels, a scalar without a graph."""
        return self.model.loss(*batch)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of every parameter, for the loss that `forward` returned last."""
        self.model.backward(loss)


def fused_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> FusedStep:
    """Return a step of the very modules of a perceptron, as `nn.FusedMLP.from_modules` takes them.

    Raises:
        UserError: for a model that is something else, in one line.

    """
    if isinstance(model, FusedMLP):
        return FusedStep(model, optimizer)
    try:
        return FusedStep(FusedMLP.from_modules(model), optimizer)  # type: ignore[arg-type]  # it looks itself
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """Your own model and how it is trained: what `build()` returns.

        def build():
            return Training(model=GPT(), loss=lambda model, batch: ..., batches=[...])

    Args:
        model: any module. `build` makes a new one in each call; both sides start from the same weights.
        loss: a function of the model and a batch that returns a scalar with its graph.
        batches: an iterable that can be read repeatedly, such as a list or a DataLoader. An epoch is one pass; if there
            is no length, it is counted by reading the batches once, up to 10,000. Tensors in lists, tuples,
            dictionaries and dataclasses are moved to the device. Both sides see the same order: torch, `random`,
            NumPy and a DataLoader's generator are seeded.
        optimizer: a function that makes the optimizer from the list of trained parameters [default: AdamW, fused].
        schedule: a function of the optimizer and the number of steps that makes a learning-rate scheduler, so that it
            fits any budget; it is advanced after each update. Timed steps have none: their rate stays the same.
        evaluate: a function of the model, called in evaluation mode and without gradients, that returns a finite
            number; higher is better (return the negative of a loss). Comparing accuracies requires it.
        metric: what `evaluate` returns, in words; if they end in "%", differences are percentage points.
        kinds: classes of layers to sparsify, as for `nn.convert`.
        filter: called with a layer and its qualified name; layers for which it returns true are sparsified [default:
            all but the last linear layer].
        k: pattern of qualified names ("blocks.0.*") -> k of these layers, instead of the k that is measured; the
            first match counts.
        dtype: of the model's floating-point parameters and of floating-point batches [default: as built].
        autocast: dtype of `torch.autocast` around the loss: torch.bfloat16.
        accumulate: number of batches whose mean gradient makes one update.
        clip: maximum norm of all gradients together.

    Raises:
        UserError: an unusable argument, in one line.

    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batches: Iterable[Any]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    metric: str = "evaluate"
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
    filter: Callable[[nn.Module, str], bool] | None = None
    k: Mapping[str, float] | None = None
    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    accumulate: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        for wrong, problem in self._problems():
            if wrong:
                raise UserError(problem)

    def _problems(self) -> Iterator[tuple[bool, str]]:
        """Yield what may be wrong: whether it is, and how to say so."""
        yield (
            not isinstance(self.model, nn.Module),
            f"model must be a torch.nn.Module, not {_kind(self.model)}",
        )
        yield (
            not callable(self.loss),
            f"loss must be a function of the model and a batch, not {_kind(self.loss)}",
        )
        yield (
            str(getattr(self.loss, "__module__", "")).startswith(("torch.nn.modules.loss", "torch.nn.functional")),
            f"loss is torch's {getattr(self.loss, '__name__', type(self.loss).__name__)}, which takes outputs and"
            " labels: give a function of the model and a batch that calls it, as in lambda model, batch:"
            " F.cross_entropy(model(batch[0]), batch[1])",
        )
        for name in ("optimizer", "schedule", "evaluate", "filter"):
            found = getattr(self, name)
            yield (
                found is not None and not callable(found),
                f"{name} must be a function, not {_kind(found)}",
            )
        yield (
            not isinstance(self.batches, Iterable),
            f"batches must be something to iterate over, a list or a DataLoader, not {_kind(self.batches)}",
        )
        yield (
            isinstance(self.batches, Iterator),
            f"batches is {_kind(self.batches)}, which runs out when it has been read once: give a list, a DataLoader,"
            " or an object whose __iter__ begins anew",
        )
        yield (
            isinstance(self.batches, Tensor | str | Mapping),
            f"batches must be a list of batches or a DataLoader, not one {type(self.batches).__name__}",
        )
        yield (
            not isinstance(self.metric, str) or not self.metric.isprintable() or not self.metric.strip(),
            f"metric must be a word or two for what evaluate returns, not {self.metric!r}",
        )
        yield (
            self.evaluate is not None and isinstance(self.metric, str) and _less_is_better(self.metric),
            f"metric {self.metric!r} reads as one of which less is better, and of what evaluate returns more is: return"
            f" it with a minus, and call it '-{self.metric}'",
        )
        count = self.accumulate
        yield (
            isinstance(count, bool) or not isinstance(count, int) or count < 1,
            f"accumulate must be an integer of at least 1, not {count!r}",
        )
        yield (
            self.clip is not None and not (isinstance(self.clip, int | float) and 0 < self.clip < math.inf),
            f"clip must be a norm above 0, not {self.clip!r}",
        )
        yield (
            self.autocast not in (None, torch.bfloat16),
            f"autocast must be torch.bfloat16, not {self.autocast!r}: float16 would need a gradient scaler, too",
        )
        yield (
            self.dtype is not None and not getattr(self.dtype, "is_floating_point", False),
            f"dtype must be a floating-point dtype of torch, not {self.dtype!r}",
        )
        yield (
            not isinstance(self.kinds, tuple) or not self.kinds,
            f"kinds must be a tuple of classes of layers, (nn.Linear,) for instance, not {self.kinds!r}",
        )
        yield (
            self.k is not None and not isinstance(self.k, Mapping),
            f"k must map patterns of layers' names to their k, not be {self.k!r}: one k for all is --k",
        )


def _less_is_better(metric: str) -> bool:
    """Whether the name of a metric is that of an error, with no word or sign that turns it round."""
    words = re.findall(r"\w+|[-−]", metric.lower().replace("_", " "))
    turned = {"-", "−", "neg", "negative", "minus", "inverse", "reduction", "improvement"}
    errors = {"loss", "error", "perplexity", "ppl", "nll", "mse", "rmse", "mae", "wer", "cer"}
    return bool(errors & {*words}) and not turned & {*words}


def _kind(value: object) -> str:
    """Return what a value is, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, *, chunk: int = 4096) -> float:
    """Return the accuracy in percent of a model from images (N, features) to logits (N, classes), labels (N,).

    The model is put into evaluation mode, and each of its modules back into its own. `chunk` examples at a time bound
    the memory and do not change the result.
    """
    with evaluation_mode(model), torch.no_grad():
        hits = sum(
            int((model(x).argmax(dim=1) == y).sum())
            for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True)
        )
    return 100 * hits / len(labels)
