import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from meprop_bench.nn import MePropConv1d, MePropConv2d, MePropLinear, convert, revert


def mlp():
    return nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Sequential(nn.Linear(20, 30), nn.Tanh()), nn.Linear(30, 4))


def test_all_but_the_output_layer():
    model = mlp()
    x = torch.randn(6, 5)
    before = model(x)
    layers, parameters = list(model.modules()), list(model.parameters())
    turned = convert(model, k=0.1, selection="unified", sparse=True, kernel="gather")
    assert list(turned) == ["0", "2.0"]
    assert all(turned[name] is model.get_submodule(name) for name in turned)
    assert all(type(layer) is MePropLinear for layer in turned.values())
    assert type(model[3]) is nn.Linear
    assert [(la.k, la.selection, la.sparse, la.kernel) for la in turned.values()] == [
        (0.1, "unified", True, "gather")
    ] * 2
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), before)
    model(x).sum().backward()
    assert model[0].weight.grad.coalesce().indices().numel() == 2
    assert model[2][0].weight.grad.coalesce().indices().numel() == 3
    assert not model[3].weight.grad.is_sparse
    with pytest.warns(UserWarning, match="2 x already converted"):
        assert convert(model, k=0.5) == {}
    assert turned["0"].k == 0.1


def test_the_filter_alone_decides():
    seen = []

    def chosen(module, name):
        seen.append((name, type(module)))
        return module.out_features < 25

    model = mlp()
    assert list(convert(model, k=1, filter=chosen)) == ["0", "3"]
    assert seen == [("0", nn.Linear), ("2.0", nn.Linear), ("3", nn.Linear)]


def test_a_bad_method_changes_nothing():
    for keywords in ({"k": 0}, {"k": 3, "selection": "no"}, {"k": 3, "kernel": "no"}):
        model = mlp()
        with pytest.raises(ValueError, match=r"not|unknown"):
            convert(model, **keywords)
        assert type(model[0]) is nn.Linear


def test_the_model_itself_a_layer():
    layer = nn.Linear(5, 9)
    with pytest.raises(ValueError, match="from_linear"):
        convert(layer, k=2)
    assert type(layer) is nn.Linear
    assert convert(layer, k=2, filter=lambda module, name: True) == {"": layer}
    assert type(layer) is MePropLinear
    with pytest.warns(UserWarning, match="no layers with weights"):
        assert convert(nn.ReLU(), k=2) == {}


def test_a_shared_layer_is_turned_once_and_everywhere():
    shared = nn.Linear(5, 5)
    model = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared, nn.ReLU()), "out": nn.Linear(5, 2)})
    model.plain = [shared]
    turned = convert(model, k=2)
    assert list(turned) == ["first"]
    assert model["first"] is model["second"][0] is model.plain[0] is turned["first"]
    assert type(shared) is MePropLinear


def test_hooks_stay():
    model = mlp()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    convert(model, k=2)
    model(torch.randn(3, 5)).sum().backward()
    assert calls == ["forward", "backward"]


def test_subclasses_are_left_alone():
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "lazy": nn.LazyLinear(3),
            "normed": parametrizations.weight_norm(nn.Linear(8, 8)),
            "plain": nn.Linear(8, 8),
            "out": nn.Linear(8, 2),
        }
    )
    assert list(convert(model, k=2, filter=lambda module, name: True)) == ["plain", "out"]


def test_a_forward_put_on_the_instance_is_left_alone():
    model = mlp()
    model[0].forward = lambda x: x.new_zeros(len(x), 20)
    assert list(convert(model, k=2)) == ["2.0"]


def test_parametrization_and_pruning_go_on_top():
    model = mlp()
    convert(model, k=2)
    parametrizations.weight_norm(model[0])
    prune.l1_unstructured(model[2][0], "weight", amount=0.5)
    model(torch.randn(1, 5)).sum().backward()
    assert int(model[0].parametrizations.weight.original1.grad.ne(0).any(1).sum()) <= 2
    assert int(model[2][0].weight_orig.grad.ne(0).any(1).sum()) <= 2
    pruned_first = mlp()
    prune.l1_unstructured(pruned_first[0], "weight", amount=0.5)
    assert "0" in convert(pruned_first, k=2)
    pruned_first(torch.randn(1, 5)).sum().backward()
    assert int(pruned_first[0].weight_orig.grad.ne(0).any(1).sum()) <= 2


def test_converted_models_copy_and_pickle():
    model = mlp()
    convert(model, k=2)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(twin) == repr(model)


def test_transformer_layer_trains():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    turned = convert(model, k=1, filter=lambda module, name: name == "linear1")
    model(torch.randn(1, 1, 8)).pow(2).sum().backward()
    assert list(turned) == ["linear1"]
    assert int(model.linear1.weight.grad.ne(0).any(1).sum()) <= 1
    assert model.linear2.weight.grad.ne(0).any(1).all()


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten(), nn.Linear(72, 8), nn.Linear(8, 3)
    )


