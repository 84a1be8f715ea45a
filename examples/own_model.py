"""Does it pay for a model of your own? Time its training step, dense against converted, in interleaved pairs.

python examples/own_model.py                             # half a minute
python examples/own_model.py --k 0.02 --processes 5

Replace `model`, `batch` and `loss` by your own. Both sides start from the same weights and train on the same batch. A
pair is one value of each side, back to back and in random order, so that what the machine does hits both alike; each
process draws a memory layout of its own, so the 95% interval is over fresh processes.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Mapping
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from meprop_bench.measure.clock import Clock, clock_for
from meprop_bench.measure.paired import Subject, calibrate, measure_pairs, warm_up
from meprop_bench.nn import convert
from meprop_bench.stats import paired_ratio


def model(width: int) -> nn.Module:
    """Your model."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def batch(width: int) -> tuple[Tensor, Tensor]:
    """One batch of your data: inputs and targets."""
    return torch.randn(width // 8, 784), torch.randint(10, (width // 8,))


loss = nn.CrossEntropyLoss()


def side(net: nn.Module, x: Tensor, y: Tensor) -> Subject:
    """Return what is timed: the phases of a training step, and their sum."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    current: list[Tensor] = []

    def forward() -> None:
        current[:] = [loss(net(x), y)]

    def backward() -> None:
        current[0].backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    phases = {"forward": forward, "backward": backward, "update": update}

    def subject(loops: int, clock: Clock) -> Mapping[str, float]:
        seconds = clock.time_phases(phases, loops)
        return {**seconds, "step": sum(seconds.values())}

    return subject


def measure(seed: int, width: int, k: float, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Measure in this process: for each phase its pairs, dense and sparse, in seconds."""
    torch.manual_seed(seed)
    dense = model(width)
    sparse = copy.deepcopy(dense)
    convert(sparse, k=k, selection="unified")
    x, y = batch(width)
    clock, sides = clock_for("cpu"), (side(dense, x, y), side(sparse, x, y))
    for subject in sides:
        warm_up(subject, clock)
    loops = max(calibrate(subject, clock) for subject in sides)
    pairs = measure_pairs(*sides, seconds=seconds, least_pairs=5, loops=loops, rng=random.Random(seed), clock=clock)
    return {phase: [pair.phases[phase] for pair in pairs] for phase in pairs[0].phases}


def main() -> None:
    """Measure in several fresh processes, one after the other, and print the speed-up of each phase."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--k", type=float, default=0.05, help="share of each layer's outputs that gets a gradient")
    options.add_argument("--width", type=int, default=1024, help="neurons of a hidden layer")
    options.add_argument("--processes", type=int, default=4, help="fresh processes")
    options.add_argument("--seconds", type=float, default=4.0, help="timing in each process")
    given = options.parse_args()
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tasks = [(seed, given.width, given.k, given.seconds) for seed in range(given.processes)]
        runs = pool.starmap(measure, tasks, chunksize=1)
    for phase in runs[0]:
        found = paired_ratio([run[phase] for run in runs])
        verdict = {None: "no interval", False: "cannot be told from dense"}.get(
            found.significant(), "faster" if found.estimate > 1 else "slower"
        )
        print(f"{phase:9} {found.estimate:5.2f}x [{found.low:.2f}, {found.high:.2f}]  {verdict}")


if __name__ == "__main__":
    main()
