"""Ranks that are started once, for all cases: four, of which most cases use the first two, as a group."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SIZE = 4


class Ranks:
    """Processes that run a function of a test module together."""

    def __init__(self, folder):
        self.folder, self.processes, self.starts = folder, [], 0

    def __call__(self, function, *arguments, size=2):
        """Run `function(rank, *arguments)` on the first ranks; fail with what any of them raised."""
        if not self.processes:
            self.start()
        line = json.dumps([sys.modules[function.__module__].__file__, function.__name__, size, arguments]) + "\n"
        for process in self.processes:
            process.stdin.write(line)
            process.stdin.flush()
        self.listen()

    def start(self):
        self.starts += 1
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("worker.py"))]
        store = str(self.folder / f"store{self.starts}")
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        self.processes = [
            subprocess.Popen(
                [*command, str(rank), str(SIZE), store],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
            )
            for rank in range(SIZE)
        ]  # fmt: skip
        self.listen()

    def listen(self):
        answers = [process.stdout.readline() for process in self.processes]
        failed = [json.loads(answer) if answer else "it has ended" for answer in answers]
        if any(failed):
            self.stop()  # the next case gets others
            raise AssertionError("\n".join(f"rank {r}: {what}" for r, what in enumerate(failed) if what))

    def stop(self):
        for process in self.processes:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()
        self.processes = []


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs torch with gloo")
    found = Ranks(tmp_path_factory.mktemp("ranks"))
    yield found
    found.stop()