def test_convolutions_are_turned_when_they_are_asked_for():
    model = cnn()
    assert list(convert(model, k=0.1)) == ["4"]
    turned = convert(model, k=0.2, selection="random", kernel="masked", kinds=(nn.Conv2d,))
    assert list(turned) == ["0", "2"]  # all of them
    assert [type(layer) for layer in turned.values()] == [MePropConv2d] * 2
    assert [(layer.k, layer.selection, layer.kernel) for layer in turned.values()] == [(0.2, "random", "masked")] * 2
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(twin) == repr(model)


def test_several_kinds_at_once_and_a_filter_for_all():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), cnn())
    turned = convert(model, k=0.1, kinds=(nn.Linear, nn.Conv1d, nn.Conv2d))
    assert list(turned) == ["0", "1.0", "1.2", "1.4"]
    assert type(turned["0"]) is MePropConv1d
    seen = []
    convert(cnn(), k=0.1, kinds=(nn.Conv2d, nn.Linear), filter=lambda module, name: seen.append(name))
    assert seen == ["0", "2", "4", "5"]
    with pytest.warns(UserWarning, match="not among the kinds"):
        assert convert(nn.Linear(3, 4), k=2, kinds=(nn.Conv2d,)) == {}
    assert list(convert(nn.Conv2d(3, 4, 1), k=2, kinds=(nn.Conv2d,))) == [""]


def test_a_layer_that_cannot_be_turned_changes_nothing():
    model = nn.ModuleList([nn.Linear(5, 7), nn.LSTM(5, 7), nn.LSTM(5, 7, proj_size=3), nn.Linear(3, 2)])
    before, names = repr(model), [set(vars(layer)) for layer in model]
    with pytest.raises(
        ValueError, match=r"cannot convert '2': proj_size must be 0, not 3: .*, so leave it out by the fil"
    ):
        convert(model, k=2, kinds=(nn.Linear, nn.LSTM))
    assert repr(model) == before
    assert [set(vars(layer)) for layer in model] == names
    assert list(convert(model, k=2, kinds=(nn.LSTM,), filter=lambda module, name: name != "2")) == ["1"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"kinds": (nn.BatchNorm2d,)},
            "no layers of the kind .*BatchNorm2d.* choose from nn.Linear, nn.Conv1d, nn.Conv2d",
        ),
        ({"kinds": (nn.Conv2d, MePropConv2d)}, "no layers of the kind .*MePropConv2d"),
        ({"kinds": ()}, r"kinds must be a tuple of one or more of nn.Linear.*, not \(\)"),
        ({"kinds": nn.Conv2d}, "kinds must be a tuple"),
        ({"kinds": (nn.Linear, nn.Conv2d), "sparse": True}, "sparse=True does not apply to nn.Conv2d"),
        ({"kinds": (nn.Linear, nn.Conv2d), "selection": "unified"}, "for convolutions, not 'unified'"),
        ({"kinds": (nn.Conv2d,), "kernel": "coo"}, "unknown kernel 'coo' for convolutions"),
        ({"kinds": (nn.Conv2d,), "k": 0}, "not 0"),
    ],
)
def test_what_does_not_go_together_changes_nothing(keywords, message):
    model = cnn()
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        convert(model, **{"k": 0.1, **keywords})
    assert repr(model) == before


def everything():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(5, 20, bias=False),
            "lstm": nn.LSTM(5, 7, 2, bidirectional=True),
            "gru": nn.GRU(5, 7),
            "rnn": nn.RNN(5, 7, nonlinearity="relu"),
            "conv1d": nn.Conv1d(4, 6, 3, padding="same"),
            "conv2d": nn.Conv2d(4, 6, 3, 2, 1, groups=2, padding_mode="circular"),
            "out": nn.Linear(20, 3),
        }
    )
    model["again"] = model["linear"]
    model["out"].weight = nn.Parameter(model["out"].weight.detach())
    model["tied"] = nn.Linear(20, 3)
    model["tied"].weight = model["out"].weight
    return model


ALL_KINDS = (nn.Linear, nn.LSTM, nn.GRU, nn.RNN, nn.Conv1d, nn.Conv2d)


def test_revert_is_the_inverse_of_convert():
    model = everything()
    model["lstm"].eval()
    model["linear"].weight.requires_grad_(False)
    model["out"].register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, state = repr(model), [dict(vars(module)) for module in model.modules()]
    modules, parameters = list(model.modules()), list(model.named_parameters(remove_duplicate=False))
    for _ in range(2):
        assert len(convert(model, k=0.5, kinds=ALL_KINDS, filter=lambda *_: True)) == 8
        model["lstm"].activeness = {}
        model["linear"].k = 1.0
        assert revert(model) is model
        assert repr(model) == before
        assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
        assert [dict(vars(module)) for module in model.modules()] == state
        found = list(model.named_parameters(remove_duplicate=False))
        assert [name for name, _ in found] == [name for name, _ in parameters]
        assert all(p is q for (_, p), (_, q) in zip(found, parameters, strict=True))
    assert model["again"] is model["linear"]
    assert model["tied"].weight is model["out"].weight
    assert optimizer.param_groups[0]["params"][0] is model["linear"].weight


