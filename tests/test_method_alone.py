"""The method (ops, nn, optim, algorithms, distributed) works where torch and NumPy alone are installed."""

import subprocess
import sys
from pathlib import Path

import meprop_bench

PROGRAM = """
import sys
from importlib.metadata import packages_distributions, requires
import re

import torch, numpy

# What is installed with torch and NumPy, and nothing else, may be imported from here on.
def needed(name, seen):
    if name not in seen:
        seen.add(name)
        try:
            lines = requires(name) or []
        except ImportError:
            return seen
        for line in lines:
            if "extra ==" not in line:
                needed(re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-"), seen)
    return seen

allowed = needed("torch", needed("numpy", set()))
owner = {
    module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
}

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in owner and not owner[top] & (allowed | {"meprop-bench"}):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
for absent in ("click", "rich", "msgspec", "numba", "scipy", "psutil"):
    try:
        __import__(absent)
        raise SystemExit(f"{absent} can be imported")
    except ModuleNotFoundError:
        pass

import pkgutil
import meprop_bench
for package in ("ops", "nn", "optim", "algorithms", "distributed"):
    __import__(f"meprop_bench.{package}")
    folder = sys.modules[f"meprop_bench.{package}"]
    for module in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
        if not any(part in module.name for part in (".native", ".triton.", ".triton_")):
            __import__(module.name)

from torch import nn
from meprop_bench.nn import MePropConv2d, MePropGRU, MePropLSTM, MePropLinear, convert
from meprop_bench.optim import RowAdam

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4))
convert(model, k=0.2, sparse=True)
optim = RowAdam(model.parameters(), lr=0.05)
x, y = torch.randn(40, 20), torch.randint(4, (40,))
losses = []
for _ in range(30):
    optim.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optim.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] / 2, losses
MePropConv2d(3, 4, 3, k=0.1)(torch.randn(2, 3, 8, 8)).sum().backward()
for layer in (MePropLSTM(5, 7, k=2), MePropGRU(5, 7, k=2)):
    layer(torch.randn(4, 2, 5))[0].sum().backward()
import tempfile
import torch.distributed as dist
from meprop_bench.distributed import DataParallel
dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
for exchange in ("gathered", "agreed"):
    rows = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    convert(rows, k=3, selection="unified", sparse=True)
    DataParallel(rows, exchange)(x).sum().backward()
    assert rows[0].weight.grad.is_sparse
assert not {"click", "rich", "msgspec", "numba", "scipy"} & set(sys.modules)
print("works")
"""


def test_torch_and_numpy_are_enough(tmp_path: Path) -> None:
    program = f"import sys\nsys.path.insert(0, {str(Path(meprop_bench.__file__).parents[1])!r})\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250
    )
    assert (done.returncode, done.stdout) == (0, "works\n"), done.stderr
