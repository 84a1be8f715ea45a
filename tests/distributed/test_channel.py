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
import time
from datetime import timedelta

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn

from meprop_bench.distributed import DataParallel, ExchangeError
from meprop_bench.nn import convert


def train(rank, folder, end, exchange):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{end}-{exchange}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    ring = exchange == "dense"  # what DistributedDataParallel sums, after the rows
    model = nn.Sequential(*([nn.Linear(12, 12)] if ring else []), nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
    convert(model, k=3, selection="unified", sparse=True, filter=lambda _, name: name == str(int(ring)))
    model = DataParallel(model, "gathered" if ring else exchange, bucket_bytes=1 if ring else 1 << 20)
    inner = model.module
    for step in range(4):
        loss = model(torch.randn(5, 12)).sum()
        if step == 1:  # what follows does not come to a good end, however long it takes
            channel = model._channel
            channel._timeout = timedelta(seconds=2)
            for group in (dist.group.WORLD, channel._control, channel._rows, channel._scores):
                if group is not None:
                    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=2), group)
        if rank == 1 and step == 2 and ring:
            inner[0].weight.register_hook(lambda _: time.sleep(1) or os.kill(os.getpid(), getattr(signal, end)))
        elif rank == 1 and step == 2:
            os.kill(os.getpid(), getattr(signal, end))
        try:
            loss.backward()
        except ExchangeError as error:
            sys.exit(str(error))


(folder,), others, first = sys.argv[1:], [], []
for end, exchange in (("SIGKILL", "agreed"), ("SIGSTOP", "gathered"), ("SIGKILL", "dense")):
    for rank in range(2):
        process = os.fork()
        if not process:
            os.dup2(os.open(f"{folder}/{end}-{exchange}{rank}", os.O_WRONLY | os.O_CREAT), 2)
            train(rank, folder, end, exchange)
            sys.exit()
        (others if rank else first).append(process)
codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in first]
for process in others:
    os.kill(process, signal.SIGKILL)
print(codes)
"""


def test_a_rank_ends_or_hangs(tmp_path):
    """The other one ends, with one line: at once, or when it has waited for its time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    for end, reason in (
        ("SIGKILL-agreed", "onnection"),
        ("SIGSTOP-gathered", "imed out"),
        ("SIGKILL-dense", "onnection"),
    ):
        said = (tmp_path / f"{end}0").read_text(encoding="utf-8")
        assert said.startswith("rank 0 of 2 cannot exchange gradients any more: another rank has ended or hangs"), said
        assert reason in said
        assert said.count("\n") == 1
    assert done.stdout == "[1, 1, 1]\n"


def test_bytes():
    assert BytesSent(1, 2, 3, 4, 5).total == 15
    assert BytesSent(1, 2, 3, 4, None).total is None


def case_groups_wait_as_long_as_that_of_the_model(rank):
    channel = Channel(rank.group, None)
    assert channel._timeout == timedelta(seconds=60)
    assert Channel(rank.group, timedelta(seconds=7))._timeout == timedelta(seconds=7)
    assert channel.total(rank.rank + 1) == sum(range(1, rank.size + 1))


def test_groups_wait_as_long_as_that_of_the_model(ranks):
    ranks(case_groups_wait_as_long_as_that_of_the_model)