def test_a_reverted_model_needs_nothing_of_this_package(tmp_path):
    model = nn.Sequential(nn.Linear(5, 20), nn.LSTM(20, 7))
    convert(model, k=2, kinds=(nn.Linear, nn.LSTM), filter=lambda *_: True)
    assert b"meprop_bench" in pickle.dumps(model)
    plain = revert(copy.deepcopy(model))
    assert type(model[0]) is MePropLinear
    assert b"meprop_bench" not in pickle.dumps(plain)
    torch.save(plain, tmp_path / "model.pt")
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "model.pt")) == {
        "torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Linear", "torch.nn.modules.rnn.LSTM",
    }  # fmt: skip
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.LSTM]):
        loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    x = torch.randn(3, 2, 5)
    assert torch.equal(loaded(x)[0], plain(x)[0])
    assert torch.jit.script(plain)(x)[0].shape == (3, 2, 7)


def test_revert_of_one_layer_and_of_layers_made_by_hand():
    layer = nn.Linear(5, 9)
    convert(layer, k=2, filter=lambda *_: True)
    assert type(revert(layer)) is nn.Linear
    for made in (MePropLinear(5, 9, k=2, sparse=True), MePropConv2d(1, 2, 3, k=2), MePropConv1d(1, 2, 3, k=0.1)):
        plain = revert(made)
        assert type(plain).__module__.startswith("torch.nn.")
        assert vars(plain).keys() == vars(type(plain)(5, 9, 3)).keys()
    model = nn.Sequential(nn.ReLU())
    assert revert(model) is model


def test_a_class_that_was_made_later_is_not_reverted():
    model = mlp()
    convert(model, k=2)
    parametrizations.weight_norm(model[2][0])
    with pytest.raises(
        ValueError, match=r"cannot revert '2\.0': undo first what made its class ParametrizedMePropLinear"
    ):
        revert(model)
    assert type(model[0]) is MePropLinear
    nn.utils.parametrize.remove_parametrizations(model[2][0], "weight")
    assert type(revert(model)[2][0]) is nn.Linear


def blocks():
    def block():
        return nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8), "conv": nn.Conv1d(8, 8, 3)})

    return nn.ModuleDict({"blocks": nn.ModuleList([block(), block()]), "head": nn.Linear(8, 5)})


def test_k_by_patterns_the_first_that_matches_counts():
    model = blocks()
    found = convert(model, k={"blocks.1.*": 2, "blocks.*.qkv": 0.05}, kinds=(nn.Linear, nn.Conv1d))
    assert {name: layer.k for name, layer in found.items()} == {
        "blocks.0.qkv": 0.05, "blocks.1.qkv": 2, "blocks.1.proj": 2, "blocks.1.conv": 2,
    }  # fmt: skip
    assert found.left == {
        "blocks.0.proj": "no pattern of k matches its name",
        "blocks.0.conv": "no pattern of k matches its name",
        "head": "the output layer, which stays dense unless a filter takes it",
    }
    assert convert(blocks(), k={"blocks.[01].?roj": 1, "*": 3}, filter=lambda *_: True)["head"].k == 3
    assert list(convert(nn.Linear(5, 9), k={"": 2}, filter=lambda *_: True)) == [""]


def test_a_pattern_that_is_shadowed_still_matches():
    assert {layer.k for layer in convert(blocks(), k={"*": 2, "blocks.0.qkv": 3}).values()} == {2}


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ({"block.*.qkv": 0.1}, r"k: 'block\.\*\.qkv' matches no layer; there are .*blocks\.0\.qkv"),
        ({"blocks.*": 0.1, "Head": 0.1}, r"k: 'Head' matches no layer; there are head"),
        ({"zzz": 0.1}, r"k: 'zzz' matches no layer; there are blocks\.0\.qkv, blocks\.0\.proj, blocks\.0\.conv$"),
        (
            {"*": 0.1, "yyy": 0.1},
            r"k: 'yyy' matches no layer; there are blocks\.0\.qkv, blocks\.0\.proj, blocks\.1\.qkv",
        ),
        (
            {"blocks.*": 0.1, "head": 0.2},
            "k: 'head' matches only what is left as it is, such as 'head': the output layer",
        ),
        ({"*.conv": 0.1}, "k: '.*conv' matches only what is left as it is, .*: nn.Conv1d is not among the kinds"),
        ({}, "k must be a number, or one for each of one or more patterns"),
        ({"*": 0}, "not 0"),
        ({0: 0.1}, "k goes by patterns of names, such as .* not 0"),
    ],
)
def test_a_bad_pattern_changes_nothing(k, message):
    model = blocks()
    with pytest.raises(ValueError, match=message) as raised:
        convert(model, k=k)
    assert "\n" not in str(raised.value)
    assert not [module for module in model.modules() if type(module) is MePropLinear]
