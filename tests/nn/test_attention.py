"""Attention with sparsified projections is torch's, but for the backward pass of these."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from meprop_bench.nn import MePropLinear, MePropMultiheadAttention, convert, record_calls, revert
from meprop_bench.ops import resolve_k

E, HEADS, BATCH, LENGTH, SOURCE = 8, 2, 3, 4, 5
KINDS = (nn.Linear, nn.MultiheadAttention)


def pair(k=3, selection="example", kernel="auto", **keywords):
    """torch's layer and ours with the same numbers."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(E, HEADS, **keywords)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    ours = MePropMultiheadAttention(E, HEADS, k=k, selection=selection, kernel=kernel, **keywords)
    ours.load_state_dict(plain.state_dict())
    assert list(ours.state_dict()) == list(plain.state_dict())
    return plain, ours


def inputs(layer, how, batched=True):
    """Query, key and value: one tensor, two, or three."""
    torch.manual_seed(1)

    def draw(length, size):
        shape = (BATCH, length, size) if layer.batch_first else (length, BATCH, size)
        return torch.randn(shape if batched else (length, size), dtype=layer.out_proj.weight.dtype, requires_grad=True)

    if how == "self":
        return (draw(LENGTH, E),) * 3
    key = draw(SOURCE, layer.kdim)
    return draw(LENGTH, E), key, key if how == "cross" else draw(SOURCE, layer.vdim)


def masks(padding, mask, source, batched=True):
    hidden = torch.zeros((BATCH, source) if batched else (source,), dtype=torch.bool)
    hidden[..., -1] = True
    later = torch.ones(LENGTH, source, dtype=torch.bool).triu(1)
    if mask == 3:
        later = later.repeat((BATCH if batched else 1) * HEADS, 1, 1)
    return hidden if padding else None, later if mask else None


def run(layer, args, **keywords):
    """Output, weights, and the gradients of all that a layer takes and has."""
    torch.manual_seed(2)
    y, weights = layer(*args, **keywords)
    loss = (y * torch.arange(y.numel()).view(y.shape)).sum()
    loss = loss if weights is None else loss + weights.pow(2).sum()
    leaves = [*dict.fromkeys(args), *layer.parameters()]
    return [y, weights, *torch.autograd.grad(loss, leaves)]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a is None and b is None) or (torch.equal(a, b) and a.stride() == b.stride())


OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 6, "vdim": 7},
    "added": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"dropout": 0.4, "batch_first": True},
}


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("how", ["self", "cross", "three"])
@pytest.mark.parametrize("name", OPTIONS)
def test_with_dense_projections_it_is_torchs_layer_bit_for_bit(name, how, need_weights):
    if name == "other sizes" and how != "three":
        return
    plain, ours = pair(**OPTIONS[name])
    ours._project = lambda x, w, b, **_: F.linear(x, w, b)
    source = LENGTH if how == "self" else SOURCE
    for padding, mask, causal, floats, batched in (
        (0, 0, 0, 0, 1),
        (1, 0, 0, 0, 0), (0, 2, 1, 0, 1), (0, 2, 0, 1, 0), (1, 2, 1, 1, 1), (1, 3, 0, 0, 1), (0, 3, 1, 0, 0),
    ):  # fmt: skip
        hidden, later = masks(padding, mask, source, batched)
        if floats:
            hidden, later = (None if m is None else torch.zeros(m.shape).masked_fill(m, -2.0) for m in (hidden, later))
        keywords = {"key_padding_mask": hidden, "attn_mask": later, "is_causal": bool(causal)}
        keywords |= {"need_weights": need_weights, "average_attn_weights": bool(padding)}
        args = inputs(plain, how, batched)
        assert_equal(run(plain, args, **keywords), run(ours, args, **keywords))


def seen(layer, args, **keywords):
    """What reaches each projection on its way forth and back, by the name of the product."""
    found, function = [], type(layer)._project

    def noted(x, w, b, **how):
        y = function(x, w, b, **how)
        found.append([how["k"], tuple(w.shape), y])
        y.retain_grad()
        return y

    layer._project = noted
    layer(*args, **keywords)[0].pow(2).sum().backward()
    del layer._project
    return [(k, shape, y.grad) for k, shape, y in found]


