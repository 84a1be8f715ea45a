"""Compiled bodies on any team of OpenMP's threads: smaller than asked for, within another region, of another runtime.

`python tests/ops/test_threads.py` is what the fresh processes run, each in an environment of its own.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

if importlib.util.find_spec("numba") is None:
    pytest.skip("the native kernel needs Numba (extra `cpu`)", allow_module_level=True)

from meprop_bench.ops import linear, memory, node
from meprop_bench.ops.conv import conv2d
from meprop_bench.ops.conv import native as conv_native
from meprop_bench.ops.kernels import native
from meprop_bench.ops.kernels.native import threads
from meprop_bench.ops.recurrent import native as recurrent_native
from meprop_bench.ops.recurrent import recurrent

REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
NODES = {
    layer: import_module(f"meprop_bench.ops.{module}")._node
    for layer, module in (("linear", "linear"), ("conv", "conv.function"), ("lstm", "recurrent.function"))
}


def leaves(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def linear_case(selection, sparse):
    """Large enough for several shares of all that is shared."""
    x, w, b, dy = leaves((72, 96), (600, 96), (600,), (72, 600))
    return lambda kernel: linear(x, w, b, k=8, selection=selection, sparse=sparse, kernel=kernel), (x, w, b), (dy,)


def conv_case():
    x, w, b, dy = leaves((6, 8, 12, 12), (12, 8, 3, 3), (12,), (6, 12, 12, 12))
    return lambda kernel: conv2d(x, w, b, padding=1, k=20, kernel=kernel), (x, w, b), (dy,)


def recurrent_case(cell, selection, batch, h):
    gates, states = {"lstm": (4, 2), "gru": (3, 1), "tanh": (1, 1)}[cell], 2 if cell == "lstm" else 1
    sizes = (batch, batch, max(1, batch // 3))
    shapes = (sum(sizes), 20), (gates[0] * h, 20), (gates[0] * h, h), (gates[0] * h,), (gates[0] * h,)
    x, *weights = leaves(*shapes)
    initial, d = leaves(*[(batch, h)] * states), leaves((sum(sizes), h), *[(batch, h)] * states)
    scaled = [w / h**0.5 for w in weights]

    def layer(kernel):
        y, last = recurrent(cell, x, initial, scaled, sizes=sizes, k=9, selection=selection, kernel=kernel)
        return y, *last

    return layer, (x, *weights, *initial), tuple(d)


CASES = {
    **{
        f"linear {selection} {'rows' if sparse else 'dense'}": (linear_case, selection, sparse)
        for selection in ("example", "unified")
        for sparse in (False, True)
    },
    "conv": (conv_case,),
    **{
        f"{cell} {selection} of {batch}": (recurrent_case, cell, selection, batch, h)
        for cell in ("lstm", "gru", "tanh")
        for selection in ("example", "unified")
        for batch, h in ((48, 180), (1, 300))
    },
}


def results(case, kernel="native", between=lambda: None):
    """Outputs and all gradients, of a process that does something in between."""
    make, *arguments = case
    layer, inputs, d = make(*arguments)
    outputs = layer(kernel)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    between()
    grads = torch.autograd.grad(outputs, inputs, [t.detach() for t in d])
    return [t.detach().to_dense() for t in (*outputs, *grads)]


def assert_right(found, expected, name):
    for part, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a - b).norm() / b.norm()
        assert error < 1e-5, f"{name}, part {part}: relative error {error:.3g}"


def in_a_region(run):
    """Run a function on each thread of a region, as code in somebody else's region does; return the team's size."""
    team = []

    @REGION
    def member(_):
        try:
            run()
            team.append(None)
        except Exception as error:  # noqa: BLE001 (none gets out of here)
            team.append(error)

    ctypes.CDLL(None).GOMP_parallel(member, None, 0, 0)
    for error in team:
        if error is not None:
            raise error
    return len(team)


def check_everything():
    """Hold all cases against kernel `masked`, called in all ways, with the C++ node and without."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))  # torch itself takes no more than cores
    asked = torch.get_num_threads()
    team = in_a_region(lambda: None)
    print(f"{asked} threads asked for, {team} in a region, node: {node.unavailable_reason() or 'C++'}")
    for name, case in CASES.items():
        # oneDNN's own convolutions of a smaller team give wrong weight gradients, or wait for ever.
        torch.backends.mkldnn.enabled = name != "conv"
        registration = NODES.get(name.split()[0])
        found = []  # first, lest memory hold what is right already
        for in_python in (False, True) if registration else (True,):
            if registration and in_python:
                registration.call = node.nothing
            elif registration:
                registration.forget()
            found += [results(case)]
            found += [results(case, between=lambda: torch.set_num_threads(asked + 1))]
            found += [results(case, between=lambda: torch.set_num_threads(asked))]
            in_a_region(lambda: found.append(results(case)))  # noqa: B023
            with ThreadPoolExecutor(3) as pool:
                found += list(pool.map(lambda _: results(case), range(3)))  # noqa: B023
        expected = results(case, "masked")
        for each in found:
            assert_right(each, expected, name)
    return asked, team


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "3"},
        {"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "5"},
        {"OMP_DYNAMIC": "true", "OMP_NUM_THREADS": str((os.cpu_count() or 1) + 2)},
        {"OMP_NUM_THREADS": str((os.cpu_count() or 1) + 2), "OMP_MAX_ACTIVE_LEVELS": "2"},
    ],
    ids=["one", "fewer", "dynamic", "regions_in_regions"],
)
def test_in_an_environment_where_teams_are_other_than_asked_for(environment):
    if not threads.OPENMP:
        pytest.skip("torch's OpenMP is not to be found")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, __file__],
        env={**clean, "OMP_WAIT_POLICY": "PASSIVE", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    asked, _, _, _, team, *_ = done.stdout.split()
    assert (int(team) < int(asked)) == ("OMP_MAX_ACTIVE_LEVELS" not in environment), done.stdout


class Runtime:
    """An OpenMP runtime whose threads come one after the other, the last first."""

    def __init__(self, team):
        def parallel(run, data, asked, flags):
            assert (asked, flags) == (0, 0), "other than all of torch's threads"
            self.regions += 1
            for self.number in reversed(range(team)):
                REGION(run)(data)

        self.regions = self.number = 0
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self.functions = kind(parallel), ctypes.CFUNCTYPE(ctypes.c_int)(lambda: self.number)
        self.functions += (ctypes.CFUNCTYPE(ctypes.c_int)(lambda: team),)
        words = [ctypes.cast(function, ctypes.c_void_p).value for function in self.functions]
        self.words = np.array([*words, threads._TABLE[3]], np.int64)

    def use(self, monkeypatch):
        for module in (native, conv_native, recurrent_native):
            monkeypatch.setattr(module, "OPENMP", self.words.ctypes.data)


@pytest.fixture
def in_python(monkeypatch):
    for registration in NODES.values():
        monkeypatch.setattr(registration, "call", node.nothing)


@pytest.fixture
def five_threads():
    if not threads.OPENMP:
        pytest.skip("torch's OpenMP is not to be found")
    torch.set_num_threads(5)


@pytest.mark.usefixtures("in_python", "five_threads")
@pytest.mark.parametrize("team", [1, 3, 11])
def test_the_team_changes_no_bit(team, monkeypatch):
    for name, case in CASES.items():
        expected = results(case)
        runtime = Runtime(team)
        with monkeypatch.context() as patch:
            runtime.use(patch)
            found = results(case)
        assert runtime.regions, name
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name


@pytest.mark.usefixtures("in_python")
@pytest.mark.parametrize("asked", [1, 2, 64])
def test_the_memory_to_work_in_is_enough_for_all_threads_asked_for(asked, monkeypatch):
    if not threads.OPENMP:
        pytest.skip("torch's OpenMP is not to be found")
    blocks = []

    def address(size):
        blocks.append((torch.full((size + 4096,), 77, dtype=torch.uint8), size))
        return blocks[-1][0].data_ptr()

    monkeypatch.setattr(memory, "scratch", address)
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked)
    Runtime(3).use(monkeypatch)
    for name, case in CASES.items():
        if name.startswith(("linear", "conv")):
            assert_right(results(case), results(case, "masked"), name)
    assert len(blocks) == 5
    for block, size in blocks:
        assert (block[size:] == 77).all()


