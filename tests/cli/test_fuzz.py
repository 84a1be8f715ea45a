"""Damaged result files: 1,000 seeded mutants of everything that a verb reads, and every verb that reads it.

Whatever is in a file, a verb ends with one of its exit codes; where it refuses, it does so in one line; and what
contradicts itself is refused. A mutant is made again by the seed that the failure names.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from scipy.stats import t as student

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.revisions import Measured
from meprop_bench.gate.series import Series
from meprop_bench.gate.shards import GateShard, Revision, save
from meprop_bench.measure.environment import hardware, machine_slug
from meprop_bench.measure.paired import Measurement
from meprop_bench.report.asv import export
from meprop_bench.results.baselines import Baselines
from meprop_bench.results.schema import SCHEMA, Parity, Row
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store
from meprop_bench.stats import mean_difference, non_inferiority
from meprop_bench.sweep.parity import ParityPlan, case_id, compare
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.tasks.recipe import Recipe

_ROOT = Path(__file__).parents[2]
_TIMED = _ROOT / "reports/2026-11-28_amd-epyc-2c_quick"
_TABLE = _ROOT / "reports/2026-11-22_amd-epyc-2c_paper-tkde-10-short"
_COUNTED = _ROOT / "reports/2026-11-21_amd-epyc-2c_paper-tkde-1-short"

Verb = Callable[[Path], list[str]]

# --- what is damaged -------------------------------------------------------------------------------------------------


def _short(row: Row) -> Row:
    """The same row with four pairs of each process, and the figures that these have."""
    assert row.measurement is not None
    runs = [run[:4] for run in row.measurement.runs]
    found = Measurement(row.phase or "", tuple(runs), row.measurement.loops)
    return replace(
        row, measurement=found, sparse=replace(row.sparse, median_s=found.median_s),
        dense=replace(row.dense, median_s=found.baseline_median_s), speedup=found.speedup.estimate,
        speedup_low=found.speedup.low, speedup_high=found.speedup.high,
    )  # fmt: skip


def _rows() -> list[Row]:
    every = [Row.from_json(json.loads(line)) for line in (_TIMED / MEASUREMENTS).read_text().splitlines()]
    chosen = [row for row in every if row.phase == "backward"][:2] + [row for row in every if row.parity][:1]
    return [*map(_short, chosen), Row(**{**_of_no_phase(chosen[0]), "error": "killed by signal 9"})]


def _of_no_phase(row: Row) -> dict[str, Any]:
    """What a row that was not timed has of this one."""
    names = ("workload", "method", "kernel_requested", "batch", "device", "in_features", "out_features", "threads")
    names += ("dtype", "gradient", "allocator", "environment_id")
    return {**{name: getattr(row, name) for name in names}, "case_id": "f" * 12, "k": 7, "kernel": None, "phase": None}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound file, or results folder, of each kind."""
    root = tmp_path_factory.mktemp("sound")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    (checkout := root / "checkout").mkdir()
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", "-C", checkout, *words], check=True)
    found = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    revision = found.stdout.strip()[:12]
    rows = [replace(row, git_revision=revision) for row in _rows()]
    records = [row.to_json() for row in rows]

    (folder := root / "folder").mkdir()
    header = json.loads((_TIMED / ENVIRONMENT).read_text())
    (folder / ENVIRONMENT).write_text(json.dumps(header))
    (folder / MEASUREMENTS).write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, source in (("table", _TABLE), ("counted", _COUNTED)):
        (root / name).mkdir()
        for path in (*source.glob("*.json"), *source.glob("*.jsonl")):
            shutil.copy(path, root / name)

    document = {"schema": records[0]["schema"], "command": "x", "environment": header["environments"], "rows": records}
    (root / "document.json").write_text(json.dumps(document))
    stages = {"dense": [{"name": "dx", "seconds": 1e-3}], "sparse": [{"name": "dx", "seconds": 1e-4}]}
    profile = {"label": "x", "stages": stages, "break_even": [], "layers": [2, 1], "answers": []}
    (root / "profile.json").write_text(json.dumps({**document, "profile": profile}))
    suite = [
        {"name": "test", "fullname": f"a.py::{i}", "stats": {"median": 1e-3, "rounds": 5}, "extra_info": {"row": row}}
        for i, row in enumerate(records[:3])
    ]
    info = {"machine_info": {"node": "n", "cpu": {"brand_raw": "c"}}, "version": "5.1.0", "datetime": "2026-03-04"}
    own = {**info, "environments": header["environments"], "command": "pytest"}
    (root / "suite.json").write_text(json.dumps({**own, "benchmarks": suite}))
    data = [1e-3, 1.1e-3, 1.2e-3, 0.9e-3, 1.05e-3]
    stats = {"median": 1.05e-3, "q1": 1e-3, "q3": 1.1e-3, "iqr": 1e-4, "mean": 1.05e-3, "stddev": 1e-4, "rounds": 5}
    foreign = [
        {"name": "test_a", "fullname": "b.py::test_a", "stats": {**stats, "data": data}, "extra_info": {}},
        {"name": "test_b", "fullname": "b.py::test_b", "stats": stats, "extra_info": {}},
    ]
    (root / "foreign.json").write_text(json.dumps({**info, "benchmarks": foreign}))
    export([folder], root / "asv", repository=checkout, dirty=True)
    (asv,) = (root / "asv").rglob("*-stored-*.json")
    shutil.copy(asv, root / "asv.json")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        verdicts = ["gate", "--baseline", str(root / "document.json"), "--candidate", str(root / "document.json")]
        run([*verdicts, "--format", "json"])
    (root / "gate.json").write_text(printed.getvalue())
    explained = json.loads(printed.getvalue())
    pair = {"base": 1e-3, "head": 1.1e-3, "ratio": 1.1, "low": 1.09, "high": 1.12, "values": 40}
    explained["judgements"][0]["processes"] = [pair, {**pair, "ratio": 1.05}]
    (root / "explained.json").write_text(json.dumps(explained))
    Baselines(root / "kept").save("main", [root / "document.json"], source="document.json", machine="c")
    _resumable(root, rows[0], header)
    _shards(root, rows, header)
    return root


