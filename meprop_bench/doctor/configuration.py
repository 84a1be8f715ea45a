"""Mistakes in configuration files: keys that nobody reads, which is how a typo silently changes nothing.

    pyproject.toml       [tool.meprop-bench] of the working directory: the tables in `TABLES`
    asv.conf.json(c)     of the working directory: the attributes of asv's own `Config`, which accepts any key silently
    presets              TOML files named on the command line: read and planned as `speedup --preset` does it

Each mistake is a finding of its own, with a suggestion where a known key is close. Files are read as their owners read
them, asv's by its own reader and against its own keys, where it is installed. No file, however broken, ends the
examination.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meprop_bench.doctor.check_result import CheckResult, State
from meprop_bench.errors import UserError, nearest
from meprop_bench.gate.settings import KEYS
from meprop_bench.report.cells import counted
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import load_preset, plan_preset

__all__ = ["TABLES", "asv", "preset", "project"]

TABLES: Mapping[str, Collection[str] | None] = {"gate": KEYS}
"""Table of [tool.meprop-bench] -> the keys that its verb reads; None where only the verb itself knows them. The one
place that says what may stand there: a verb with settings adds its line."""

_TOOL = "meprop-bench"

_ASV_MORE = ("version", "build_cache_size", "wheel_cache_size")
"""Read by asv, too, though not attributes of its `Config`: `util.load_json`, `build_cache`, `Config.from_json`."""

_ASV_VERSION = 1


def project(folder: Path) -> list[CheckResult]:
    """Look at [tool.meprop-bench] in a folder's pyproject.toml."""
    path = folder / "pyproject.toml"
    found = partial(CheckResult, "configuration", path.name)
    if not path.exists():
        return [found("ok", "none in this directory")]
    try:
        tools = _read(path, "TOML", tomllib.loads).get("tool", {})
    except ValueError as error:
        return [found("problem", str(error))]
    if not isinstance(tools, dict):
        return [found("problem", "'tool' is not a table")]
    problems = [
        f"[tool.{name}] is not read: did you mean [tool.{_TOOL}]?"
        for name in difflib.get_close_matches(_TOOL, tools, n=3, cutoff=0.75)
        if name != _TOOL
    ]
    own = tools.get(_TOOL)
    if own is not None:
        problems += _wrong_tables(own)
    if problems:
        return [found("problem", problem) for problem in problems]
    text = f"[tool.{_TOOL}]: {', '.join(own) or 'empty'}" if own is not None else f"no [tool.{_TOOL}]"
    return [found("ok", text)]


def asv(folder: Path) -> list[CheckResult]:
    """Look at a folder's asv.conf.json, or .jsonc."""
    found = partial(CheckResult, "configuration", "asv.conf.json")
    paths = [path for name in ("asv.conf.json", "asv.conf.jsonc") if (path := folder / name).exists()]
    if not paths:
        return [found("ok", "none in this directory")]
    if len(paths) > 1:
        text = "asv refuses a directory with both asv.conf.json and asv.conf.jsonc"
        return [found("problem", text, "remove one of them")]
    try:
        known = (*vars(import_module("asv.config").Config()), *_ASV_MORE)
        record = _read(paths[0], "JSON", import_module("json5").loads)  # asv's own reader, which it brings
    except ImportError:
        return [found("ok", "not looked at: asv, whose keys these are, is not installed")]
    except ValueError as error:
        return [found("problem", str(error))]
    problems = [found("problem", text, advice) for text, advice in _asv_needs(record)]
    graded: State = "warning" if record.get("plugins") else "problem"  # a plugin may read keys of its own
    problems += [found(graded, text, "asv ignores it silently") for text in _unknown("key", record, known)]
    return problems or [found("ok", f"{len(record)} keys, all known to asv {version('asv')}")]


def preset(name: str) -> list[CheckResult]:
    """Read and plan a preset, by its name or its file; then ask whether this machine can measure it."""
    found = partial(CheckResult, "configuration", Path(name).name or name)
    try:
        plan = plan_preset(load_preset(name))
    except UserError as error:
        return [found("problem", " ".join(str(error).split()))]
    cases = len(plan.cases)
    text = f"{plan.name}: {counted(cases, 'case')}, about {cases * plan.budget / 60:.0f} minutes of timing at most"
    try:
        check_feasible(plan.cases, pin=plan.pin, ranks=True)
    except UserError as error:
        return [found("warning", f"{text}; not here: {error}")]
    return [found("ok", text)]


def _wrong_tables(own: Any) -> list[str]:
    if not isinstance(own, dict):
        return [f"[tool.{_TOOL}] is not a table"]
    problems = _unknown(f"key in [tool.{_TOOL}]:", own, TABLES)
    for name, keys in TABLES.items():
        if name in own and not isinstance(own[name], dict):
            problems.append(f"{name!r} in [tool.{_TOOL}] is not a table: write [tool.{_TOOL}.{name}]")
        elif name in own and keys is not None:
            problems += _unknown(f"key in [tool.{_TOOL}.{name}]:", own[name], keys)
    return problems


def _asv_needs(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what asv itself would refuse, with what to do."""
    wrong = []
    if record.get("version") != _ASV_VERSION:
        said = f"the version is {record['version']!r}" if "version" in record else "there is no version"
        wrong.append((f"{said}: asv refuses it", f'write "version": {_ASV_VERSION}'))
    if not record.get("repo"):
        wrong.append(("there is no repo: asv refuses it", 'write "repo": "." for this repository'))
    if not record.get("branches", [None]):
        wrong.append(("the branches are empty: asv refuses it", "name one, or leave the key out"))
    return wrong


def _unknown(what: str, keys: Iterable[str], known: Collection[str]) -> list[str]:
    """Return a line for each key that is not known, with what was probably meant."""
    wrong = [key for key in keys if key not in known]
    meant = {key: nearest(key, known) for key in wrong}  # without all that is allowed: asv has thirty keys
    return [f"unknown {what} {key!r}" + (f": did you mean {meant[key]!r}?" if meant[key] else "") for key in wrong]


def _read(path: Path, form: str, loads: Callable[[str], Any]) -> dict[str, Any]:
    """Return what a file holds; `ValueError` says in one line what is wrong with it."""
    try:
        record = loads(path.read_text(encoding="utf-8" if form == "TOML" else "utf-8-sig"))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or 'input or output error'}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not {form}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, not an object")
    return record