@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("shape", [(10, 784, 500, 20), (10, 500, 10, 5), (1, 64, 64, 4), (1, 4096, 4096, 40)])
def test_there_are_no_more_shares_than_the_work_deserves(selection, shape):
    b, m, n, k = shape
    for rows in (False, True):
        few, shares, size, _ = native.plan(selection, 64, b, n, m, k, rows)
        # A sum of rows takes four times as long as a product; rows alone have no zeros to be written.
        work = 2 * b * k * m // (4 if selection == "unified" else 1) + (0 if rows else n * m)
        assert few == 1  # a batch so small is selected from by one thread
        assert shares == min(64, max(1, work // threads.LEAST))
        assert native.plan(selection, 2, b, n, m, k, rows).shares == min(2, shares)
        assert size < 64 << 20


@pytest.mark.parametrize(("b", "n", "k", "few"), [(10, 500, 20, 1), (50, 500, 20, 2), (50, 10, 3, 1), (8, 2048, 30, 1)])
def test_a_search_in_every_example_is_shared_earlier_than_sums_over_the_batch(b, n, k, few):
    assert native.plan("example", 2, b, n, 64, k).few == few
    assert native.plan("unified", 2, b, n, 64, k).few == native.plan("random", 2, b, n, 64, k).few == 1


@pytest.mark.parametrize("b", [10, 64, 1024])
def test_parts_that_one_thread_adds_up_are_not_more_than_what_is_added_to_them(b):
    assert native.plan("example", 64, b, 8192, 1024, 8).few ** 2 <= 4 * b
    assert native.plan("unified", 64, b, 8192, 1024, 8).few ** 2 <= b
    assert native.plan("example", 2, b, 8192, 1024, 8).few == 2
    assert native.plan("unified", 2, b, 8192, 1024, 8).few == min(2, max(1, b // 8))


OTHER = """
static int regions;
void GOMP_parallel(void (*run)(void *), void *data, unsigned threads, unsigned flags) { regions++; run(data); }
int omp_get_thread_num(void) { return 0; }
int omp_get_num_threads(void) { return 1; }
int regions_so_far(void) { return regions; }
"""


def test_a_runtime_that_is_loaded_before_torchs_is_used_by_both(tmp_path):
    """Else there would be two pools of threads, which fight for the cores."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None or not threads.OPENMP:
        pytest.skip("it takes Linux, a C compiler and torch's OpenMP")
    (tmp_path / "other.c").write_text(OTHER)
    other = tmp_path / "other.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", other, tmp_path / "other.c"], check=True)
    program = (
        "import ctypes, sys, torch; sys.path.insert(0, sys.argv[1]); import test_threads as t\n"
        "torch.set_num_threads(4)\n"
        "other = ctypes.CDLL(None).regions_so_far\n"
        "torch.ones(1 << 20).exp()\n"
        "assert other() > 0, 'torch has another'\n"
        "for name, case in t.CASES.items():\n"
        "    torch.backends.mkldnn.enabled = name != 'conv'\n"
        "    t.assert_right(t.results(case), t.results(case, 'masked'), name)\n"
        "before = other(); t.native.KERNEL.backward(*t.leaves((72, 600), (72, 96), (600, 96)),"
        " t.native.Request(8, 'example', False, True, True, True))\n"
        "assert other() == before + 2, 'the kernel has another'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        env={**os.environ, "LD_PRELOAD": str(other)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check_everything()
