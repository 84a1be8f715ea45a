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
        self.folder, self.program, self.starts = folder, None, 0

    def __call__(self, function, *arguments, size=2):
        """Run `function(rank, *arguments)` on the first ranks; fail with what any of them raised."""
        program = self.program or self.start()
        request = [sys.modules[function.__module__].__file__, function.__name__, size, arguments]
        program.stdin.write(json.dumps(request) + "\n")
        program.stdin.flush()
        line = program.stdout.readline()
        answers = json.loads(line) if line else ["they have ended"]
        if any(answers):
            self.stop()  # the next case gets others
            raise AssertionError("\n".join(f"rank {r}: {what}" for r, what in enumerate(answers) if what))

    def start(self):
        self.starts += 1
        root = Path(__file__).parents[2]
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("worker.py")), str(SIZE)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        self.program = subprocess.Popen(
            [*command, str(self.folder / f"store{self.starts}")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip
        return self.program

    def stop(self):
        if self.program is not None:
            self.program.stdin.close()
            self.program.wait()
            self.program.stdout.close()
            self.program = None


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs torch with gloo")
    found = Ranks(tmp_path_factory.mktemp("ranks"))
    yield found
    found.stop()