_SPEEDUP = ["speedup", "--method", "unified", "--k", "4", "--hidden", "32", "--batch", "8", "--threads", "1"]
_PARITY = ["parity", "--task", "digits", "--method", "meprop", "--k", "4", "--batch", "50", "--seeds", "2"]


def _resumable(root: Path, row: Row, header: dict[str, Any]) -> None:
    """Store what a speed-up and a comparison of accuracies that are complete left."""
    machine = machine_slug("cpu")
    here = {name: {**found, **hardware()} for name, found in header["environments"].items()}
    plan = plan_axes({"method": ["unified"], "k": [4], "hidden": [32], "batch": [8], "threads": [1]})
    axes = {name: getattr(plan.cases[0], name) for name in ("in_features", "out_features", "batch", "threads", "k")}
    with Store.create(root / "speedup", plan.name, machine, "x", plan.to_json()) as store:
        store.append([replace(row, case_id=plan.cases[0].case_id, **axes)])
        store.write_environment(here, header["peaks"])
    comparison = ParityPlan(Recipe("digits", {"batch": 50}, "meprop", 4), seeds=2)
    found = mean_difference([(96.0, 96.5), (95.0, 95.2)])
    parity = Parity(
        task="digits", seeds=(1, 2), steps=75, baseline=(96.0, 95.0), method=(96.5, 95.2), margin=0.5,
        difference=found.estimate, low=found.low, high=found.high, verdict=non_inferiority(found, 0.5),
    )  # fmt: skip
    own = Row(**{**_of_no_phase(row), "case_id": case_id(comparison), "parity": parity, "error": None})
    name = f"parity-{comparison.recipe.label}".replace(" ", "-").replace("=", "-")
    with Store.create(root / "parity", name, machine, "x", comparison.to_json()) as store:
        store.append([own])
        store.write_environment(here)


def _shards(root: Path, rows: list[Row], header: dict[str, Any]) -> None:
    """Store the only shard of a sweep, and that of a gate."""
    units = tuple((case_id, f"case {case_id}") for case_id in dict.fromkeys(row.case_id for row in rows))
    part = ShardOf(Shard(1, 1), header["plan"], units)
    with Store.create(root / "shards", "quick", "c", "speedup --shard 1/1", header["plan"], shard=part) as store:
        store.append(rows)
        store.write_environment(header["environments"], header["peaks"])
    shutil.move(store.folder, root / "shard")
    pairs = tuple(tuple((1e-3, 1.01e-3 + n * 1e-6) for n in range(5)) for _ in range(4))
    series = (
        Series(case="a", figure="backward", quantity="time", unit="s", pairs=pairs, most=9),
        Series(case="a", figure="accuracy", quantity="accuracy", unit="points", base=(90.0, 91.0), head=(90.0, 92.0)),
        Series(case="b", figure="times", quantity="time", unit="s", unjudged="new: the base has none", decides=False),
    )
    found = Measured(series, ("a note",), {"cpu_model": "c"}, 4, {"b": ("no", True)}, 2, (("a", "a note"),))
    sides = Revision("main", "1" * 40), Revision("the work tree", None, "f" * 12)
    words = ("gate", "--base", "1" * 40)
    save(GateShard(Shard(1, 1), ("a", "b"), *sides, {"margin": 0.1}, False, found, (), words, 9.0), root / "shard.json")