@pytest.mark.parametrize(
    ("how", "shapes"),
    [
        ("self", [(9, (24, 8)), (3, (8, 8))]),
        ("cross", [(3, (8, 8)), (6, (16, 8)), (3, (8, 8))]),
        ("three", [(3, (8, 8))] * 4),
    ],
)
def test_k_is_of_each_projection_and_a_product_is_one_as_torchs(how, shapes):
    _, ours = pair()
    assert [(k, shape) for k, shape, _ in seen(ours, inputs(ours, how))] == shapes
    ours.k = 0.25
    assert [k for k, *_ in seen(ours, inputs(ours, how))] == [2 * k // 3 for k, _ in shapes]


@pytest.mark.parametrize("selection", ["example", "unified"])
def test_the_gradient_is_that_of_the_k_greatest(selection):
    """Of one example, whose dy are those of the dense layer where nothing above was left out."""
    _, ours = pair(selection=selection)
    x = torch.randn(1, 1, E)
    (_, _, dy_in), (_, _, dy_out) = seen(ours, (x, x, x))
    for dy, weight, k in ((dy_in, ours.in_proj_weight, 9), (dy_out, ours.out_proj.weight, 3)):
        rows = dy.abs().flatten().topk(k).indices
        assert set(weight.grad.ne(0).any(1).nonzero().flatten().tolist()) <= set(rows.tolist())
    assert torch.allclose(ours.in_proj_bias.grad, dy_in.flatten())
    assert ours.out_proj.weight.grad.ne(0).any(1).sum() == 3


def test_all_outputs_kept_is_exactly_torchs_layer_and_so_is_evaluation():
    for k in (E, 1.0, 20):
        plain, ours = pair(k)
        args = inputs(plain, "self")
        assert_equal(run(plain, args), run(ours, args))
    plain, ours = pair(batch_first=True)
    x = inputs(plain, "self")[0].detach()
    with torch.no_grad():
        for training in (True, False):
            assert_equal(plain.train(training)(x, x, x), ours.train(training)(x, x, x))
    assert_equal(plain.eval()(x, x, x), ours.eval()(x, x, x))


def test_what_does_not_fit_is_refused():
    plain, ours = pair()
    q, k, v = inputs(plain, "three")
    for args, keywords in (
        ((q, k, v), {"is_causal": True}),
        ((q, k[0], v), {}),
        ((q, k, v), {"attn_mask": torch.zeros(1, SOURCE)}),
        ((q, k, v), {"key_padding_mask": torch.zeros(SOURCE, BATCH)}),
        ((q, k, v), {"attn_mask": torch.zeros(LENGTH, SOURCE, dtype=torch.int64)}),
        ((q, k, v[:2]), {}),
        ((q, k[:, :1], v[:, :1]), {}),
    ):
        for layer in (plain, ours):
            with pytest.raises((AssertionError, RuntimeError, ValueError)):
                layer(*args, **keywords)
    for keywords in ({"k": 0}, {"k": 2, "selection": "no"}, {"k": 2, "kernel": "no"}):
        with pytest.raises(ValueError, match=r"not|unknown"):
            MePropMultiheadAttention(E, HEADS, **keywords)


def test_the_interface_is_torchs():
    theirs, ours = (inspect.signature(kind.forward).parameters for kind in MePropMultiheadAttention.__mro__[0:4:3])
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    assert repr(MePropMultiheadAttention(E, HEADS, k=3)).startswith(
        "MePropMultiheadAttention(\n  embed_dim=8, num_heads=2, k=3, selection=example"
    )


def test_convert_and_revert():
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(E, HEADS), "mlp": nn.Linear(E, 20), "out": nn.Linear(20, 2)}
    )
    plain, before = copy.deepcopy(model), repr(model)
    state = [dict(vars(module)) for module in model.modules()]
    converted = convert(model, k=0.25, kernel="masked", kinds=KINDS)
    assert list(converted) == ["attention", "mlp"]
    assert converted.left == {"out": "the output layer, which stays dense unless a filter takes it"}
    assert type(model["attention"]) is MePropMultiheadAttention
    assert model["attention"].kernel == "masked"
    assert converted.dense == {}
    assert str(converted).splitlines()[1:3] == [
        "  converted  attention: MePropMultiheadAttention("
        "embed_dim=8, num_heads=2, k=0.25, selection=example, kernel=masked)",
        f"  converted  mlp: {model['mlp']}",
    ]
    model["attention"].k = E
    assert converted.dense == {"attention": f"k = {E} keeps all of its {E}"}
    model["attention"].k = 0.25
    assert convert(copy.deepcopy(plain), k=0.25).left["attention"] == "nn.MultiheadAttention is not among the kinds"
    with pytest.warns(UserWarning, match="2 x already converted"):
        convert(model, k=0.25, kinds=KINDS)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(twin) == repr(model)
        x = torch.randn(4, 2, E)
        assert torch.equal(twin["attention"](x, x, x)[0], plain["attention"](x, x, x)[0])
    assert repr(revert(model)) == before
    assert [dict(vars(module)) for module in model.modules()] == state
    with pytest.raises(ValueError, match=r"sparse=True does not apply to nn\.MultiheadAttention"):
        convert(model, k=2, sparse=True, kinds=KINDS)


