"""A classifier in scikit-learn's style whose training is sparsified: does it pay, and does it learn as well?

python examples/perceptron.py                    # cross-validated, dense and sparsified
meprop-bench speedup --model examples/perceptron.py --method meprop,unified --k 0.05,0.1,0.25
meprop-bench parity  --model examples/perceptron.py --method unified --k 0.25 --epochs 10

`SparsePerceptron` is an estimator like any other: it can be cloned, searched and put into a pipeline. `build` gives the
training that its `fit` runs to the commands, so that what is measured is what is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import meprop_bench as mb


def perceptron(features: int, hidden: int, classes: int) -> nn.Sequential:
    """Return a perceptron of two hidden layers."""
    ends = nn.Linear(features, hidden), nn.Linear(hidden, classes)
    return nn.Sequential(ends[0], nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), ends[1])


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy of a batch."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def batches(x: Any, y: Any, size: int) -> DataLoader[Any]:
    """Return examples and numbers of their classes in shuffled batches."""
    tensors = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True)


class SparsePerceptron(ClassifierMixin, BaseEstimator):
    """A perceptron that is trained by sparsified back propagation.

    Args:
        hidden: neurons of each of its two hidden layers.
        k: share of them that get a gradient; None trains the dense way.
        selection: of these k: "example", each example's own, or "unified", the same for a batch.
        batch: examples in a batch.
        epochs: passes over the examples.
        random_state: seed of weights and order.

    """

    def __init__(
        self,
        hidden: int = 512,
        k: float | None = 0.25,
        selection: str = "unified",
        batch: int = 64,
        epochs: int = 10,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.k = k
        self.selection = selection
        self.batch = batch
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on examples (N, features) and their classes (N,)."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_ = unique_labels(y)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.model_ = perceptron(X.shape[1], self.hidden, len(self.classes_))
            if self.k is not None:
                mb.convert(self.model_, k=self.k, selection=self.selection)
            updates = optimizer(self.model_.parameters())
            for _ in range(self.epochs):
                for batch in batches(X, np.searchsorted(self.classes_, y), self.batch):
                    loss(self.model_, batch).backward()
                    updates.step()
                    updates.zero_grad()
        return self

    @torch.no_grad()
    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class (N, classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float32)
        return self.model_(torch.as_tensor(X)).softmax(1).numpy()

    def predict(self, X: Any) -> Any:
        """Return the most probable classes (N,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]


def training(hidden: int, batch: int) -> mb.Training:
    """Return what `fit` runs, on four fifths of scikit-learn's digits; the others judge it."""
    digits = load_digits()
    x, x_test, y, y_test = train_test_split(digits.data / 16, digits.target, test_size=0.2, random_state=0)

    def evaluate(model: nn.Module) -> float:
        found = model(torch.as_tensor(x_test, dtype=torch.float32)).argmax(1)
        return 100 * (found == torch.as_tensor(y_test)).double().mean().item()

    return mb.Training(
        model=perceptron(x.shape[1], hidden, 10),
        loss=loss,
        batches=batches(x, y, batch),
        optimizer=optimizer,
        evaluate=evaluate,
        metric="accuracy %",
    )


def build() -> mb.Training:
    """The size that is measured: that of the estimator's defaults."""
    return training(hidden=512, batch=64)


def tiny() -> mb.Training:
    """A size to try the commands with."""
    return training(hidden=32, batch=64)


def main() -> None:
    """Cross-validate both on scikit-learn's digits."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--k", type=float, default=0.25, help="share of each hidden layer that gets a gradient")
    options.add_argument("--hidden", type=int, default=512, help="neurons of a hidden layer")
    options.add_argument("--epochs", type=int, default=10, help="passes over the examples")
    given = options.parse_args()
    X, y = load_digits(return_X_y=True)
    for k in (None, given.k):
        estimator = SparsePerceptron(given.hidden, k, epochs=given.epochs)
        scores = 100 * cross_val_score(make_pipeline(StandardScaler(), estimator), X, y)
        print(f"{'dense' if k is None else f'k = {k:g}':9} accuracy {scores.mean():.1f}% ± {scores.std():.1f}")


if __name__ == "__main__":
    main()
