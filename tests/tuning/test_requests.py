from __future__ import annotations

import pytest

from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning.requests import costs

OPTIMIZERS = {
    "torch.optim.SGD(parameters, lr=0.1)": True,
    "torch.optim.SGD(parameters, lr=0.1, momentum=0.9)": False,
    "torch.optim.SGD(parameters, lr=0.1, fused=True)": False,
    "torch.optim.Adagrad(parameters)": True,
    "torch.optim.Adam(parameters)": False,
    "RowSGD(parameters, lr=0.1)": True,
    "RowSGD(parameters, lr=0.1, momentum=0.9)": False,
    "RowSGD(parameters, lr=0.1, weight_decay=0.1)": False,
    "RowAdagrad(parameters)": True,
    "RowAdagrad(parameters, weight_decay=0.1)": False,
    "RowAdam(parameters, weight_decay=0.1)": True,
    "RowAdamW(parameters)": True,
}
"""An optimizer, and whether gradients as rows are worth trying with it."""


@pytest.mark.parametrize("made", OPTIMIZERS)
def test_rows_are_tried_where_the_optimizer_gains_by_them(made, own_model):
    name = own_model(f"""
        from meprop_bench.optim import RowAdagrad, RowAdam, RowAdamW, RowSGD
        def build():
            return training(evaluate=accuracy, optimizer=lambda parameters: {made})
        """)
    found = costs(None, Recipe(name, optimizer="own").to_json())
    assert found["rows"] == OPTIMIZERS[made]
