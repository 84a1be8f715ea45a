import copy

import pytest
import torch
from torch import nn

from meprop_bench.algorithms.alternating import Alternating
from meprop_bench.algorithms.schedule import Constant, KScheduler, Linear, sparsified_layers
from meprop_bench.models.translator import Translator
from meprop_bench.nn import convert
from meprop_bench.nn.recurrent import MePropLSTM


@pytest.fixture
def model():
    net = Translator(9, 8, embedding=5, hidden=6, layers=2).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    convert(net, k=2, kinds=(nn.LSTM,), kernel="masked")
    return net


def ks(net):
    return {name: layer.k for name, layer in sparsified_layers(net).items()}


def gradients(net):
    source, lengths = torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([2, 3])
    target = torch.tensor([[1, 3, 4, 2], [1, 7, 2, 0]])
    net.zero_grad()
    net.loss(source, lengths, target).backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


ONE, HALF = Constant(1), Constant(0.5)


def alternating(net, encoder=ONE, decoder=HALF):
    return Alternating({"encoder": KScheduler(net.encoder, encoder), "decoder": KScheduler(net.decoder, decoder)})


def test_the_parts_take_turns(model):
    schedule = alternating(model)
    for epoch, part in ((0, "encoder"), (1, "decoder"), (2, "encoder"), (7, "decoder"), (7, "decoder"), (4, "encoder")):
        assert schedule.start_epoch(epoch) == schedule.active == part
        sparse, dense = {"encoder": (1, 1.0), "decoder": (1.0, 0.5)}[part]
        assert ks(model) == {"encoder.lstm": sparse, "decoder.lstm": dense}


def test_gradients_are_those_of_a_model_with_one_part_turned(model):
    schedule = alternating(model)
    found = {part: gradients(model) for part in (schedule.start_epoch(epoch) for epoch in range(2))}
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        expected = copy.deepcopy(model)
        getattr(expected, part).lstm.k = {"encoder": 1, "decoder": 0.5}[part]
        getattr(expected, other).lstm.__class__ = nn.LSTM
        want = gradients(expected)
        assert all(torch.equal(found[part][name], want[name]) for name in want)
    dense = copy.deepcopy(model)
    for layer in (dense.encoder.lstm, dense.decoder.lstm):
        layer.k = 1.0
    whole = gradients(dense)
    # While the encoder is sparsified, the decoder's gradients are exact; the other way round what comes out of the
    # decoder, and so the encoder's, is not.
    assert all(torch.allclose(found["encoder"][name], whole[name]) for name in whole if name.startswith("decoder"))
    assert not torch.allclose(found["encoder"]["encoder.lstm.weight_ih_l0"], whole["encoder.lstm.weight_ih_l0"])
    assert not torch.allclose(found["decoder"]["decoder.lstm.weight_hh_l0"], whole["decoder.lstm.weight_hh_l0"])
    assert not torch.allclose(found["decoder"]["encoder.lstm.weight_ih_l0"], whole["encoder.lstm.weight_ih_l0"])


def test_schedules_go_on_through_the_epochs(model):
    schedule = alternating(model, encoder=Linear(6, 2, 4), decoder=Linear(1.0, 0.5, 10))
    seen, step = [], 0
    for epoch in range(4):
        schedule.start_epoch(epoch)
        for _ in range(2):
            schedule.start_step(step)
            seen.append(tuple(ks(model).values()))
            step += 1
    assert seen == [(6, 1.0), (5, 1.0), (1.0, 0.9), (1.0, 0.85), (2, 1.0), (2, 1.0), (1.0, 0.7), (1.0, 0.65)]
    schedule.start_epoch(5)
    assert ks(model) == {"encoder.lstm": 1.0, "decoder.lstm": 0.65}, "the last step's k, until the next one"


def test_three_parts_and_parts_with_several_layers():
    parts = {}
    for name in "abc":
        parts[name] = nn.Sequential(MePropLSTM(3, 4, k=1, kernel="masked"), MePropLSTM(4, 4, k=1, kernel="masked"))
    schedule = Alternating({name: KScheduler(part, {"1": Constant(2)}) for name, part in parts.items()})
    alternated = []
    for epoch in range(4):
        alternated.append(schedule.start_epoch(epoch))
        assert {name: part[1].k for name, part in parts.items()} == {
            name: 2 if name == alternated[-1] else 1.0 for name in parts
        }
        assert all(part[0].k == 1 for part in parts.values()), "a layer without a schedule is left alone"
    assert alternated == ["a", "b", "c", "a"]


def test_nonsense_is_refused(model):
    whole = KScheduler(model, Constant(1))
    with pytest.raises(ValueError, match="two parts or more can alternate, not 1"):
        Alternating({"all": whole})
    with pytest.raises(ValueError, match=r"layer 'lstm' of 'decoder' belongs to 'all', too"):
        Alternating({"all": whole, "decoder": KScheduler(model.decoder, Constant(1))})