def test_a_class_derived_from_torchs_is_left():
    class Own(nn.MultiheadAttention):
        pass

    model = nn.Sequential(Own(E, HEADS), nn.Linear(E, 3), nn.Linear(3, 2))
    assert (
        convert(model, k=2, kinds=KINDS).left["0"] == "its class Own is derived from torch's and may do something else"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    plain, ours = pair(dtype=dtype, batch_first=True)
    args = inputs(plain, "self")
    assert torch.equal(plain(*args)[0], ours(*args)[0])
    assert all(found.dtype == dtype for found in run(ours, args))


def test_autocast():
    plain, ours = pair()
    args = inputs(plain, "self")
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (layer(*args, need_weights=False)[0] for layer in (plain, ours))
    assert other.dtype == torch.bfloat16
    assert torch.equal(one, other)
    other.pow(2).sum().backward(retain_graph=True)
    assert ours.in_proj_weight.grad.dtype == torch.float32
    assert not torch.equal(*(torch.autograd.grad(y.sum(), args[0], retain_graph=True)[0] for y in (one, other)))


@pytest.mark.parametrize(("how", "need_weights"), [("self", False), ("cross", True), ("three", False)])
def test_compiled_it_is_the_same_and_k_may_change(how, need_weights):
    torch._dynamo.reset()
    _, ours = pair(batch_first=True, dtype=torch.float64)
    args = inputs(ours, how)
    _, mask = masks(False, 2, LENGTH if how == "self" else SOURCE)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, backend=counter, fullgraph=True)
    for k in (3, 2, 5, 4):
        ours.k = k
        keywords = {"need_weights": need_weights, "attn_mask": mask}
        torch.testing.assert_close(run(compiled, args, **keywords), run(ours, args, **keywords))
    assert counter.frame_count == 2  # the first change makes k a variable of the graph


def test_exported_it_is_torchs():
    plain, ours = pair(batch_first=True)
    x = inputs(plain, "self")[0].detach()
    programs = [torch.export.export(layer, (x, x, x)) for layer in (plain, ours)]
    assert len({str([node.target for node in program.graph.nodes]) for program in programs}) == 1


def test_frozen_projections_have_no_gradient():
    _, ours = pair()
    ours.in_proj_weight.requires_grad_(False)
    x = torch.randn(LENGTH, BATCH, E, requires_grad=True)
    ours(x, x, x)[0].sum().backward()
    assert ours.in_proj_weight.grad is None
    assert x.grad is not None


def encoder(**keywords):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(E, HEADS, 16, batch_first=True, **keywords)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_trains_sparsely_and_evaluates_as_torchs(norm_first):
    plain = encoder(norm_first=norm_first, dropout=0.0)
    ours = copy.deepcopy(plain)
    assert list(convert(ours, k=0.25, kinds=KINDS, filter=lambda *_: True)) == ["self_attn", "linear1", "linear2"]
    x = torch.randn(BATCH, LENGTH, E)
    hidden = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    hidden[0, -1] = True
    with record_calls(ours) as calls:
        y = ours(x, src_key_padding_mask=hidden)
    assert calls.never_ran == []
    assert torch.equal(y, plain(x, src_key_padding_mask=hidden))
    ours(torch.randn(1, 1, E)).pow(2).sum().backward()
    assert ours.linear1.weight.grad.ne(0).any(1).sum() <= 4
    assert ours.self_attn.out_proj.weight.grad.ne(0).any(1).sum() <= 2
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert torch.equal(
                ours.eval()(x, src_key_padding_mask=hidden), plain.eval()(x, src_key_padding_mask=hidden)
            )


def test_a_stack_of_encoder_and_decoder_layers():
    torch.manual_seed(0)
    plain = nn.Transformer(E, HEADS, 1, 1, 16, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(plain)
    converted = convert(ours, k=0.25, kinds=KINDS, filter=lambda *_: True)
    assert len(converted) == 7
    assert not [name for name in converted.left if "norm" not in name]
    source, target = torch.randn(2, 5, E), torch.randn(2, 4, E)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, -1] = True  # so that nested tensors are made of it in evaluation
    keywords = {"tgt_mask": mask, "src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}
    for training, gradients in ((True, True), (False, True), (False, False)):
        with torch.set_grad_enabled(gradients):
            one, other = (model.train(training)(source, target, **keywords) for model in (plain, ours))
        assert torch.equal(one, other)


def test_fused_projections_are_one_linear_layer():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(E, 3 * E), nn.Linear(E, E)

        def forward(self, x):
            batch, length, _ = x.shape
            parts = self.qkv(x).view(batch, length, 3, HEADS, E // HEADS).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*parts, is_causal=True)
            return self.proj(y.transpose(1, 2).reshape(x.shape))

    model = Attention()
    converted = convert(model, k={"qkv": 0.25, "*": 0.5}, filter=lambda *_: True)
    assert [resolve_k(layer.k, layer.out_features) for layer in converted.values()] == [6, 4]
    model(torch.randn(1, 1, E)).pow(2).sum().backward()
    assert model.qkv.weight.grad.ne(0).any(1).sum() <= 6
    assert model.proj.weight.grad.ne(0).any(1).sum() == 4
    assert all(type(layer) is MePropLinear for layer in converted.values())
