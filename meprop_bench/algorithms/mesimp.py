"""meSimp: remove the neurons that are rarely in the top k, during training (TKDE, Algorithm 2).

    after each step       c_i ← c_i + how many of its examples had neuron i among their top k       see `activeness`
    every m examples      remove neuron i  if  c_i < int(examples · p);   c ← 0                     see `removal`

One rate p gives each layer a size of its own: where the same neurons are in every top k, more of them pass. A removed
neuron never comes back. k stays what it was, so that a layer may end up with fewer neurons than k and be dense.

Cycled training (TKDE, section 2.2): some epochs with simplification, some without, and so on; at each change the
optimizer starts anew, since the dynamics it remembers are those of another network. As in the authors' code, the epochs
without simplification still train by top k.

    simp = MeSimp(model, optimizer, interval=6875, rate=0.10, cycle=Cycle(5, 5))
    for batch in …:
        loss(model(x), y).backward(); optimizer.step(); optimizer.zero_grad()
        simp.after_step(len(x))                                         # and simp.after_epoch() after an epoch

The papers prune MNIST 8 times an epoch: m = 55,000 / 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from meprop_bench.algorithms.activeness import Activeness, check_recordable, watch
from meprop_bench.algorithms.removal import Masks, remove, reset_state
from meprop_bench.algorithms.structure import Group, trace
from meprop_bench.nn import MePropLinear
from meprop_bench.ops.selection import resolve_k

__all__ = ["Cycle", "MeSimp", "Pruning"]

MODES = ("remove", "mask")


@dataclass(frozen=True)
class Cycle:
    """How many epochs with simplification and how many without make a stage; ValueError for fewer than one."""

    simplify: int = 5
    normal: int = 5

    def __post_init__(self) -> None:
        for name in ("simplify", "normal"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 epoch, not {getattr(self, name)}")


@dataclass(frozen=True)
class Pruning:
    """What one prune left."""

    examples: int  # trained on with simplification, so far
    sizes: dict[str, int]  # neurons left in each layer
    nonzeros: dict[str, float]
    """Mean number of non-zero entries in dy since the last prune, for an example (and a gate): compare with k."""


class MeSimp:
    """Simplifies a model during its training.

    Args:
        model: a model with layers converted by `meprop_bench.nn.convert`.
        optimizer: the one that trains it, whose state is cut along with the neurons. None: there is no state.
        interval: m, examples between prunes.
        rate: p, the share of examples in whose top k a neuron must be, to stay. In (0, 1].
        layers: qualified names of the layers to simplify; by default all that were converted, but for the output layer.
        round_to: a layer keeps a multiple of this many neurons, more rather than less.
        mode: "remove", or "mask" to hold the neurons at zero instead; the two compute the same.
        count_zeros: let entries of dy that are zero count as active when they fill k up; see `activeness`.
        cycle: epochs with and without; None for simplification throughout.

    A ratio k becomes the number it means now, and stays that. An example of a recurrent layer's record is one
    time step of one example. All cells of one recurrent module keep as many neurons as the one with the most active
    ones, since the module has one hidden size. With k neurons or fewer it is dense, and meSimp leaves it as it is.

    Raises:
        ValueError: a value out of range; no layer to simplify; or a layer whose neurons cannot be removed exactly, by
            name, see `structure`.

    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        interval: int,
        rate: float,
        layers: Iterable[str] | None = None,
        round_to: int = 1,
        mode: str = "remove",
        count_zeros: bool = False,
        cycle: Cycle | None = None,
    ) -> None:
        _check(interval, rate, round_to, mode, count_zeros)
        chosen = _choose(model, layers)
        self._structure = trace(model, chosen)
        self.groups = {group.name: group for group in self._structure.groups}
        _check_chosen(chosen, self._structure.groups, layers)
        self.optimizer = optimizer
        self.interval, self.rate, self.round_to = interval, rate, round_to
        self.cycle = cycle
        self.simplifying = True
        """Whether neurons are recorded and removed now, or this is the normal part of a stage."""
        self.examples = 0
        self.epochs = 0
        self.history: list[Pruning] = []
        self._masks = Masks(self._structure) if mode == "mask" else None
        for layer in {group.layer for group in self._structure.groups}:
            _fix_method(layer)
        self.records = {g.name: _record(g, count_zeros) for g in self._structure.groups}
        """The record of each layer, by name; that of a cell of a recurrent layer is "name.l0", "name.l0_reverse", …"""
        self._handles = [
            watch(group.layer, self.records[group.name])
            for group in self._structure.groups
            if isinstance(group.layer, MePropLinear)
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """Neurons left in each layer."""
        return {name: int(self._live(group).sum()) for name, group in self.groups.items()}

    @property
    def mean_size(self) -> float:
        """Mean number of neurons over the layers: "Size" in TKDE, Table 10."""
        return sum(self.sizes.values()) / len(self.groups)

    def after_step(self, examples: int) -> Pruning | None:
        """Say that the optimizer has made a step on so many examples; prunes when m more of them are complete."""
        if not self.simplifying:
            return None
        due = (self.examples + examples) // self.interval > self.examples // self.interval
        self.examples += examples
        return self.prune() if due else None

    def after_epoch(self) -> None:
        """Say that an epoch is over; where the cycle's other part begins, the optimizer and the records start anew."""
        self.epochs += 1
        cycle = self.cycle
        if cycle is None or self.epochs % (cycle.simplify + cycle.normal) not in (0, cycle.simplify):
            return
        self.simplifying = not self.simplifying
        for record in self.records.values():
            record.clear()
            record.enabled = self.simplifying
        if self.optimizer is not None:
            reset_state(self.optimizer)

    def prune(self) -> Pruning:
        """Remove the inactive neurons now, and start the records again.

        Raises:
            ValueError: a record is empty, or the optimizer's state cannot follow; nothing is changed then.

        """
        layers: dict[nn.Module, list[Group]] = {}
        for group in self.groups.values():
            layers.setdefault(group.layer, []).append(group)
        keep = {group: mask for groups in layers.values() for group, mask in self._keep(groups).items()}
        nonzeros = {name: record.mean_nonzeros for name, record in self.records.items()}
        if self._masks is None:
            remove(self._structure, keep, self.optimizer)
        else:
            self._masks.add(keep, self.optimizer)
        for group in keep:
            self.records[group.name].resize(group.size)
        pruning = Pruning(self.examples, self.sizes, nonzeros)
        self.history.append(pruning)
        return pruning

    def state_dict(self) -> dict[str, Any]:
        """Return where simplification stands, as tensors, numbers, lists and dictionaries."""
        return {
            "examples": self.examples,
            "epochs": self.epochs,
            "simplifying": self.simplifying,
            "history": [asdict(pruning) for pruning in self.history],
            "live": {name: self._live(group).clone() for name, group in self.groups.items()},
            "records": {name: record.state_dict() for name, record in self.records.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: this one must be new, and of a model and settings like those that the state is of.

        Neurons are removed (or masked) here, so that the model has the sizes it had; which ones they were is known to
        its parameters alone: load these, and the optimizer's state, after this.

        Raises:
            ValueError: the state is of other layers, or neurons have been removed already.

        """
        live: dict[str, Tensor] = state["live"]
        if set(live) != set(self.groups) or any(len(live[name]) > group.size for name, group in self.groups.items()):
            raise ValueError(f"the state is of {', '.join(live)}, not of {', '.join(self.groups)} of these sizes")
        if self._masks is None:
            left = {group: int(live[name].sum()) for name, group in self.groups.items()}
            keep = {group: torch.arange(group.size) < number for group, number in left.items()}
            remove(self._structure, keep)
        else:
            self._masks.add({group: live[name] for name, group in self.groups.items()})
        self.examples, self.epochs, self.simplifying = state["examples"], state["epochs"], state["simplifying"]
        self.history = [Pruning(**pruning) for pruning in state["history"]]
        for name, record in self.records.items():
            record.load_state_dict(state["records"][name])
            record.enabled = self.simplifying

    def close(self) -> None:
        """Take all hooks off the model, which goes on as an ordinary one. Masked neurons may come back then."""
        for handle in self._handles:
            handle.remove()
        for group in self.groups.values():
            layer: Any = group.layer
            if group.cell and hasattr(layer, "activeness"):
                layer.activeness = None
        if self._masks is not None:
            self._masks.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, groups: list[Group]) -> dict[Group, Tensor]:
        """Return which neurons stay, for the groups of one layer: one, or one for each cell."""
        live = {group: self._live(group) for group in groups}
        if any(_is_dense(group, int(live[group].sum())) for group in groups):
            return live
        for group in groups:
            if not self.records[group.name].examples:
                raise ValueError(f"nothing has been recorded of {group.name!r} since the last prune: train in between")
        number = max(self.records[g.name].enough(self.rate, live[g], self.round_to) for g in groups)
        return {g: self.records[g.name].best(number, live[g]) for g in groups}

    def _live(self, group: Group) -> Tensor:
        if self._masks is None:
            return torch.ones(group.size, dtype=torch.bool)
        return self._masks.live[group]


def _check(interval: int, rate: float, round_to: int, mode: str, count_zeros: bool) -> None:
    if interval < 1 or round_to < 1:
        raise ValueError(f"interval and round_to must be at least 1, not {interval} and {round_to}")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], not {rate}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "mask" and count_zeros:
        raise ValueError("mode 'mask' does not go with count_zeros: masked neurons would fill k up")


def _choose(model: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if layers is None:
        return {name: layer for name, layer in modules.items() if _is_converted(layer)}
    chosen = {}
    for name in layers:
        layer = modules.get(name)
        if not _is_converted(layer) and not isinstance(layer, nn.RNNBase):
            what = "there is no such layer" if layer is None else f"it is {type(layer).__name__}"
            raise ValueError(f"cannot simplify {name!r}: {what}; name layers converted by nn.convert")
        assert layer is not None
        chosen[name] = layer
    return chosen


def _is_converted(layer: nn.Module | None) -> bool:
    return isinstance(layer, MePropLinear) or (isinstance(layer, nn.RNNBase) and hasattr(layer, "activeness"))


def _check_chosen(chosen: dict[str, nn.Module], groups: list[Group], named: Iterable[str] | None) -> None:
    if named is not None:
        found = {group.layer for group in groups}
        for name, layer in chosen.items():
            if layer not in found:
                raise ValueError(f"cannot simplify {name!r}: it is the output layer, or the forward does not call it")
    if not groups:
        raise ValueError("there is no layer to simplify: convert hidden layers with nn.convert first")


def _fix_method(layer: Any) -> None:
    """Check a layer's selection, and make its ratio k a number. (A plain recurrent layer has neither.)"""
    if _is_converted(layer) and hasattr(layer, "k"):
        check_recordable(layer.selection)
        layer.k = resolve_k(layer.k, layer.out_features if isinstance(layer, nn.Linear) else layer.hidden_size)


def _is_dense(group: Group, live: int) -> bool:
    """Whether a recurrent layer has come down to k neurons: it runs as torch's own then, and records nothing.

    If the others are only held at zero, it runs as before; but what is done must be the same.
    """
    k = getattr(group.layer, "k", None)
    return bool(group.cell) and k is not None and resolve_k(k, group.size) >= live


def _record(group: Group, count_zeros: bool) -> Activeness:
    layer: Any = group.layer
    device = next(layer.parameters()).device
    record = Activeness(group.size, gates=group.gates, count_zeros=count_zeros, device=device)
    if group.cell and hasattr(layer, "activeness"):  # its cells call their record: `record(dy, idx)`, dy (N, gates · n)
        layer.activeness = {**(layer.activeness or {}), group.cell: record}
    return record
