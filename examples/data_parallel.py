"""Data-parallel training that exchanges rows: several processes, each with its part of every batch.

torchrun --standalone --nproc-per-node 2 examples/data_parallel.py                       # half a minute
torchrun --standalone --nproc-per-node 2 examples/data_parallel.py --exchange agreed

With `sparse=True` a layer's weight gradient is a few rows, and `DataParallel` exchanges these instead of the whole
gradient. "gathered": each process selects by itself, and gets the union of all rows. "agreed": the processes select
together, so that the training is that of one process with the whole batch.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meprop_bench.distributed import DataParallel, ExchangeError, clip_grad_norm_
from meprop_bench.nn import convert
from meprop_bench.optim import RowAdagrad


def data(examples: int) -> tuple[Tensor, Tensor]:
    """Random vectors, labelled by a random linear teacher: learnable, and nothing to download."""
    x = torch.randn(examples, 64)
    return x, (x @ torch.randn(64, 10)).argmax(1)


def train(given: argparse.Namespace) -> None:
    """Train this process's copy of the model, and have the first one print what came of it."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    x, y = data(6000)
    width = given.width
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    convert(model, k=0.05, selection="unified", sparse=True)
    parallel = DataParallel(model, given.exchange)
    optimizer = RowAdagrad(parallel.parameters(), lr=0.01)
    for _ in range(given.steps):
        batch = torch.randint(5000, (64 * size,))  # the same numbers everywhere, of which each takes its own
        own = batch[64 * rank : 64 * (rank + 1)]
        nn.functional.cross_entropy(parallel(x[own]), y[own]).backward()
        clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        with torch.no_grad():
            accuracy = (model(x[5000:]).argmax(1) == y[5000:]).float().mean().item()
        whole = sum(p.numel() * p.element_size() for p in model.parameters()) * 2 * (size - 1) / size
        share = (parallel.bytes_sent.total or 0) / whole
        print(f"{given.exchange}, {size} processes  accuracy {accuracy:.1%}, {share:.0%} of the bytes of dense ones")


def main() -> None:
    """Join the other processes, and train."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--exchange", choices=("gathered", "agreed"), default="gathered", help="of rows")
    options.add_argument("--width", type=int, default=1024, help="neurons of a hidden layer")
    options.add_argument("--steps", type=int, default=500, help="training steps")
    given = options.parse_args()
    if not dist.is_torchelastic_launched():
        sys.exit("start it by torchrun: torchrun --standalone --nproc-per-node 2 examples/data_parallel.py")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    try:
        train(given)
    except ExchangeError as error:
        sys.exit(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
