"""Shards put together: the folder that one run would have left, made of those of its shards.

    Shards.of(stores)      are these the shards of one run, each once? Else a line says what contradicts what
    shards.measured(rows)  the rows of each case, from the one shard whose case it is, in the order of running
    shards.header(rows)    command, plan, environments, peaks and states of the run, and which shards it was made of
    new_folder(out)        all of it appears at once, or nothing

Every row keeps its environment and its revision. Times of different machines or software are not put into one table
unknowingly: that is refused, or allowed and then without the machine's peaks, which would be nobody's.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.environment import NOT_IN_ID
from meprop_bench.measure.peaks import Peaks, peaks_key
from meprop_bench.results.incoming import refused
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import SCHEMA, Row
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.results.store import Store

__all__ = ["Shards", "check_new", "contradiction", "machine_fields", "new_folder"]

_OF_A_CASE = frozenset(
    {"device", "allocator", "torch_threads", "variables", "preloaded_allocators", "pinned_cores", "gpu", "gpu_driver"}
)
"""Fields of an environment that differ between the cases of one run."""
_LONGEST = 60
_OPTION = re.compile(r"\s--shard(?:=|\s+)(?:'[^']*'|\S+)")


def contradiction(text: str) -> UserError:
    """Return the error of what does not fit together."""
    return UserError(text, ExitCode.NOT_COMPARABLE)


@dataclass(frozen=True)
class Shards:
    """The folders of the shards of one run, in their order; not all of them need be there."""

    found: Mapping[int, tuple[Store, ShardOf]]  # number of the shard -> its folder, and what that says

    @classmethod
    def of(cls, stores: Sequence[Store]) -> Self:
        """Take folders; `UserError` where one is no shard, or of another run or split, or one shard comes twice."""
        found: dict[int, tuple[Store, ShardOf]] = {}
        places: dict[Path, None] = {}
        for store in stores:
            if (place := store.folder.resolve()) in places:
                raise UserError(f"{store.folder.name} is named twice: name each shard once")
            places[place] = None
            part = _part(store)
            for other, before in list(found.values())[:1]:
                _check_same_run(other, before, store, part)
            if (twice := found.get(part.shard.index)) is not None:
                raise _double(twice[0], store, part)
            found[part.shard.index] = store, part
        return cls(dict(sorted(found.items())))

    @property
    def _first(self) -> ShardOf:
        return next(iter(self.found.values()))[1]

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan of the whole run."""
        return self._first.plan

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """Key and label of each unit of the run, in the order of running."""
        return {key: one_line(label) for key, label in self._first.units}

    @property
    def stores(self) -> list[Store]:
        """The folders."""
        return [store for store, _ in self.found.values()]

    def missing(self, done: Collection[str], what: str) -> tuple[list[str], str]:
        """Return the labels of the units that are not measured, and which shards these are of, in words."""
        left_out, absent, begun = [key for key in self.labels if key not in done], dict[Shard, int](), list[str]()
        for index in range(1, self._first.shard.of + 1):
            shard = replace(self._first.shard, index=index)
            own = shard.part(self.labels)
            if not (lacking := sum(key in own for key in left_out)):
                continue
            if index in self.found:
                begun.append(f"shard {shard} has not measured {lacking} of its {len(own)} {what}s")
            else:
                absent[shard] = lacking
        said = []
        if absent:
            are = f"s {', '.join(map(str, absent))} are" if len(absent) > 1 else f" {next(iter(absent))} is"
            said = [f"shard{are} missing, with {sum(absent.values())} of {len(self.labels)} {what}s"]
        return [self.labels[key] for key in left_out], "; ".join([*said, *begun])

    def measured(self, keys: Iterable[str] | None = None) -> list[Row]:
        """Return the rows of each case, or of some, from its own shard; `UserError` for one that strayed."""
        of_case: dict[str, list[Row]] = {}
        for store, part in self.found.values():
            own = part.own
            for row in store.rows():
                if row.case_id not in own:
                    known = self.labels.get(row.case_id, row.case_id)
                    raise contradiction(
                        f"{store.folder.name} is shard {part.shard} and holds {known}, which is no case of that: the"
                        " folder was changed, leave it out and measure the shard again"
                    )
                of_case.setdefault(row.case_id, []).append(self._with_revision(row, store))
        return [row for key in (self.labels if keys is None else keys) for row in of_case.get(key, ())]

    def _with_revision(self, row: Row, store: Store) -> Row:
        """Have a row say the revision that its folder's environment says for it: merged, that may be another's."""
        if row.git_revision is not None:
            return row
        revision = store.header["environments"].get(row.environment_id, {}).get("git_revision")
        shared = self._environments([row.environment_id])[row.environment_id].get("git_revision")
        return row if revision == shared else replace(row, git_revision=revision)

    def differing(self, rows: Iterable[Row], more: Iterable[str] = ()) -> str:
        """Return how the environments of timed rows, and of what else was timed, differ in more than what belongs to a
        case; "" where they do not.
        """
        timed = {*(row.environment_id for row in rows if row.measurement is not None), *more}
        known = dict.fromkeys(key for store in self.stores for key in store.header["environments"])
        found = {key: each for key, each in self._environments(key for key in known if key in timed).items() if each}
        alike: dict[tuple[Any, ...], str] = {}
        first = next(iter(found.values()), {})
        for key, each in found.items():
            if said := _unlike(machine_fields(first), machine_fields(each)):
                return said
            of_case = tuple(each.get(name) for name in ("device", "allocator", "torch_threads"))
            if (other := alike.setdefault(of_case, key)) != key:
                return _unlike(_relevant(found[other]), _relevant(each)) or f"{other} and {key}"
        return ""

    def _environments(self, wanted: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        return {
            key: next((env for store in self.stores if (env := store.header["environments"].get(key))), {})
            for key in wanted
        }

    def header(self, rows: Sequence[Row], *, mixed: bool = False) -> dict[str, Any]:
        """Return the header of the run; `mixed`: its environments differ."""
        headers = [store.header for store in self.stores]
        states = [state for header in headers for state in header.get("states", ())]
        hardware = [header.get("hardware") for header in headers]
        known = {key: env for header in reversed(headers) for key, env in header["environments"].items()}
        ids = list(dict.fromkeys(row.environment_id for row in reversed(rows)))  # the last one first, as a run has it
        ids += [key for key in known if key not in ids]
        return {
            "schema": SCHEMA,
            "command": _OPTION.sub("", headers[0]["command"]),
            "started": min(header["started"] for header in headers),
            "plan": dict(self.plan),
            "environments": {key: known[key] for key in ids if key in known},  # of a failed case it may be unknown
            "peaks": {} if mixed else self._peaks(rows),
            "states": sorted(states, key=lambda state: str(state.get("at"))),
            **({"hardware": hardware[0]} if all(each == hardware[0] for each in hardware) else {}),
            "merged": [
                {"shard": str(part.shard), "folder": store.folder.name}
                | {name: store.header.get(name) for name in ("started", "command", "hardware")}
                for store, part in self.found.values()
            ],
        }

    def _peaks(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Return the best of the shards' peaks: noise only ever lowers one."""
        headers = [store.header["peaks"] for store in self.stores]
        used = (peaks_key(row.device, row.dtype, row.threads) for row in rows if row.threads is not None)
        found: dict[str, Any] = {}
        for key in dict.fromkeys([*used, *(key for each in headers for key in each)]):
            best: Peaks | None = None
            for each in headers:
                if key in each:
                    own = Peaks.from_json(each[key])
                    best = own if best is None else best.merged(own)
            if best is not None:
                found[key] = best.to_json()
        return found


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out`, which becomes `out` once the block ends; after an error nothing is there.

    `UserError`: it is there already, or cannot be made.
    """
    check_new(out)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(out: Path) -> None:
    """Refuse a folder that is there; `UserError`."""
    if os.path.lexists(out):
        raise UserError(f"{out} is there already, and nothing is overwritten: name a new folder by --out")


def _part(store: Store) -> ShardOf:
    if (record := store.header.get("shard")) is None:
        raise UserError(f"{store.folder.name} is no shard: it was measured without --shard, or has been merged")
    try:
        return ShardOf.from_json(record)
    except (UserError, ValueError) as error:
        raise refused(f"{store.folder.name} does not say which shard it is", error, "measure it again") from None


def _check_same_run(store: Store, part: ShardOf, other: Store, others: ShardOf) -> None:
    names = f"{store.folder.name} and {other.folder.name}"
    if part.plan != others.plan and (said := _unlike(part.plan, others.plan)):
        raise contradiction(
            f"{names} are of different runs: {said}; measure all shards by one command that says what each machine"
            " would choose for itself (--threads, --data)"
        )
    if part.shard.of != others.shard.of:
        raise contradiction(f"{names} are of different splits, {part.shard} and {others.shard}: merge those of one")
    if part.units != others.units:
        raise contradiction(f"{names} split the same plan differently: measure all shards by one version")


def _double(store: Store, other: Store, part: ShardOf) -> UserError:
    """Return what is wrong with two folders of one shard: they contradict each other, or one is enough."""
    names = f"{store.folder.name} and {other.folder.name} are both shard {part.shard}"
    before = {(row.case_id, row.phase): row for row in store.rows()}
    labels = dict(part.units)
    for row in other.rows():
        if (one := before.get((row.case_id, row.phase))) is not None and one != row:
            return contradiction(f"{names}, with other figures of {labels.get(row.case_id, row.case_id)}: name one")
    return UserError(f"{names}: name the one that counts")


def _relevant(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in environment.items() if name not in NOT_IN_ID and each is not None}


def machine_fields(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an environment says of its machine and software, without what belongs to a case."""
    return {name: each for name, each in _relevant(environment).items() if name not in _OF_A_CASE}


def _unlike(one: Any, other: Any, place: str = "") -> str:
    """Return where two JSON values first differ, and in what; "" where they do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys((*one, *other)):
            if said := _unlike(one.get(name), other.get(name), f"{place}.{name}".lstrip(".")):
                return said
        return ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((said for at, pair in pairs if (said := _unlike(*pair, f"{place}[{at}]"))), "")
    if one == other and type(one) is type(other):
        return ""
    if isinstance(one, list) and isinstance(other, list):
        return f"{place} has {len(one)} and {len(other)} entries"
    return one_line(f"{place} is {_short(one)} and {_short(other)}")


def _short(value: Any) -> str:
    return "not said" if value is None else one_line(str(value), _LONGEST)
