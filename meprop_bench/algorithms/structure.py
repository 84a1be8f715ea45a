"""Where a neuron lives: which rows, columns and entries of which tensors go when it is removed.

A neuron i of a layer `y = x Wᵀ + b` is row i of W, entry i of b, entry i of every per-feature tensor on the way (batch
normalisation), and column i of each layer that reads y. Behind a flattened `(T, n)` it is T columns, behind the two
directions of an LSTM a column of the second half, in an LSTM a row of each of four gates and a column of its own
recurrent weight. All of that is said by one thing, an *axis*: a dimension of a tensor whose entries are, in order, the
neurons of some groups, repeated some times.

    W_hh of an LSTM   (4 n, n)       axis 0: the group, 4 times      axis 1: the group, once
    next layer's W    (o, T (n+n'))  axis 1: the groups of both directions, T times

Axes are found by following the values through the model's forward (torch.fx). Removal is exact for what passes features
on one by one, whatever f(0) is; what mixes features (layer normalisation, softmax) or ties two layers' features to each
other (a residual addition) is refused, by name, and so is everything unknown.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import rnn

__all__ = ["Group", "Structure", "TensorAxis", "trace"]

_ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.AlphaDropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid,
    nn.Hardswish,
)  # fmt: skip
"""Modules that pass features on one by one, without a parameter for each."""

_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    (torch.relu, torch.tanh, torch.sigmoid, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.softplus,
     F.tanh, F.sigmoid, F.hardtanh, F.dropout, operator.neg)
)  # fmt: skip
_METHODS = frozenset(
    ("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "contiguous", "float", "double", "clone")
)
_SCALED = frozenset(
    (operator.mul, operator.truediv, operator.add, operator.sub, operator.pow, torch.mul, torch.add, torch.pow)
)
"""Functions that pass features on one by one if the other operand is a number."""


@dataclass(eq=False)
class Group:
    """Neurons of one layer, or of one cell of a recurrent one, each of which can be removed for itself."""

    name: str
    layer: nn.Module
    size: int
    gates: int = 1
    cell: str = ""  # suffix of the cell's parameters in a recurrent layer, e.g. "l0_reverse"
    axes: int = field(default=0, repr=False)  # how many axes outside of its own layer it has
    is_output: bool = False  # whether its neurons are the model's outputs


class TensorAxis(NamedTuple):
    """A dimension of `getattr(owner, tensor)` whose entries are the neurons of `parts`, `repeat` times."""

    owner: nn.Module
    tensor: str
    dim: int
    parts: tuple[Group, ...]
    repeat: int

    def keep(self, neurons: dict[Group, Tensor]) -> Tensor:
        """Return which entries to keep, bool, given that of the neurons of some groups."""
        masks = [neurons.get(g, torch.ones(g.size, dtype=torch.bool)).cpu() for g in self.parts]
        return torch.cat(masks).repeat(self.repeat)


class Structure(NamedTuple):
    """The groups that can be simplified, and all axes they have."""

    groups: list[Group]
    axes: list[TensorAxis]


class _LastDimension(NamedTuple):
    """What the last dimension of a value holds."""

    parts: tuple[Group, ...]
    flat: bool = False  # flattened: the groups repeat, as often as the layer that reads them says

    @property
    def size(self) -> int:
        return sum(group.size for group in self.parts)

    @property
    def names(self) -> str:
        return " and ".join(repr(group.name) for group in self.parts)


class _Returned(NamedTuple):
    """What a recurrent layer returns: an output, and states, which cannot be followed."""

    output: _LastDimension


_Input = tuple[fx.Node, _LastDimension | _Returned]
"""A node, and what its value holds."""


class _Tracer(fx.Tracer):
    """Takes this package's layers for leaves, as torch's, and sequence packing for a function."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(rnn.pack_padded_sequence, rnn.pad_packed_sequence))
        # For `rnn.pack_…` as well as the bare name. (autowrap_modules would wrap the classes that `rnn` imports, too.)
        self._autowrap_search.append(rnn)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether not to look into a module."""
        ours = m.__module__.startswith("meprop_bench.nn")
        return ours or isinstance(m, (nn.Linear, nn.RNNBase)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, layers: dict[str, nn.Module]) -> Structure:
    """Find all axes of the neurons of some linear and recurrent layers of a model, given by qualified name.

    The structure is without those layers whose outputs are the model's.

    Raises:
        ValueError: naming the layers, if neurons of one cannot be removed exactly, or torch.fx cannot trace the model.

    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise ValueError(
            f"cannot follow the forward of {type(model).__name__} (torch.fx: {' '.join(str(error).split())}): "
            "write it without branches on values"
        ) from error
    walk = _Walk(model, layers)
    for node in graph.nodes:
        walk.visit(node)
    structure = walk.structure()
    _check_owned_once(model, structure.axes, [node.target for node in graph.nodes if node.op == "get_attr"])
    return structure