def _merge(_: Path, found: Path) -> list[str]:
    return ["merge", str(found), "--out", str(found.parent / "merged"), "--format", "json"]


def _gate_merge(_: Path, found: Path) -> list[str]:
    return ["gate", "merge", str(found), "--format", "md"]


def _gate(sound_name: str) -> list[Callable[[Path, Path], list[str]]]:
    def head(root: Path, found: Path) -> list[str]:
        return ["gate", "--baseline", str(root / sound_name), "--candidate", str(found)]

    def base(root: Path, found: Path) -> list[str]:
        return ["gate", "--baseline", str(found), "--candidate", str(root / sound_name), "--format", "md"]

    return [head, base]


def _explain(_: Path, found: Path) -> list[str]:
    return ["gate", "explain", "*", "--result", str(found)]


def _named(root: Path, found: Path) -> list[str]:
    return ["gate", "--baseline", "main", "--candidate", str(root / "document.json"), "--baselines", str(found)]


def _report(form: str) -> Callable[[Path, Path], list[str]]:
    return lambda _, found: ["report", str(found), "--format", form]


def _compare(root: Path, found: Path) -> list[str]:
    return ["compare", str(root / "folder"), str(found), "--across-environments", "--format", "csv"]


def _export(root: Path, found: Path) -> list[str]:
    where = str(found.parent / "exported")
    return ["export", "asv", str(found), "--to", where, "--repo", str(root / "checkout"), "--dirty"]


def _export_into(root: Path, found: Path) -> list[str]:
    return ["export", "asv", str(root / "folder"), "--to", str(found), "--repo", str(root / "checkout"), "--dirty"]


def _resume(*words: str) -> Callable[[Path, Path], list[str]]:
    return lambda _, found: [*words, "--resume", "--format", "json", "--out", str(found)]


def _reuse(root: Path, found: Path) -> list[str]:
    where = str(found.parent / "results")
    return ["paper", "run", "tkde:10", "--scale", "smoke", "--reuse", str(found), "--deadline", "1e-6", "--out", where]


_REPORTS = [_report(form) for form in ("json", "md", "csv", "table")]
_OURS = [*_REPORTS[:3], _compare, _export, *_gate("folder")]
_KINDS: dict[str, tuple[str, str, list[Callable[[Path, Path], list[str]]], int]] = {
    "rows": ("folder", MEASUREMENTS, _OURS, 240),
    "environment": ("folder", ENVIRONMENT, _OURS, 110),
    "trainings": ("table", "trainings.jsonl", _REPORTS[:2], 40),
    "decodings": ("table", "decodings.json", _REPORTS[:2], 30),
    "plan": ("table", ENVIRONMENT, _REPORTS[:2], 40),
    "counts": ("counted", "counts.json", _REPORTS[:2], 20),
    "document": ("document.json", "", [*_gate("document.json"), _REPORTS[0]], 120),
    "profile": ("profile.json", "", _gate("profile.json"), 30),
    "suite": ("suite.json", "", [*_gate("suite.json"), _REPORTS[0], _compare], 90),
    "foreign": ("foreign.json", "", _gate("foreign.json"), 90),
    "asv": ("asv.json", "", _gate("asv.json"), 80),
    "exported": ("asv", "*/*-stored-*.json", [_export_into], 20),
    "benchmarks": ("asv", "benchmarks.json", [_export_into], 10),
    "resumed rows": ("speedup", f"*/{MEASUREMENTS}", [_resume(*_SPEEDUP, "--deadline", "1e-6")], 20),
    "resumed plan": ("speedup", f"*/{ENVIRONMENT}", [_resume(*_SPEEDUP, "--deadline", "1e-6")], 10),
    "resumed parity": ("parity", f"*/{MEASUREMENTS}", [_resume(*_PARITY)], 20),
    "reused": ("table", "trainings.jsonl", [_reuse], 10),
    "reused decodings": ("table", "decodings.json", [_reuse], 10),
    "explained": ("explained.json", "", [_explain], 60),
    "baseline": ("kept", "*/baseline.json", [_named], 40),
    "kept": ("kept", "*/*/document.json", [_named], 10),
    "verdicts": ("gate.json", "", [*_gate("document.json"), _REPORTS[0]], 10),
    "shard": ("shard", ENVIRONMENT, [_merge], 40),
    "shard's rows": ("shard", MEASUREMENTS, [_merge], 20),
    "gate's shard": ("shard.json", "", [_gate_merge], 80),
}
"""Kind -> the sound file or folder, the file in it that is damaged, the verbs that read it, how many mutants."""


