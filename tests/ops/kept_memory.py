"""What may become of a gradient in kept memory before the next one: shared by the tests of the kernels that keep it."""

import torch

from meprop_bench.ops import linear
from meprop_bench.ops.kernels import KERNELS, Request

B, M, N, K = 6, 160, 200, 5  # 125 KiB


class Passes:
    """Backward passes of a kernel that keeps the memory of dense gradients, and of one like it that does not.

    Args:
        kernel: the former, as `linear` has it.
        fresh: the latter, which gives the same bits.
        device: where.

    """

    def __init__(self, kernel, fresh, device="cpu"):
        self.kernel, self._fresh, self.device = kernel, fresh, device

    def weight(self, n=N, m=M, seed=0):
        """Return a parameter (n, m)."""
        numbers = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
        return torch.nn.Parameter(numbers.to(self.device))

    def batch(self, seed, b=B, n=N, m=M):
        """Return x (b, m) and dy (b, n)."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(b, width, generator=generator).to(self.device) for width in (m, n))

    def fresh(self, w, seed, selection="unified", k=K, b=B):
        """Return the gradient in fresh memory."""
        x, dy = self.batch(seed, b, *w.shape)
        request = Request(k, selection, False, False, True, False)
        return KERNELS[self._fresh].backward(dy, x, w.detach(), request)[1]

    def backward(self, w, seed, selection="unified", k=K, b=B):
        """Compute it, and return `w.grad`."""
        x, dy = self.batch(seed, b, *w.shape)
        linear(x, w, k=k, selection=selection, kernel=self.kernel).backward(dy)
        return w.grad

    def warm(self, w, selection="unified", steps=2):
        """Take steps after which the memory of the last gradient is kept and trusted."""
        for seed in range(100, 100 + steps):
            self.backward(w, seed, selection)
            w.grad = None


def same(found, expected):
    """Whether all bits are the same."""
    bits = torch.int32 if expected.element_size() == 4 else torch.int16
    return torch.equal(found.detach().view(bits), expected.view(bits))


HOLDERS = {
    "the gradient": lambda g: g,
    "a view": lambda g: g[3:].mT,
    "an alias": lambda g: g.detach(),
    "data": lambda g: g.data,
    "an array of NumPy": lambda g: g.numpy(),
    "a capsule of DLPack": torch.utils.dlpack.to_dlpack,
    "a tensor by way of DLPack": lambda g: torch.from_dlpack(g.data),
    "a tensor of NumPy's by way of DLPack": lambda g: torch.from_dlpack(g.numpy()),
    "its storage": lambda g: g.untyped_storage(),
    "a copy on write": torch._lazy_clone,
    "another graph": lambda g: torch.ones_like(g).requires_grad_() * g,
}

COUNTED = {
    "one number": lambda w, _: w.grad.index_put_((torch.tensor(7), torch.tensor(3)), w.new_ones(())),
    "one number more": lambda w, _: w.grad.select(0, 7).select(0, 3).fill_(1),
    "all": lambda w, _: w.grad.add_(1),
    "foreach": lambda w, _: torch._foreach_add_([w.grad], 1),
    "its transposed view": lambda w, _: w.grad.mT.add_(1),
    "an alias": lambda w, _: w.grad.detach().add_(1),
    "accumulation": lambda w, passes: passes.backward(w, 50),
    "clipping": lambda w, _: torch.nn.utils.clip_grad_norm_([w], 1e-3),
}
UNCOUNTED = {
    "weight decay": lambda w, _: w.grad.data.add_(w.data, alpha=1e-3),
    "weight decay of a pruned weight": lambda w, _: w.grad.data.add_(
        w.data * (torch.arange(M, device=w.device) % 16 == 5)
    ),
    "a small constant": lambda w, _: w.grad.data.add_(1e-30),
    "minus zero": lambda w, _: w.grad.data.neg_(),
    "not a number": lambda w, _: w.grad.data.mul_(float("nan")),
    "NumPy": lambda w, _: w.grad.numpy().__iadd__(1),
    "DLPack": lambda w, _: torch.from_dlpack(w.grad.data).add_(1),
    "one row": lambda w, _: w.grad.data[7].fill_(1),
    "the last row": lambda w, _: w.grad.data[-1].fill_(1),
    "what another process has": lambda w, passes: w.grad.data.add_(passes.fresh(w, 50, k=1)),
    "all zeroed": lambda w, _: w.grad.data.zero_(),
    "a half": lambda w, _: w.grad.data.mul_(0.5),
    "noise": lambda w, _: w.grad.data.normal_(),
}
CHANGES = {**COUNTED, **UNCOUNTED}
ON_A_CPU = ("an array of NumPy", "a tensor of NumPy's by way of DLPack", "NumPy", "shared memory")
"""What is not to be had on a GPU."""

REPLACED = {
    "other data": lambda w: setattr(w, "data", torch.randn_like(w)),
    "fewer rows": lambda w: setattr(w, "data", w.new_ones(N - 30, M)),
    "other columns": lambda w: setattr(w, "data", w.new_ones(M, N)),
    "a storage without memory": lambda w: w.grad.untyped_storage().resize_(0),
    "a larger storage": lambda w: w.grad.untyped_storage().resize_(8 * N * M),
    "shared memory": lambda w: w.grad.share_memory_(),
    "a smaller gradient": lambda w: w.grad.detach().resize_(3, 3),
    "a gradient that is set": lambda w: w.grad.set_(torch.zeros_like(w)),
}


def check_holder(passes, name, selection):
    """Memory that somebody holds is left alone, and taken again when he does not."""
    w = passes.weight()
    passes.warm(w, selection)
    holder = HOLDERS[name](passes.backward(w, 0, selection))
    before, expected = _numbers(holder), passes.fresh(w, 0, selection)
    w.grad = None
    for seed in (1, 2, 3, 4):
        assert same(passes.backward(w, seed, selection), passes.fresh(w, seed, selection))
        w.grad = None
    if before is None:
        assert same(torch.utils.dlpack.from_dlpack(holder), expected)
    else:
        assert torch.equal(_numbers(holder), before)
    del holder
    for seed in (5, 6, 7):
        assert same(passes.backward(w, seed, selection), passes.fresh(w, seed, selection))
        w.grad = None


def _numbers(holder):
    if isinstance(holder, torch.UntypedStorage):
        return torch.empty(0, device=holder.device).set_(holder).clone()
    if torch.is_tensor(holder) and holder.grad_fn is not None:
        return torch.autograd.grad(holder.sum(), holder.grad_fn.next_functions[0][0].variable, retain_graph=True)[0]
    if not hasattr(holder, "shape"):  # a capsule can be read once
        return None
    return torch.as_tensor(holder).clone()


def check_change(passes, name, selection, steps):
    """A change in place is found, however it is made."""
    w = passes.weight()
    passes.warm(w, selection, steps)
    for seed in range(6):
        passes.backward(w, seed, selection)
        CHANGES[name](w, passes)
        w.grad = None
        assert same(passes.backward(w, seed + 10, selection), passes.fresh(w, seed + 10, selection))
        w.grad = None


def check_replaced(passes, name, selection):
    """Weights, gradients and storages that become others are not mistaken for what they were."""
    w = passes.weight()
    passes.warm(w, selection)
    for seed in range(3):
        passes.backward(w, seed, selection)
        REPLACED[name](w)
        w.grad = None
        assert same(passes.backward(w, seed + 10, selection), passes.fresh(w, seed + 10, selection))
        w.grad = None


def check_that_it_is_kept(passes, selection):
    """Only the rows written last are zeroed, and what is said not to be found, is not: one number of another row."""
    w = passes.weight(20, 4096)
    address = passes.backward(w, 0, selection, 1, 1).data_ptr()
    written = {int(passes.fresh(w, seed, selection, 1, 1).abs().sum(1).argmax()) for seed in (0, 1)}
    row = min(set(range(20)) - written)
    w.grad.data[row, 3001] = 7
    w.grad = None
    found = passes.backward(w, 1, selection, 1, 1)
    assert found.data_ptr() == address
    assert found[row, 3001] == 7
    found[row, 3001] = 0
    assert same(found, passes.fresh(w, 1, selection, 1, 1))


def check_that_trust_is_lost(passes, selection):
    """What was found once is never trusted again."""
    w = passes.weight(20, 4096)
    address = passes.backward(w, 0, selection, 1, 1).data_ptr()
    w.grad.data.add_(1)
    w.grad = None
    for seed in range(1, 6):
        found = passes.backward(w, seed, selection, 1, 1)
        assert found.data_ptr() == address
        assert same(found, passes.fresh(w, seed, selection, 1, 1))
        w.grad.data[seed, 100 * seed] = 1  # not to be found
        if seed == 3:
            w.grad.add_(0)  # and after a change that is counted
        del found
        w.grad = None


def check_dark_inputs(passes, fresh, seeds):
    """A process adds a single row of another batch, of which, as in images, three in four inputs are always 0."""
    lit = torch.zeros(28, 28, device=passes.device)
    lit[7:21, 7:21] = 1
    for seed in range(seeds):
        w = passes.weight(500, 784)
        for step in range(3):
            x, dy = passes.batch(1000 * seed + step, n=500, m=784)
            x = x * lit.flatten()
            linear(x, w, k=K, selection="unified", kernel=passes.kernel).backward(dy)
            _, expected, _ = KERNELS[fresh].backward(dy, x, w.detach(), Request(K, "unified", False, True, True, True))
            assert same(w.grad, expected)
            w.grad.data[(seed * 7 + step) % 500].add_(x[1])
            w.grad = None
