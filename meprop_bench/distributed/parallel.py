"""`DataParallel`: a model that several processes train, each on its part of a batch, by rows where there are rows.

    model     = DataParallel(convert(...)ed model)
    rows      weights of layers with `sparse=True`: exchanged here, gathered or agreed
    the rest  by torch's own DistributedDataParallel, which does not see the rows; between two ranks of gloo's, if it
              is not more than a bucket, its sum is one message each way

A backward pass, on each rank:

    the output gets its gradient            begin
    a weight gets its rows                  its bucket may be full: announce, and send what has been announced
    the end of autograd's graph             announce and send what is left; wait; the parameters get their gradients

Buckets are made, announced and sent in one order, the reverse of that in which layers were registered, on all ranks:
see `buckets`. What a rank lacks, since a layer did not run there, it announces as lacking.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import zip_longest
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _find_tensors
from torch.nn.parameter import is_lazy

from meprop_bench.distributed.agreed import Agreed, Agreement, Choice
from meprop_bench.distributed.buckets import Bucket, Entry
from meprop_bench.distributed.channel import DENSE, PAIR, BytesSent, Channel, Pending
from meprop_bench.distributed.gathered import Gathered
from meprop_bench.nn.linear import MePropLinear
from meprop_bench.ops.selection import resolve_k

__all__ = ["DataParallel"]

_EXCHANGES = ("gathered", "agreed")
_OF_DDP = (
    "device_ids", "output_device", "broadcast_buffers", "bucket_cap_mb", "gradient_as_bucket_view", "static_graph",
)  # fmt: skip
_HALF = (fp16_compress_hook, bf16_compress_hook)


class DataParallel(nn.Module):
    """A model that is trained by several processes, each on its own part of the batch.

    It is called as the model is, and when `backward` returns, gradients are the mean of those of all ranks, as with
    `DistributedDataParallel`: of `MePropLinear` layers with `sparse=True`, and of `nn.Embedding(sparse=True)`, as rows,
    which the optimizers of `meprop_bench.optim` take, else dense. Its state dict is that of `DistributedDataParallel`
    (names begin with `module.`), and it loads that of the model itself, too.

    Args:
        module: the model, the same on all ranks; converted before it is wrapped. It stays accessible as `.module`.
        exchange: "gathered": each rank selects for itself, and gets the union of all ranks' rows. "agreed": unified
            selections are made of the scores of all ranks, so that gradients are, to rounding, those of one process
            with the whole batch, and have k rows. All ranks have to run the same layers then.
        process_group: of the ranks [default: all].
        comm_hook: of `DistributedDataParallel`, for the dense gradients: a hook whose state is the process group, as of
            torch's `fp16_compress_hook`, or a pair of another state and the hook.
        find_unused_parameters: as for `DistributedDataParallel`; rows need it not.
        bucket_bytes: rows are exchanged in portions of about this size, while backward goes on.
        timeout: how long a rank waits for the others' rows [default: as its process group does].
        **ddp: other keywords of `DistributedDataParallel`: device_ids, output_device, broadcast_buffers, bucket_cap_mb,
            gradient_as_bucket_view, static_graph.

    Raises:
        ValueError: for an exchange that does not exist, layers that it is not for, a weight that others share, a model
            that is sharded or wrapped already, or models that differ from rank to rank.
        RuntimeError: without a process group.
        ExchangeError: when another rank has ended or hangs, or does something else.

    """

    def __init__(
        self,
        module: nn.Module,
        exchange: Literal["gathered", "agreed"] = "gathered",
        *,
        process_group: dist.ProcessGroup | None = None,
        comm_hook: Any = None,
        find_unused_parameters: bool = False,
        bucket_bytes: int = 1 << 20,
        timeout: timedelta | None = None,
        **ddp: Any,
    ) -> None:
        super().__init__()
        _check(module, exchange, ddp)
        entries, choosing = _entries(module, exchange), _choosing(module) if exchange == "agreed" else {}
        self._channel = channel = Channel(process_group, timeout)
        _check_alike(channel, [("exchange", exchange), ("bucket_bytes", bucket_bytes)], module, entries, choosing)
        if choosing:
            channel.open_scores()
        self._ddp: DistributedDataParallel | None
        vars(self)["_ddp"] = _beside(  # not among the modules, so that its names are not in the state dict
            module, entries, process_group=process_group, find_unused_parameters=find_unused_parameters, **ddp
        )
        self.module = module
        self._dense_bytes: float | None = _register(self._ddp, comm_hook, process_group)
        self._dense: list[tuple[Future[Tensor], Tensor, Pending]] = []
        for tensor in _not_of(self._ddp, module, entries):
            channel.broadcast(tensor)
        agreed = {id(layer.weight) for layer in choosing.values()}
        alone = channel.size == 1
        self._buckets = [] if alone else _buckets(channel, entries, agreed, bucket_bytes)
        self._agreement = Agreement(channel, list(choosing)) if choosing and not alone else None
        if self._agreement is not None:
            for number, layer in enumerate(choosing.values()):
                layer.choose = Choice(self._agreement, number)
        here = weakref.ref(self)
        self._by_messages = self._ddp is not None and _go_by_messages(self._ddp, channel, bucket_bytes)
        if self._ddp is not None and comm_hook is None and _is_waited_for_here(self._ddp, channel):
            self._ddp.register_comm_hook(here, _dense_is_there)
        weakref.finalize(self, channel.close).atexit = False
        for number, bucket in enumerate(self._buckets):
            for index, entry in enumerate(bucket.entries):
                hook = partial(_arrived, here, number, index)
                entry.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self._sync = True
        self._expected = False  # whether the last forward pass was one whose gradients are to be exchanged
        self._running = False  # whether a backward pass is
        self._sent = channel.sent(self._dense_bytes)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        if torch.is_grad_enabled():  # what is computed without gradients changes nothing for a pass that is to come
            self._running, self._expected = False, self._sync
            if self._agreement is not None:
                self._agreement.forget()
        out = (self.module if self._ddp is None else self._ddp)(*args, **kwargs)
        if torch.is_grad_enabled() and (self._buckets or self._agreement is not None):
            here = weakref.ref(self)
            for tensor in _find_tensors(out):  # type: ignore[no-untyped-call]
                if tensor.requires_grad:
                    tensor.register_hook(partial(_began, here))
        return out

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients without exchanging them, as in `DistributedDataParallel`: forward and backward within.

        Where ranks agree on selections they do so in here, too, so that what is accumulated is what one process would.
        """
        before, self._sync = self._sync, False
        try:
            with nullcontext() if self._ddp is None else self._ddp.no_sync():
                yield
        finally:
            self._sync = before

    @property
    def bytes_sent(self) -> BytesSent:
        """What this rank sent for the last gradients that were exchanged: with what led to them under `no_sync`."""
        return self._sent

    def loss_weight(self, examples: int) -> float:
        """Return what a rank's mean loss over so many examples has to be multiplied by where batches differ in size.

        With it, the mean of the ranks' gradients is the gradient of the mean loss over all examples: P b / Σ b. All
        ranks have to call it. One without any example takes part with a sum of losses, which is zero, not a mean.
        """
        total = self._channel.total(examples)
        if total < 1:
            raise ValueError("no rank has an example")
        return self._channel.size * examples / total

    def join(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse what `DistributedDataParallel` has for ranks with fewer batches."""
        raise NotImplementedError(
            "DataParallel cannot go on with fewer ranks: give all ranks as many batches, empty ones if need be, and"
            " multiply each loss by model.loss_weight(len(x))"
        )

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of this or of `DistributedDataParallel`, or one of the model itself, without `module.`."""
        if state_dict and not any(name.startswith("module.") for name in state_dict):
            return self.module.load_state_dict(state_dict, strict, assign)
        return super().load_state_dict(state_dict, strict, assign)

    # A backward pass.

    def _begin(self) -> None:
        if self._running:
            return
        self._running, self._announced, self._to_send = True, 0, 0
        Variable._execution_engine.queue_callback(self._finish)
        if self._agreement is not None:
            self._agreement.begin()
        for bucket in self._buckets:
            bucket.open()
            if self._expected:
                bucket.expect()

    def _advance(self) -> None:
        """Announce the buckets that are complete, and send those that all have announced: in order."""
        buckets = self._buckets
        while self._announced < len(buckets) and buckets[self._announced].complete():
            buckets[self._announced].announce()
            self._announced += 1
        while self._to_send < self._announced and buckets[self._to_send].announced():
            buckets[self._to_send].send()
            self._to_send += 1

    def _finish(self) -> None:
        """End the backward pass, when autograd has no more to do."""
        self._running = False
        if self._agreement is not None:
            self._agreement.end()
        if self._expected:
            for bucket in self._buckets[self._announced :]:
                bucket.announce()
            for bucket in self._buckets[self._to_send :]:
                bucket.send()
            for bucket in self._buckets:
                bucket.finish()
            self._sent = self._channel.sent(self._dense_bytes)
            self._channel.forget()
        for future, mean, waiting in self._dense:  # DistributedDataParallel takes them when this returns
            waiting.wait()
            future.set_result(mean)
        self._dense.clear()


def _began(here: weakref.ref[DataParallel], _: Tensor) -> None:
    model = here()
    if model is not None:
        model._begin()


def _arrived(here: weakref.ref[DataParallel], number: int, index: int, _: Tensor) -> None:
    model = here()
    if model is not None and model._expected:
        model._begin()
        model._buckets[number].arrive(index)
        model._advance()


def _dense_is_there(here, bucket):  # type: ignore[no-untyped-def]  # torch compares annotations, which are texts here
    """Sum dense gradients of `DistributedDataParallel`, whose hook this is; `_finish` waits for them, as it can say in
    one line that another rank has ended.
    """
    model, future = here(), Future[Tensor]()
    model._begin()
    channel, mean = model._channel, bucket.buffer().div_(model._channel.size)
    group = model._ddp.process_group  # whose collectives come in the order of its buckets
    pending = channel.sum(mean, tag=DENSE) if model._by_messages else channel.sum_in(mean, group)
    model._dense.append((future, mean, pending))
    return future


# What is set up once.


def _check(module: nn.Module, exchange: str, ddp: dict[str, Any]) -> None:
    """Raise for what cannot be wrapped."""
    if exchange not in _EXCHANGES:
        raise ValueError(f"exchange must be 'gathered' or 'agreed', not {exchange!r}")
    if unknown := set(ddp) - set(_OF_DDP):
        raise ValueError(f"DataParallel has no {sorted(unknown)[0]!r}: of DistributedDataParallel it takes {_OF_DDP}")
    if not dist.is_initialized():
        raise RuntimeError("DataParallel needs a process group: run under torchrun, and call init_process_group first")
    for name, layer in module.named_modules():
        what = f"{name or 'the model'} is"
        if isinstance(layer, DistributedDataParallel | DataParallel):
            raise ValueError(f"{what} wrapped in {type(layer).__name__} already: wrap the model itself")
        parts = any(hasattr(parameter, "device_mesh") for parameter in layer.parameters(False))
        if parts or getattr(layer, "_is_fsdp_managed_module", False):
            raise ValueError(
                f"{what} sharded (fully_shard, FullyShardedDataParallel, tensor parallel), which reduces gradients by"
                " itself: train it without DataParallel, with sparse=False"
            )


def _entries(module: nn.Module, exchange: str) -> list[Entry]:
    """Return the parameters that get rows; ValueError where a layer cannot have its rows exchanged."""
    found: dict[int, Entry] = {}
    holders: dict[int, list[tuple[str, bool]]] = {}
    for name, layer in module.named_modules():
        rows = isinstance(layer, MePropLinear | nn.Embedding | nn.EmbeddingBag) and layer.sparse
        for own, parameter in layer._parameters.items():
            if parameter is None:
                continue
            by_rows = rows and own == "weight"
            whole = f"{name}.{own}" if name else own
            holders.setdefault(id(parameter), []).append((whole, by_rows))
            if by_rows and parameter.requires_grad:
                n = parameter.shape[0]
                most = n
                if isinstance(layer, MePropLinear) and "unified" in layer.selection:
                    most = min(n, resolve_k(layer.k, n))
                found.setdefault(id(parameter), Entry(whole, parameter, most))
        if exchange == "agreed" and isinstance(layer, MePropLinear) and rows and layer.selection != "unified":
            raise ValueError(
                f"exchange='agreed' is for unified selections, and {name or 'the model'} has selection="
                f"{layer.selection!r}: take 'gathered', or selection='unified'"
            )
    for key, entry in found.items():
        others = [name for name, by_rows in holders[key] if not by_rows]
        if others:
            raise ValueError(
                f"{entry.name} is also {others[0]}, whose gradient is dense: set sparse=False of the layer with rows"
            )
    return list(found.values())


def _choosing(module: nn.Module) -> dict[str, MePropLinear]:
    """Return the layers whose selections are agreed on, by name: those with dense gradients, too."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, MePropLinear) and layer.selection == "unified"
    }


def _check_alike(
    channel: Channel,
    settings: list[tuple[str, Any]],
    module: nn.Module,
    entries: list[Entry],
    choosing: dict[str, MePropLinear],
) -> None:
    """Raise ValueError on all ranks if they would exchange different things: before any does, as they would wait."""
    most = {id(entry.parameter): entry.most for entry in entries}
    mine = [f"{name} {value}" for name, value in settings]
    for name, parameter in module.named_parameters():
        shape = "not initialized" if is_lazy(parameter) else f"{tuple(parameter.shape)} {parameter.dtype}"
        rows = f" of which {most[id(parameter)]} rows" if id(parameter) in most else ""
        mine.append(f"{name} {shape}{rows}" + ("" if parameter.requires_grad else ", not trained"))
    mine += [f"a selection of {name or 'the model'} to agree on" for name in choosing]
    for rank, theirs in enumerate(channel.descriptions(mine)):
        if theirs != mine:
            pairs = zip_longest(mine, theirs, fillvalue="nothing")
            own, other = next((a, b) for a, b in pairs if a != b)
            raise ValueError(f"rank {rank} has another model than rank {channel.rank}: {other} instead of {own}")


def _beside(module: nn.Module, entries: list[Entry], **keywords: Any) -> DistributedDataParallel | None:
    """Return what reduces all other parameters, None where there are none to train."""
    rows = {id(entry.parameter) for entry in entries}
    before = getattr(module, "_ddp_params_and_buffers_to_ignore", None)
    ignored = {*(before or ())}
    named = list(module.named_parameters(remove_duplicate=False))
    # A parameter of the model itself has a name of its own there: with a dot in front.
    ignored.update(f"{dot}{name}" for name, parameter in named if id(parameter) in rows for dot in ("", "."))
    if not any(parameter.requires_grad and name not in ignored for name, parameter in named):
        return None
    module._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]
    try:
        ddp = DistributedDataParallel(module, **keywords)
    finally:  # of this wrapper alone: another one, later, has to reduce them
        del module._ddp_params_and_buffers_to_ignore
        if before is not None:
            module._ddp_params_and_buffers_to_ignore = before
    ddp.reduced_beside = frozenset(entry.parameter for entry in entries)  # type: ignore[assignment]
    return ddp


def _not_of(ddp: DistributedDataParallel | None, module: nn.Module, entries: list[Entry]) -> Iterator[Tensor]:
    """Yield what starts as rank 0 has it, and is not brought there by DistributedDataParallel, where that is."""
    if ddp is None:
        yield from (tensor.detach() for tensor in (*module.parameters(), *module.buffers()))
    else:
        yield from (entry.parameter.detach() for entry in entries)


def _register(ddp: DistributedDataParallel | None, comm_hook: Any, group: Any) -> float | None:
    """Register a hook; return the bytes of the dense gradients that are summed, None where only the hook knows."""
    if ddp is None:
        return 0.0
    size = float(sum(p.numel() * p.element_size() for p in ddp._module_parameters if p.requires_grad))
    if comm_hook is None:
        return size
    state, hook = comm_hook if isinstance(comm_hook, tuple) else (group, comm_hook)
    ddp.register_comm_hook(state, hook)
    if hook not in _HALF:
        return None
    return float(sum(2 * p.numel() for p in ddp._module_parameters if p.requires_grad))


def _go_by_messages(ddp: DistributedDataParallel, channel: Channel, most: int) -> bool:
    """Whether dense gradients are so few that a message is faster than a collective, as it is between two ranks."""
    return channel.size == PAIR and sum(p.nbytes for p in ddp._module_parameters if p.requires_grad) <= most


def _is_waited_for_here(ddp: DistributedDataParallel, channel: Channel) -> bool:
    """Whether `_finish` can wait for dense gradients.

    Where the graph is static, the first pass waits for its hooks before any callback that comes after them.
    """
    return not ddp.static_graph and all(channel.has_messages(p.device) for p in ddp._module_parameters)


def _buckets(channel: Channel, entries: list[Entry], agreed: set[int], most: int) -> list[Bucket]:
    """Return the buckets, in the order in which a backward pass fills them if layers run as they were registered."""
    groups: list[list[Entry]] = []
    kind: Any = None
    size = 0
    for entry in reversed(entries):
        parameter = entry.parameter
        this = id(parameter) in agreed, parameter.dtype, parameter.device
        if this != kind or size >= most:
            groups.append([])
            kind, size = this, 0
        groups[-1].append(entry)
        size += entry.most * entry.width * parameter.element_size()
    return [
        (Agreed if id(group[0].parameter) in agreed else Gathered)(channel, group, number)
        for number, group in enumerate(groups)
    ]