def test_there_are_a_thousand_and_more():
    assert sum(count for *_, count in _KINDS.values()) == 1250


# --- how it is damaged -----------------------------------------------------------------------------------------------

_NUMBERS = (
    "-1", "0", "-0.0", "1e308", "-1e308", "1e400", "1e-320", "NaN", "Infinity", "-Infinity", "1" + "0" * 400, "-5",
    "1" * 5000, "0.5", "1e17", "9007199254740993", "-1e-9", "true", "null",
)  # fmt: skip
_OTHERS = ('""', '"x"', '"\\u0000\\u001b[31m"', '"\\ud800"', "[]", "{}", "[[]]", "[1]", '{"a": 1}', "[null]", '"1e-3"')


def _bytes(data: bytes, source: random.Random) -> bytes:
    """Damage that knows nothing of JSON."""
    place, size = source.randrange(len(data)), source.choice([1, 1, 2, 8, 200])
    lines = data.splitlines(keepends=True)
    damages: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: data[:place],
        lambda: data[place:],
        lambda: data[:place] + data[place + size :],
        lambda: data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :],
        lambda: data[:place] + source.randbytes(size) + data[place:],
        lambda: data[:place] + data[max(0, place - 100) : place] + data[place:],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode().encode("utf-16"),
        lambda: data + source.choice([b"\xff", b"[" * 100_000, b"{}", b"\x00", b'{"a":' * 50_000, b"null\n", b"\n\n"]),
        lambda: data + source.choice(lines),
        lambda: b"".join(source.sample(lines, len(lines))),
        lambda: b"".join(lines[1:]),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: source.choice([b"[" * 100_000, b'{"a":' * 100_000, b"null", b"[]", b"{}", b"0", b'"x"', b"\n"]),
    ]
    return source.choice(damages)()


class _Raw(str):
    """Text that goes into the JSON as it is."""


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _dump(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        pairs = [f"{json.dumps(str(key))}: {_dump(item)}" for key, item in value.items()]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value)


def _structure(record: Any, source: random.Random) -> str:
    """Damage within a JSON value: another value, no value, two of a key, two values in each other's places."""
    paths = list(_paths(record))[1:]
    # Numbers of one long list are as one another: half of the time a place near the root.
    paths = source.choice([paths, [path for path in paths if len(path) <= 2] or paths])
    if not paths:
        return _dump(_Raw(source.choice(_OTHERS)))
    path = source.choice(paths)
    owner = record
    for key in path[:-1]:
        owner = owner[key]
    key, how = path[-1], source.choice(["number", "number", "other", "delete", "twice", "swap", "scale", "scale"])
    if how == "number":
        owner[key] = _Raw(source.choice(_NUMBERS))
    elif how == "other":
        owner[key] = _Raw(source.choice(_OTHERS))
    elif how == "delete":
        del owner[key]
    elif how == "twice" and isinstance(owner, dict):
        owner[key] = _Raw(f"{_dump(owner[key])}, {json.dumps(str(key))}: {source.choice(_NUMBERS)}")
    elif how == "swap" and len(owner) > 1:
        other = source.choice(
            [each for each in (owner if isinstance(owner, dict) else range(len(owner))) if each != key]
        )
        owner[key], owner[other] = owner[other], owner[key]
    elif isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        owner[key] = owner[key] * source.choice([0.5, 2, 10, -1, 1.01])
    elif isinstance(owner[key], list) and all(isinstance(each, float) for each in owner[key]):
        owner[key] = [each * 2 for each in owner[key]]
    return _dump(record)


def _mutated(data: bytes, source: random.Random, lines: bool) -> bytes:
    if source.random() < 0.3:
        return _bytes(data, source)
    if not lines:
        return _structure(json.loads(data), source).encode()
    every = data.decode().splitlines()
    place = source.randrange(len(every))
    every[place] = _structure(json.loads(every[place]), source)
    return ("\n".join(every) + "\n").encode()


# --- what is expected ------------------------------------------------------------------------------------------------