class _Walk:
    """Follows the neurons of the chosen layers through the nodes of a graph."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module]) -> None:
        self.model = model
        self.names = {module: name for name, module in layers.items()}
        self.values: dict[fx.Node, _LastDimension | _Returned] = {}
        self.groups: list[Group] = []
        self.axes: list[TensorAxis] = []
        self.calls: Counter[nn.Module] = Counter()

    def visit(self, node: fx.Node) -> None:
        inputs = [(n, self.values[n]) for n in node.all_input_nodes if n in self.values]
        if node.op == "call_module":
            value = self.module(node, self.model.get_submodule(str(node.target)), inputs)
        elif node.op == "output":
            return self.output(inputs)
        else:
            value = self.function(node, inputs) if inputs else None
        if value is not None:
            self.values[node] = value

    def module(self, node: fx.Node, module: nn.Module, inputs: list[_Input]) -> _LastDimension | _Returned | None:
        layout = None
        if inputs:
            source, value = inputs[0]
            if not isinstance(value, _LastDimension) or len(inputs) > 1 or node.args[:1] != (source,):
                self.refuse(inputs, node)
            layout = value
        self.calls[module] += 1
        if isinstance(module, (nn.Linear, nn.RNNBase)):
            return self.layer(node, module, layout)
        if layout is None or isinstance(module, _ELEMENTWISE):
            return layout
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return layout
        if isinstance(module, nn.BatchNorm1d):
            tensors = ("weight", "bias", "running_mean", "running_var")
            self.read(node, module, [t for t in tensors if getattr(module, t) is not None], 0, layout)
            return layout
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return layout._replace(flat=True)
        self.refuse(inputs, node)

    def layer(
        self, node: fx.Node, layer: nn.Linear | nn.RNNBase, layout: _LastDimension | None
    ) -> _LastDimension | _Returned | None:
        recurrent = isinstance(layer, nn.RNNBase)
        name = self.names.get(layer)
        if (layout or name is not None) and (reason := _not_plain(layer)):
            raise ValueError(f"cannot remove neurons around {node.target!r}: {reason}")
        if layout:
            reverse = ("", "_reverse")[: 1 + (recurrent and bool(layer.bidirectional))]
            self.read(node, layer, [f"weight_ih_l0{r}" for r in reverse] if recurrent else ["weight"], 1, layout)
        if name is None:
            return None
        if isinstance(layer, nn.Linear):
            group = Group(name, layer, layer.out_features)
            self.groups.append(group)
            self.axes += [TensorAxis(layer, t, 0, (group,), 1) for t in _present(layer, "weight", "bias")]
            return _LastDimension((group,))
        if layer.proj_size or len(node.args) > 1 or "hx" in node.kwargs:
            raise ValueError(f"cannot remove neurons of {name!r}: it has a projection or is given an initial state")
        return _Returned(_LastDimension(self.cells(name, layer)))

    def cells(self, name: str, layer: nn.RNNBase) -> tuple[Group, ...]:
        """Make a group of each cell; return those of the last layer, whose outputs the module returns."""
        before: tuple[Group, ...] = ()
        for depth in range(layer.num_layers):
            groups = []
            for end in ("", "_reverse")[: 1 + layer.bidirectional]:
                cell = f"l{depth}{end}"
                gates = getattr(layer, f"weight_hh_{cell}").shape[0] // layer.hidden_size
                group = Group(f"{name}.{cell}", layer, layer.hidden_size, gates, cell)
                groups.append(group)
                own = [f"weight_ih_{cell}", f"weight_hh_{cell}", f"bias_ih_{cell}", f"bias_hh_{cell}"]
                self.axes += [TensorAxis(layer, t, 0, (group,), gates) for t in _present(layer, *own)]
                self.axes.append(TensorAxis(layer, f"weight_hh_{cell}", 1, (group,), 1))
                if before:
                    self.axes.append(TensorAxis(layer, f"weight_ih_{cell}", 1, before, 1))
            for group in before:
                group.axes += 1
            before = tuple(groups)
            self.groups += groups
        return before

    def read(self, node: fx.Node, owner: nn.Module, tensors: Iterable[str], dim: int, layout: _LastDimension) -> None:
        """Note that some tensors of a layer read what `layout` holds."""
        for name in tensors:
            found, size = getattr(owner, name).shape[dim], layout.size
            repeat = found // size if layout.flat else 1
            if found != size * repeat:
                raise ValueError(
                    f"cannot remove neurons of {layout.names}: {node.target!r} takes {found} features, not {size}"
                )
            self.axes.append(TensorAxis(owner, name, dim, layout.parts, repeat))
        if dim == 1:  # batch normalisation, dim 0, passes features on: that alone does not use them
            for group in layout.parts:
                group.axes += 1

    def function(self, node: fx.Node, inputs: list[_Input]) -> _LastDimension | _Returned | None:
        source, value = inputs[0]
        if _is_shape(node) or (isinstance(value, _Returned) and _is_unused_state(node)):
            return None
        if len(inputs) == 1 and isinstance(value, _Returned):
            if node.target is operator.getitem and node.args == (source, 0):
                return value.output
        elif len(inputs) == 1 and isinstance(value, _LastDimension):
            if node.target is rnn.pad_packed_sequence and node.args[:1] == (source,):
                return _Returned(value)
            if _flattens(node):
                return value._replace(flat=True)
            if _is_elementwise(node, source):
                return value
        self.refuse(inputs, node)

    def output(self, inputs: list[_Input]) -> None:
        for _, value in inputs:
            layout = value.output if isinstance(value, _Returned) else value
            for group in layout.parts:
                group.is_output = True

    def refuse(self, inputs: list[_Input], node: fx.Node) -> NoReturn:
        layouts = [value.output if isinstance(value, _Returned) else value for _, value in inputs]
        names = " and ".join(dict.fromkeys(layout.names for layout in layouts))
        if node.op == "call_module":
            where = f"{str(node.target)!r} ({type(self.model.get_submodule(str(node.target))).__name__})"
        elif node.target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            others = " + ".join(_origin(n) for n in node.all_input_nodes)
            where = f"the residual addition {node.name!r} ({others})"
        else:
            where = repr(node.name)
        raise ValueError(
            f"cannot remove neurons of {names}: they go into {where}, which does not pass them on one by one"
        )

    def structure(self) -> Structure:
        """Drop the output layers, which are never simplified."""
        for axis in self.axes:
            if self.calls[axis.owner] > 1:
                names = " and ".join(repr(group.name) for group in axis.parts)
                raise ValueError(
                    f"cannot remove neurons of {names}: the layer, or one that reads it, is used more than once"
                )
        for group in self.groups:
            if group.is_output and group.axes:
                raise ValueError(f"cannot remove neurons of {group.name!r}: they are also outputs of the model")
            if not group.is_output and not group.axes:
                raise ValueError(f"cannot remove neurons of {group.name!r}: no layer reads them")
        outputs = {group.layer for group in self.groups if group.is_output}
        groups = [group for group in self.groups if group.layer not in outputs]
        live = set(groups)
        return Structure(groups, [axis for axis in self.axes if live.intersection(axis.parts)])


def _present(layer: nn.Module, *names: str) -> list[str]:
    return [name for name in names if getattr(layer, name, None) is not None]


def _not_plain(layer: nn.Linear | nn.RNNBase) -> str | None:
    """Say why rows and columns of its parameters are not all there is to a layer."""
    if type(layer).__module__.partition(".")[0] not in ("torch", "meprop_bench"):
        return f"{type(layer).__name__} may hold more than {type(layer).__base__} does"
    names = ["weight", "bias"] if isinstance(layer, nn.Linear) else layer._flat_weights_names
    if not set(names) <= set(layer._parameters):
        return "its parameters are computed from others (weight_norm, parametrize, prune)"
    return None


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def _is_unused_state(node: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[1] not in (0,) and not node.users


def _is_elementwise(node: fx.Node, source: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target in _SCALED:
        return all(n is source or isinstance(n, (int, float)) for n in node.args)
    return node.args[:1] == (source,) and (node.target is rnn.pack_padded_sequence or node.target in _FUNCTIONS)


def _flattens(node: fx.Node) -> bool:
    """Whether all dimensions but the first become one."""
    if node.target is not torch.flatten and (node.op, node.target) != ("call_method", "flatten"):
        return False
    given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
    return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)


def _origin(node: fx.Node) -> str:
    """Name the layer a value comes from, or the value."""
    while node.op not in ("call_module", "placeholder", "get_attr") and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return repr(str(node.target))


def _check_owned_once(model: nn.Module, axes: list[TensorAxis], read_directly: list[Any]) -> None:
    """Refuse parameters that another module shares or that the forward reads by itself."""
    owners: dict[Tensor, set[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=True):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, set()).add(f"{prefix}.{name}" if prefix else name)
    for axis in axes:
        names = owners.get(getattr(axis.owner, axis.tensor), set())
        if len(names) > 1 or names.intersection(map(str, read_directly)):
            raise ValueError(
                f"cannot remove neurons of {axis.parts[0].name!r}: {' and '.join(sorted(names))} is shared"
            )
