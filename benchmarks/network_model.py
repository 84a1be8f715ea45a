"""Does the model of the network hold? Its exchange against that of real ranks whose links are slow.

    MEPROP_BENCH_DATA=data python -m benchmarks.network_model --ranks 2,4 --bandwidth 0.1,0.5

For each number of ranks and each bandwidth (Gbit/s) a perceptron is trained by so many processes of this machine, each
of whose connections the kernel paces (`measure.wire.limit`), without a privilege. A ring sends over one connection of a
rank, gathered rows go over all P - 1 at once and share its link: each then has a part of it. Communication is measured
as `speedup --world-size` does it, as what the exchange adds to the backward pass, and held against `workloads.network`;
DDP hides a part of its exchange behind that pass, so that what is measured may lie below the model by as much as the
pass takes. The latency is an idle loopback's; ranks that wait for a core take longer for a message, which shows where
the bandwidth is large and the messages are many.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

from meprop_bench.measure.pool import Pool
from meprop_bench.sweep.worker import start_for
from meprop_bench.workloads.case import DATA, Case
from meprop_bench.workloads.network import Load, Network, Tensors, agreed, dense, gathered

_CASE = Case(
    workload="mlp", method="unified", k=64, batch=32, data="digits", in_features=DATA["digits"], out_features=1024,
    layers=2, gradient="rows", optimizer="adagrad", baseline="fused", threads=1, world_size=2, exchange="gathered",
    dense_exchange="ddp",
)  # fmt: skip


def main() -> None:
    """Print a line for each exchange: predicted and measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--bandwidth", default="0.1,0.5", help="Gbit/s")
    parser.add_argument("--latency", type=float, default=60.0, help="µs")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each comparison")
    given = parser.parse_args()
    heads = f"{'ranks':>5} {'Gbit/s':>7} {'exchange':>9} {'sent':>9} {'backward':>9}"
    print(f"{heads} {'predicted':>10} {'measured':>9}  ratio")
    for ranks in map(int, given.ranks.split(",")):
        for gigabits in map(float, given.bandwidth.split(",")):
            network = Network(ranks, 1e9 * gigabits, 1e-6 * given.latency)
            for case in _cases(ranks):
                _compare(case, network, given.seconds)


def _cases(ranks: int) -> list[Case]:
    return [
        replace(_CASE, world_size=ranks, exchange=exchange, dense_exchange=dense_exchange)
        for exchange, dense_exchange in (("gathered", "ddp"), ("agreed", "fp16"))
    ]


def _compare(case: Case, network: Network, seconds: float) -> None:
    with Pool.of(lambda: start_for(case), 1) as pool:
        pool.hello(threads=1, device="cpu")
        pool.ask(0, "setup", case=case.to_json())
        found = pool.ask(0, "check", warm_s=0.5)["check"]
        if found != "passed":
            raise SystemExit(f"{case.label}: {found}")
        tensors = [Tensors(*one) for one in pool.ask(0, "exchanged")["exchanged"]]
        sent = pool.ask(0, "wire")["sides"]
        connection = replace(network, bandwidth=network.bandwidth / _connections(case))
        pool.ask(0, "limit", bytes_per_s=connection.bandwidth / 8)
        pairs = pool.ask(0, "measure", seconds=seconds, least_pairs=5, loops=1, seed=0)["pairs"]
    loads: list[Load] = [
        dense(tensors, network.ranks, case.dense_exchange or "ddp"),
        (gathered if case.exchange == "gathered" else agreed)(tensors, network.ranks),
    ]
    links = connection, network
    for side, (name, link, load) in enumerate(zip((case.dense_exchange, case.exchange), links, loads, strict=True)):
        predicted = link.seconds(load)
        taken, backward = (median(pair[side] for pair in pairs[phase]) for phase in ("communication", "backward"))
        print(
            f"{link.ranks:5} {link.bandwidth / 1e9:7.3g} {name:>9} {sent[side]['measured'] / 1e6:6.3f} MB"
            f" {1e3 * backward:6.1f} ms {1e3 * predicted:7.1f} ms {1e3 * taken:6.1f} ms {taken / predicted:6.2f}",
            flush=True,
        )


def _connections(case: Case) -> int:
    """Return over how many connections at once a rank sends the sparsified side's gradients."""
    return case.world_size - 1 if case.exchange == "gathered" else 1


if __name__ == "__main__":
    main()