def _contradicts(row: dict[str, Any]) -> bool:
    """Whether a row's figures are not those of its values: another computation than the package's."""
    values, baseline, lengths = row.get("values_s"), row.get("baseline_values_s"), row.get("run_lengths")
    if not values or not baseline or not lengths:
        return bool(values or baseline or lengths)
    if not len(values) == len(baseline) == sum(lengths) or min(*values, *baseline) <= 0:
        return True
    logs, place = [], 0
    for length in lengths:
        run = [math.log(b / m) for b, m in zip(baseline[place:], values[place : place + length], strict=False)]
        logs.append(statistics.median(run))
        place += length
    mean = statistics.fmean(logs)
    own = {"median_s": statistics.median(values), "baseline_median_s": statistics.median(baseline)}
    own |= {"speedup": math.exp(mean), "processes": len(lengths)}
    if len(logs) > 1:
        half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        own |= {"speedup_low": math.exp(mean - half), "speedup_high": math.exp(mean + half)}
    if row.get("floor_s") is not None:
        own["efficiency"] = row["floor_s"] / own["median_s"]
    marks = row.get("disturbed")
    names = own if not marks or not any(marks) else ("median_s", "baseline_median_s", "processes")
    return any(row.get(name) is not None and not math.isclose(row[name], own[name], rel_tol=1e-5) for name in names)


def _stored(path: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a file that was accepted."""
    if kind == "rows":
        found = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    elif kind in ("document", "profile"):
        found = json.loads(path.read_bytes())["rows"]
    elif kind == "suite":
        extra = [one["extra_info"] for one in json.loads(path.read_bytes())["benchmarks"]]
        found = [each["row"] for each in extra if isinstance(each, dict) and isinstance(each.get("row"), dict)]
        found = [row for row in found if row.get("schema") == SCHEMA]  # the others are any project's
    else:
        found = []
    return found


def _nobody() -> NoReturn:
    raise UserError("nobody trains here")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, looked at or trained: that takes seconds."""
    monkeypatch.setattr("meprop_bench.report.formats.draw", lambda _: ([], "", {}))
    monkeypatch.setattr("meprop_bench.measure.machine.state", lambda _: {"warnings": []})
    monkeypatch.setattr("meprop_bench.sweep.parity.compare", partial(compare, start=_nobody))


@pytest.mark.parametrize("kind", [kind for kind in _KINDS if kind != "verdicts"])
def test_what_is_sound_is_read(kind: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, verbs, _ = _KINDS[kind]
    for number, verb in enumerate(verbs):
        target = tmp_path / str(number) / name
        if (sound / name).is_dir():
            shutil.copytree(sound / name, target)
        else:
            target.parent.mkdir()
            shutil.copy(sound / name, target)
        words = verb(sound, target)
        code, said = run(words), capsys.readouterr().err
        if words[0] == "report" and name in ("document.json", "gate.json"):
            assert "neither a results folder nor a file of pytest-benchmark's" in said
        else:
            assert code in (ExitCode.OK, ExitCode.REGRESSION, ExitCode.INCONCLUSIVE), f"{words}: {said}"
            assert "starting anew" not in said


@pytest.mark.parametrize("kind", _KINDS)
def test_no_damage_gets_past_a_verb(kind: str, sound: Path, tmp_path: Path) -> None:
    name, inner, verbs, count = _KINDS[kind]
    for number in range(count):
        source = random.Random(f"{kind} {number}")
        target = tmp_path / str(number) / name
        if (sound / name).is_dir():
            shutil.copytree(sound / name, target)
        else:
            target.parent.mkdir()
            shutil.copy(sound / name, target)
        damaged = next(target.glob(inner)) if inner else target
        damaged.write_bytes(_mutated(damaged.read_bytes(), source, damaged.suffix == ".jsonl"))
        verb = source.choice(verbs)(sound, target)
        out, err = io.StringIO(), io.StringIO()
        where = f"mutant {number} of {kind}, {' '.join(verb)}"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = run(verb)
            except BaseException as error:
                raise AssertionError(f"{where}: {type(error).__name__}") from error
        assert code in range(6), where
        complaints = [line for line in err.getvalue().splitlines() if line.startswith("meprop-bench: error: ")]
        refused = code in (ExitCode.USAGE, ExitCode.NOT_COMPARABLE, ExitCode.NOTHING_MEASURED)
        # A run that finds nothing to go on with begins anew, and ends with 5 where no time is left for it.
        assert len(complaints) == refused or (code == ExitCode.NOTHING_MEASURED and not complaints), (
            f"{where}: {err.getvalue()}"
        )
        assert "Traceback" not in err.getvalue(), where
        if not refused:
            assert not [row for row in _stored(damaged, kind) if _contradicts(row)], f"{where}: accepted"
        shutil.rmtree(tmp_path / str(number))
