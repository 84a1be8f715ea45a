import pytest
import torch
from torch import nn

from meprop_bench.algorithms.simplified import describe
from meprop_bench.models.translator import Translator
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.training import evaluate


def partly_frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.Linear(4, 3)))
    model[1].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def test_each_module_gets_its_own_mode_back():
    model = partly_frozen()
    before = modes(model)
    assert before == [True, True, False, True, True, True]
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        _ = 1 / 0
    assert modes(model) == before
    model.eval()[2].train()  # the other way round
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_a_train_that_does_more_than_set_the_mode_is_called():
    class Adapter(nn.Linear):  # merges its weights for evaluation, as adapters of low rank do
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Adapter(3, 3))
    with evaluation_mode(model):
        assert model[0].merged
    assert not model[0].merged


def test_whatever_evaluates_keeps_what_is_frozen():
    model, x = partly_frozen(), torch.randn(8, 4)
    before, statistics = modes(model), model[1].running_mean.clone()
    evaluate(model, x, torch.zeros(8, dtype=torch.long))
    describe(model, x)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(model, x[:, :3], torch.zeros(8, dtype=torch.long))
    assert modes(model) == before
    model(x)
    assert torch.equal(model[1].running_mean, statistics)

    translator = Translator(7, 7, embedding=4, hidden=4)
    translator.encoder.eval()
    before = modes(translator)
    translator.translate(torch.tensor([[4, 5]]), torch.tensor([2]), max_length=2)
    assert modes(translator) == before
