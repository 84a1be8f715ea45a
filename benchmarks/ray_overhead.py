"""What Ray adds to a case: a sweep of short cases here, and on a cluster of one node that is this machine.

    python -m benchmarks.ray_overhead --cases 24

The same plan, with processes that are kept, once by `Runner` and once by `ClusterRunner` on a local cluster; printed
are the seconds of both for each case, the start of the node and its examination among them, and the difference. The
machine has to be idle. The bound is 2 s a case.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ray.cluster_utils import Cluster as LocalCluster

from meprop_bench.results.axes import default_threads
from meprop_bench.results.store import Store
from meprop_bench.sweep.cluster import connected
from meprop_bench.sweep.cluster_runner import ClusterRunner
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import Runner
from meprop_bench.workloads.case import Case

BOUND_S = 2.0


def main() -> int:
    """Measure, print, and return 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timing for each")
    chosen = parser.parse_args()
    threads = default_threads()
    cases = tuple(
        Case(method="unified", k=k, batch=32, in_features=256, out_features=256, threads=threads)
        for k in range(1, chosen.cases + 1)
    )
    plan = Plan(name="overhead", cases=cases, checks=("gradients",), budget=chosen.budget, processes=3,
                keep_processes=True, utilization=False, target=1e-6)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        os.environ |= {"RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0"}
        taken: list[float] = []

        def timed(run: Callable[[Store], object]) -> float:
            with Store.create(Path(folder), "overhead", f"m{len(taken)}", "", plan.to_json()) as store:
                begun = time.perf_counter()
                run(store)
                taken.append((time.perf_counter() - begun) / len(cases))
                assert len(store.done_case_ids()) == len(cases)
            return taken[-1]

        timed(lambda store: Runner(plan, store).run())  # what is compiled and cached, both find
        here_s = timed(lambda store: Runner(plan, store).run())
        cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        cluster.add_node(num_cpus=os.cpu_count())
        try:
            with connected(cluster.address, print) as connection:
                there_s = timed(lambda store: ClusterRunner(plan, store, connection, say=print).run())
        finally:
            cluster.shutdown()
    added = there_s - here_s
    print(f"{here_s:.2f} s a case here, {there_s:.2f} s on Ray: {added:.2f} s more, of {BOUND_S:g} s that it may take")
    return int(added > BOUND_S)


if __name__ == "__main__":
    sys.exit(main())
