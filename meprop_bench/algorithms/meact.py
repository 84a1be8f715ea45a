"""meAct: train each example only through its own active neurons (TKDE, Algorithm 3).

    epochs 1 … e     train normally, and for each example j and hidden layer accumulate   g_j ← g_j + |dL/dy_j|     (n,)
    fix              a_ij = g_ij / Σ_i g_ij           neuron i is active for example j where  a_ij ≥ p
    from then on     y_j ← y_j where active_j, else 0  forward and backward, in training; evaluation is full

y is the layer's output before the activation function. The comparison in Algorithm 3 is lost in print; the share at the
pre-activation is our reading, since its average active size on MNIST comes nearest to the paper's 99, though not at
every batch size: see below. An absolute threshold, g_ij ≥ p, is the option; note that g then depends on e and on how
the loss is averaged over the batch.

What was measured on MNIST (784-500-500-10, Adam, p = 0.004, one seed): at B = 50 the average active size is 98.4 with
masks fixed after 1 epoch, 96.1 after 2 and 92.7 after 10; at B = 10 it is 70 after 3 epochs. So p means something else
for another batch size. The paper's gain in accuracy did not reproduce: at B = 50 the test accuracy was 97.86 before the
masks and 96.1 to 97.9 in the four epochs after them, and at B = 10 it fell to 82. (`docs/log`, 2026-11-21.)

A masked neuron outputs f(0), which is 0 for ReLU, tanh, GELU and SiLU, but 0.5 for a sigmoid.

Memory: g takes 4 N Σn bytes in float32 (N examples, n neurons summed over the hidden layers) until `fix`, which leaves
N Σn / 8 bytes of masks. 55,000 examples through two layers of 500: 220 MB, then 6.9 MB. A limit, 1 GiB unless you say
otherwise, is checked before anything is allocated.

    act = MeAct(model, examples=len(train))
    for epoch in …:
        if epoch == e: act.fix(0.004)
        for ids, x, y in …:
            with act.batch(ids):
                loss(model(x), y).backward()

ids are the examples' numbers, 0 … N - 1: the same example, the same number, in every epoch.

Once the masks are fixed, linear layers of torch's own compute their active neurons alone, within `batch`, where
`ops.active` has a kernel for them. All else (a sparsified layer, one with other hooks on its output, which are to see
all of it) is computed in full, and masked behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as registry

from meprop_bench.ops.active import active_linear, kernel_name, pack, unpack

__all__ = ["MeAct", "ParameterChange"]

_CHUNK = 4096
"""Examples whose shares are computed at a time: bounds what `fix` needs on top of g."""


class MeAct:
    """Records, then restricts, which neurons of the hidden linear layers each example is trained through.

    Args:
        model: any module; its layers get hooks.
        examples: N.
        layers: qualified names of the hidden linear layers; by default all linear layers but the last one registered,
            which is taken for the output layer, as `nn.convert` does.
        memory_limit: bytes that the accumulation may take.

    Raises:
        ValueError: no such layer, or the accumulation needs more than the limit.

    """

    def __init__(
        self, model: nn.Module, examples: int, *, layers: Iterable[str] | None = None, memory_limit: int = 1 << 30
    ) -> None:
        if examples < 1:
            raise ValueError(f"examples must be at least 1, not {examples}")
        chosen = _hidden(model, layers)
        self.examples = examples
        self.memory_bytes = 4 * examples * sum(layer.out_features for layer in chosen.values())
        """What the accumulated gradients take."""
        if self.memory_bytes > memory_limit:
            raise ValueError(
                f"{examples} examples need {self.memory_bytes} bytes for their accumulated gradients, more than the "
                f"limit of {memory_limit}: raise memory_limit, or name fewer layers"
            )
        self._ids: Tensor | None = None
        self._layers = {name: _LayerMasks(self, name, layer) for name, layer in chosen.items()}

    @property
    def fixed(self) -> bool:
        """Whether the masks are fixed."""
        return all(layer.gradients is None for layer in self._layers.values())

    @contextmanager
    def batch(self, ids: Tensor) -> Iterator[Self]:
        """Say which examples the passes within are of: int64, `(B,)`, in [0, N), repeated or not; else ValueError."""
        if ids.dim() != 1 or ids.dtype != torch.int64:
            raise ValueError(f"ids must be one int64 number for each example, (B,), not {tuple(ids.shape)} {ids.dtype}")
        if len(ids):
            low, high = map(int, torch.aminmax(ids))
            if not 0 <= low <= high < self.examples:
                raise ValueError(f"ids must lie in [0, {self.examples}), not in [{low}, {high}]")
        self._ids = ids
        replaced = [layer for layer in self._layers.values() if layer.replaceable]
        for layer in replaced:
            vars(layer.module)["forward"] = layer.forward
        try:
            yield self
        finally:
            self._ids = None
            for layer in replaced:
                vars(layer.module).pop("forward", None)

    def fix(self, threshold: float, *, absolute: bool = False) -> None:
        """Fix the active neurons of each example, and drop the accumulated gradients.

        Args:
            threshold: p, of the share a_ij; 0.004 in the paper.
            absolute: compare the accumulated gradient itself, g_ij ≥ p.

        Raises:
            ValueError: a threshold that is not positive, or the masks are fixed already, or nothing was accumulated.

        """
        if not threshold > 0:
            raise ValueError(f"threshold must be greater than 0, not {threshold}")
        if self.fixed:
            raise ValueError("the masks are fixed already: begin with a new MeAct")
        if not all(layer.seen for layer in self._layers.values()):
            raise ValueError("no gradient was accumulated: train within `batch(ids)` before the masks are fixed")
        for layer in self._layers.values():
            layer.fix(threshold, absolute)

    def active(self, layer: str, ids: Tensor) -> Tensor:
        """Return which neurons of a layer are active for some examples, bool `(B, n)`, once the masks are fixed."""
        return self._layers[layer].active(ids)

    def kernel(self, layer: str, ids: Tensor) -> str:
        """Return what computes a layer for some examples, once the masks are fixed: "native", which computes the active
        neurons alone, or "masks", which computes all and masks them.
        """
        return self._layers[layer].kernel(ids)

    def sizes(self) -> dict[str, Tensor]:
        """Return the number of active neurons of each example, `(N,)`, for each layer."""
        everyone = torch.split(torch.arange(self.examples), _CHUNK)
        return {
            name: torch.cat([layer.active(ids.to(layer.device)).sum(1) for ids in everyone])
            for name, layer in self._layers.items()
        }

    @property
    def average_size(self) -> float:
        """Mean active neurons over examples and layers: "Average Size" in TKDE, Table 13."""
        return float(torch.stack([size.double().mean() for size in self.sizes().values()]).mean())

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulated gradients, or the masks, of each layer."""
        return {
            name: {"gradients": layer.gradients, "bits": layer.bits, "seen": layer.seen}
            for name, layer in self._layers.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same layers and examples; ValueError for one of others."""
        if set(state) != set(self._layers):
            raise ValueError(f"the state is of {', '.join(state)}, not of {', '.join(self._layers)}")
        for name, layer in self._layers.items():
            layer.load(**state[name])

    def close(self) -> None:
        """Take all hooks off the model."""
        for layer in self._layers.values():
            layer.hook.remove()


class _LayerMasks:
    """What is known of one layer: gradients while they are accumulated, then masks, eight neurons to a byte."""

    def __init__(self, act: MeAct, name: str, module: nn.Linear) -> None:
        self.name, self.module, self.neurons, self.examples = name, module, module.out_features, act.examples
        self.device = module.weight.device
        self.gradients: Tensor | None = torch.zeros(self.examples, self.neurons, device=self.device)  # (N, n)
        self.bits: Tensor | None = None  # (N, ⌈n / 8⌉)
        self.seen = False
        # No closures, so that the model can be copied.
        self.hook = module.register_forward_hook(partial(_record_or_mask, act, self))
        self.forward = partial(_forward, act, self)

    @property
    def replaceable(self) -> bool:
        """Whether `_forward` may stand for the layer's own: nobody else replaced it, or sees its output before it is
        masked. Not on GPUs, where there is no kernel, and replicas of a model would share it.
        """
        module = self.module
        return (
            self.bits is not None
            and self.device.type == "cpu"
            and type(module).forward is nn.Linear.forward
            and "forward" not in vars(module)
            and list(module._forward_hooks) == [self.hook.id]
            and not registry._global_forward_hooks
        )

    @torch.no_grad()
    def accumulate(self, dy: Tensor, ids: Tensor) -> None:
        if self.gradients is not None:
            self.gradients.index_add_(0, ids, dy.detach().abs().float())
            self.seen = True

    def fix(self, threshold: float, absolute: bool) -> None:
        assert self.gradients is not None
        parts = []
        for g in torch.split(self.gradients, _CHUNK):
            # An example without any gradient has no active neurons: 0 / 0 is NaN, which is not ≥ p.
            a = g if absolute else g / g.sum(1, keepdim=True)
            parts.append(pack(a >= threshold))
        self.bits = torch.cat(parts)
        self.gradients = None

    def load(self, gradients: Tensor | None, bits: Tensor | None, seen: bool) -> None:
        width = self.neurons if bits is None else -(-self.neurons // 8)
        found = gradients if bits is None else bits
        if found is None or found.shape != (self.examples, width):
            raise ValueError(
                f"the state of {self.name!r} is not of {self.examples} examples and {self.neurons} neurons"
            )
        self.gradients = None if gradients is None else gradients.to(self.device, copy=True)
        self.bits = None if bits is None else bits.to(self.device, copy=True)
        self.seen = seen

    def kernel(self, ids: Tensor) -> str:
        module = self.module
        x = module.weight.new_empty(len(ids), module.in_features)
        masked = self.bits is None or not self.replaceable
        return "masks" if masked else kernel_name(x, module.weight, module.bias, cast(Tensor, self.bits), ids)

    def active(self, ids: Tensor) -> Tensor:
        if self.bits is None:
            raise ValueError("the masks are not fixed yet: call fix first")
        return unpack(self.bits[ids], self.neurons)


def _record_or_mask(
    act: MeAct, layer: _LayerMasks, module: nn.Module, args: tuple[Any, ...], y: Tensor
) -> Tensor | None:
    """Be the forward hook of one layer."""
    if not module.training:
        return None
    ids = act._ids
    if ids is None:
        raise ValueError(
            f"meAct does not know which examples reach {layer.name!r}: train within `batch(ids)`, and "
            "evaluate with model.eval()"
        )
    if y.shape != (len(ids), layer.neurons):
        raise ValueError(
            f"{layer.name!r} gives {tuple(y.shape)} for {len(ids)} ids: meAct needs one row for each example"
        )
    if layer.bits is not None:
        if vars(module).get("forward") is layer.forward:
            return None
        return y.masked_fill(~layer.active(ids), 0)
    if y.requires_grad:
        y.register_hook(lambda dy: layer.accumulate(dy, ids))  # type: ignore[no-untyped-call]
    return None


def _forward(act: MeAct, layer: _LayerMasks, input: Tensor) -> Tensor:
    """Be the forward pass of one layer once the masks are fixed: through the active neurons alone, in training."""
    module, ids, bits = layer.module, act._ids, layer.bits
    if (
        not module.training or ids is None or bits is None or input.shape[:-1] != ids.shape
    ):  # the hook says what is wrong
        return F.linear(input, module.weight, module.bias)
    return active_linear(input, module.weight, module.bias, bits, ids)


class ParameterChange:
    """Mean absolute change of an entry of the parameters that the optimizer moves: TKDE, Figure 4, right.

    It keeps a copy of all parameters, and reads them all after each update.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._before = [p.detach().clone() for p in self._parameters]
        self._sum, self._updates = 0.0, 0

    @torch.no_grad()
    def after_update(self) -> float:
        """Return the mean magnitude of the changes since the last update, and add it to the mean."""
        total = 0.0
        for p, before in zip(self._parameters, self._before, strict=True):
            total += float(before.sub_(p).abs_().sum())
            before.copy_(p)
        change = total / sum(p.numel() for p in self._parameters)
        self._sum += change
        self._updates += 1
        return change

    def take(self) -> float:
        """Return the mean over the updates since the last call, say of an epoch; NaN if there were none."""
        mean = self._sum / self._updates if self._updates else float("nan")
        self._sum, self._updates = 0.0, 0
        return mean


def _hidden(model: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Linear]:
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if layers is None:
        chosen = dict(list(linear.items())[:-1])
        if not chosen:
            raise ValueError("there is no hidden linear layer: name the layers")
        return chosen
    names = list(layers)
    for name in names:
        if name not in linear:
            raise ValueError(f"there is no linear layer {name!r}: choose from {', '.join(linear)}")
    if not names:
        raise ValueError("name at least one layer")
    return {name: linear[name] for name in names}
