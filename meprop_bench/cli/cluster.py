"""`--ray`: what a command measures or trains is done by the nodes of a Ray cluster. Without it Ray is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from meprop_bench.results.shards import Shard
    from meprop_bench.sweep.cluster import Cluster
    from meprop_bench.workloads.case import Case

__all__ = ["MACHINE", "cluster_at", "refuse_search", "refuse_shard", "with_ray"]

MACHINE = "ray"
"""What the results folders of clusters are called, in place of a machine's name."""

_ANSWER_S = 60.0
"""Seconds that nodes have to say which code they have."""

with_ray = click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="auto",
    help="Use the nodes of the Ray cluster at HOST:PORT, or of the one that this machine is in.",
)
"""Gives a verb `--ray`: None, an address, or "auto"."""


def refuse_shard(address: str | None, shard: Shard | None) -> None:
    """Raise `UserError` for a part of a run on a cluster."""
    if address is not None and shard is not None:
        raise UserError("--ray gives a run to all nodes of a cluster, which needs no --shard: leave one of them out")


@contextmanager
def cluster_at(address: str | None, cases: Iterable[Case] = ()) -> Iterator[Cluster | None]:
    """Give the cluster that `--ray` names, when its nodes have answered and there is one for each case; else None."""
    if address is None:
        yield None
        return
    from meprop_bench.sweep.cluster import connected
    from meprop_bench.sweep.cluster_runner import check_capacity

    with connected(address, partial(click.echo, err=True)) as cluster:
        cluster.refresh(_ANSWER_S)
        check_capacity(cases, cluster.nodes, cluster.refused)
        yield cluster


def refuse_search(address: str | None) -> None:
    """Raise `UserError` for a search on a cluster."""
    if address is not None:
        raise UserError(
            "--ray: a search decides by one machine's times what it does next, within one budget of time; leave --ray"
            " out, and run it on a node, or its shards (--shard) on several"
        )
