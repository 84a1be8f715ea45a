"""A rank of the tests: it runs functions of the test modules, in step with the others, until its input ends.

Each line of the input is JSON: the file of a module, a function of it, and its arguments. The answer is one line: null,
or a traceback. Functions get a `Rank` first.
"""

import importlib.util
import json
import sys
import traceback
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist

modules = {}


def function_of(file, name):
    if file not in modules:
        spec = importlib.util.spec_from_file_location(f"case_{len(modules)}", file)
        modules[file] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[file])
    return getattr(modules[file], name)


def main(rank, size, store):
    answers, sys.stdout = sys.stdout, sys.stderr  # what a case prints is no answer
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=20)
    )
    pair = dist.new_group([0, 1], timeout=timedelta(seconds=20))
    answers.write("null\n")
    answers.flush()
    for line in sys.stdin:
        file, name, size, arguments = json.loads(line)
        group = dist.group.WORLD if size > 2 else pair
        try:
            if rank < size:
                function_of(file, name)(SimpleNamespace(rank=rank, size=size, group=group), *arguments)
            answer = None
        except Exception:  # noqa: BLE001 (all of it is the answer)
            answer = traceback.format_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
