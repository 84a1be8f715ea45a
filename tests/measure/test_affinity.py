"""Which cores a process is bound to, on made-up machines, and that the kernel then says so, on this one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure import affinity, procfs
from meprop_bench.measure.affinity import allowed, bind, bound, chosen, free
from meprop_bench.measure.environment import collect, environment_id
from meprop_bench.measure.procfs import Unavailable

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")

_HALVES = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
"""Four cores of two logical ones each, numbered as Linux usually does it."""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose cores, and those of them that may be used, a test says; what is bound is remembered."""
    monkeypatch.setattr(procfs, "SYS", tmp_path)
    monkeypatch.setattr(affinity, "_before", None)
    now = set(range(8))

    def build(siblings, may=None, name="core_cpus_list"):
        now.clear()
        now.update(siblings if may is None else may)
        for core, text in siblings.items():
            folder = tmp_path / f"devices/system/cpu/cpu{core}/topology"
            folder.mkdir(parents=True)
            (folder / name).write_text(text + "\n")
        return now

    def give(_, cores):
        now.clear()
        now.update(cores)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(now))
    monkeypatch.setattr(os, "sched_setaffinity", give)
    return build


@pytest.mark.parametrize(("threads", "cores"), [(1, [3]), (2, [2, 3]), (4, [0, 1, 2, 3])])
def test_each_thread_gets_a_physical_core_of_its_own(machine, threads, cores):
    machine(_HALVES)
    assert chosen(threads) == cores


def test_only_what_the_process_may_use_is_chosen(machine):
    machine(_HALVES, may={1, 4, 5})  # a cpuset: both halves of core 1, one of core 0
    assert chosen(2) == [1, 4]
    with pytest.raises(
        UserError, match=r"--pin: 3 threads need 3 physical cores, and this process may use 2: use --th"
    ):
        chosen(3)


def test_an_older_kernels_file_is_read_too(machine):
    machine({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, name="thread_siblings_list")
    assert chosen(2) == [0, 2]


def test_a_kernel_that_hides_its_cores_is_one_line(machine):
    machine({0: "?", 1: "?"})
    with pytest.raises(UserError, match="the kernel does not show which cores are physical ones; leave it out"):
        chosen(1)


def test_a_process_is_bound_and_free_for_a_while(machine):
    now = machine(_HALVES)
    with pytest.raises(Unavailable, match="not bound"):
        bound()
    with free():
        assert now == set(range(8))
    bind(2)
    assert (now, bound(), allowed()) == ({2, 3}, 2, set(range(8)))
    with free():
        assert now == set(range(8))
    assert now == {2, 3}
    bind(4)  # again: of all that was allowed before
    assert (now, bound()) == ({0, 1, 2, 3}, 4)


def test_a_system_that_refuses_is_one_line(machine, monkeypatch):
    machine(_HALVES)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with pytest.raises(UserError, match=r"does not let processes be bound \(Operation not permitted\)"):
        bind(1)
    with pytest.raises(Unavailable):
        bound()


def test_a_system_without_affinity_is_one_line(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(UserError, match="this system binds no process to cores"):
        chosen(1)


def test_bound_and_free_rows_are_of_different_environments(machine):
    machine(_HALVES)
    before = collect("cpu", "default")
    bind(2)
    after = collect("cpu", "default")
    assert (before["pinned_cores"], after["pinned_cores"]) == (None, 2)
    assert before["unavailable"]["pinned_cores"] == "the process is not bound to cores"
    assert (before["cpu_usable_cores"], after["cpu_usable_cores"]) == (8, 8)  # the machine is still the same one
    assert environment_id(before) != environment_id(after)
    older = {name: value for name, value in before.items() if name != "pinned_cores"}
    assert environment_id(older) == environment_id(before)  # rows that were stored before there was a choice


def test_the_kernel_binds_threads_that_are_started_later():
    try:
        core = chosen(1)
    except UserError as error:
        pytest.skip(str(error))
    program = (
        "import os, threading; from meprop_bench.measure.affinity import bind; bind(1); seen = [];"
        "thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))));"
        "thread.start(); thread.join(); print(*seen)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(core)


def test_openmp_is_loaded_before_torch_so_that_what_is_imported_then_may_use_all_cores() -> None:
    """In a process of its own: OpenMP reads its variables once."""
    code = (
        "import os, sys\n"
        "from meprop_bench.measure import affinity\n"
        "affinity.bind(1)\n"
        "affinity.load_openmp()\n"
        "assert 'torch' not in sys.modules\n"
        "with affinity.free():\n"
        "    import torch\n"
        "    torch.ones(300, 300) @ torch.ones(300, 300)\n"
        "    free = os.sched_getaffinity(0)\n"
        "print(len(free), len(os.sched_getaffinity(0)))\n"
    )
    (core,) = chosen(1)
    env = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": f"{{{core}}}"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(len(os.sched_getaffinity(0))), "1"]
