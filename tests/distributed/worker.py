"""The ranks of the tests: they run functions of the test modules in step, until this program's input ends.

Each line of the input is JSON: the file of a module, a function of it, how many ranks run it, and its arguments. The
answer is a line with what each rank raised, or null. Functions get a `Rank` first. What takes time, imports, is done
once, before the ranks are forked.
"""

import importlib.util
import json
import multiprocessing
import sys
import traceback
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch._dynamo  # which DistributedDataParallel imports
import torch.distributed as dist

from meprop_bench.distributed import gathered
from meprop_bench.ops.kernels import compiled

modules = {}


def function_of(file, name):
    if file not in modules:
        spec = importlib.util.spec_from_file_location(f"case_{len(modules)}", file)
        modules[file] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[file])
    return getattr(modules[file], name)


def run(rank, of, store, requests):
    sys.stdin.close()
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=of, timeout=wait)
    pair = dist.new_group([0, 1], timeout=wait)
    while True:
        file, name, size, arguments = requests.recv()
        answer = None
        if rank < size:
            group = dist.group.WORLD if size > 2 else pair
            try:
                function_of(file, name)(SimpleNamespace(rank=rank, size=size, group=group), *arguments)
            except Exception:  # noqa: BLE001 (all of it is the answer)
                answer = traceback.format_exc()
        requests.send(answer)


def main(of, store):
    answers, sys.stdout = sys.stdout, sys.stderr  # what a case prints is no answer
    for module in ("", ".update", ".union"):
        compiled.load(gathered._UNION.removesuffix(".union") + module)
    fork, ranks = multiprocessing.get_context("fork"), []
    for rank in range(of):
        here, there = fork.Pipe()
        process = fork.Process(target=run, args=(rank, of, store, there), daemon=True)
        process.start()
        there.close()  # so that its end is noticed
        ranks.append((process, here))
    for line in sys.stdin:
        for _, requests in ranks:
            requests.send(json.loads(line))
        answers.write(json.dumps([answer_of(requests) for _, requests in ranks]) + "\n")
        answers.flush()
    for process, _ in ranks:
        process.kill()


def answer_of(requests):
    try:
        return requests.recv()
    except (EOFError, ConnectionResetError):
        return "it has ended"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
