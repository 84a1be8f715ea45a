"""What is said when another rank ends or hangs."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from meprop_bench.distributed import BytesSent
from meprop_bench.distributed.channel import Channel

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs torch with gloo"
)

PROGRAM = """
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from meprop_bench.distributed import DataParallel, ExchangeError
from meprop_bench.nn import convert

rank, file, end, exchange = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
convert(model, k=3, selection="unified", sparse=True)
model = DataParallel(model, exchange)
for step in range(4):
    loss = model(torch.randn(5, 12)).sum()
    if step == 1:  # what follows does not come to a good end, however long it takes
        channel = model._channel
        for group in (dist.group.WORLD, channel._control, channel._rows, channel._scores):
            if group is not None:
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=2), group)
    if rank == 1 and step == 2:
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        loss.backward()
    except ExchangeError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("exchange", ["gathered", "agreed"])
def test_a_rank_ends_or_hangs(exchange, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    started = {
        (end, rank): subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(rank), str(tmp_path / end), end, exchange],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for end in ("killed", "stopped")
        for rank in range(2)
    }  # fmt: skip
    try:
        for end, reason in (("killed", "onnection"), ("stopped", "imed out")):
            _, said = started[end, 0].communicate(timeout=240)
            assert started[end, 0].returncode == 1, said
            assert said.startswith("rank 0 of 2 cannot exchange gradients any more: another rank has ended or hangs")
            assert reason in said
            assert said.count("\n") == 1
    finally:
        for process in started.values():
            process.kill()
            process.communicate()


def test_bytes():
    assert BytesSent(1, 2, 3, 4, 5).total == 15
    assert BytesSent(1, 2, 3, 4, None).total is None


def case_groups_wait_as_long_as_that_of_the_model(rank):
    channel = Channel(rank.group, None, scores=True)
    assert channel._timeout == timedelta(seconds=20)
    assert Channel(rank.group, timedelta(seconds=7), scores=False)._timeout == timedelta(seconds=7)
    assert channel.total(rank.rank + 1) == sum(range(1, rank.size + 1))


def test_groups_wait_as_long_as_that_of_the_model(ranks):
    ranks(case_groups_wait_as_long_as_that_of_the_model)
