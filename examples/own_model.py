"""Does it pay for a model of your own? The shortest form: copy it, and put your model, loss and batches where its are.

meprop-bench speedup --model examples/own_model.py --method meprop,unified --k 0.02,0.05,0.1
python examples/own_model.py                     # the same from Python, with one method
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import meprop_bench as mb


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Your loss, a scalar."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def build(width: int = 1024) -> mb.Training:
    """Your model and how it is trained, made anew at each call."""
    return mb.Training(
        model=nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
        loss=loss,
        batches=[(torch.randn(width // 8, 784), torch.randint(10, (width // 8,))) for _ in range(8)],
    )


def tiny() -> mb.Training:
    """A size to try the commands with."""
    return build(width=64)


if __name__ == "__main__":
    print(mb.compare(build, method="unified", k=[0.02, 0.05, 0.1]))
