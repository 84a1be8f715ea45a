from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meprop_bench.doctor import configuration
from meprop_bench.doctor.configuration import asv, preset, project

_SOUND = 'name = "mine"\nanalysis = "why"\nchecks = ["gradients"]\n[[sweep]]\nk = [2, 4]\nmethod = "unified"\n'


def states(findings: list[configuration.CheckResult]) -> list[str]:
    return [finding.state for finding in findings]


def test_nothing_to_look_at_is_fine(tmp_path: Path) -> None:
    assert states([*project(tmp_path), *asv(tmp_path)]) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("[project]\nname = 'x'\n", []),
        ("[tool.meprop-bench]\n", []),
        ("[tool.meprop-bench.gate]\nmargin = 0.02\nleast-time = 1e-6\n", []),
        (
            "[tool.meprop-bench.gate]\nmargins = {}\nbudgt = 1\n",
            ["unknown key in [tool.meprop-bench.gate]: 'budgt': did you mean 'budget'?"],
        ),
        ("[tool.meprop-bench.gat]\n", ["unknown key in [tool.meprop-bench]: 'gat': did you mean 'gate'?"]),
        ("[tool.meprop-bench]\nzzz = 1\n", ["unknown key in [tool.meprop-bench]: 'zzz'"]),
        ("[tool.meprop-bench]\ngate = 1\n", ["'gate' in [tool.meprop-bench] is not a table"]),
        ("[tool.meprop_bench]\n", ["[tool.meprop_bench] is not read: did you mean [tool.meprop-bench]?"]),
        ("[tool]\nmeprop-bench = 1\n", ["[tool.meprop-bench] is not a table"]),
        ("tool = 1\n", ["'tool' is not a table"]),
        ("[tool.meprop-bench\n", ["it is not TOML"]),
        ("a = " + "[" * 5000, ["it is not TOML"]),
    ],
)
def test_the_project_s_own_settings(text: str, problems: list[str], tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    found = project(tmp_path)
    assert states(found) == (["problem"] * len(problems) or ["ok"])
    assert all(f.text.startswith(problem) for f, problem in zip(found, problems, strict=False)), found


def test_a_verb_that_names_its_keys_has_them_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "TABLES", {"gate": ("margin", "budget")})
    (tmp_path / "pyproject.toml").write_text("[tool.meprop-bench.gate]\nmargn = 0.01\nbudget = 3\n")
    (found,) = project(tmp_path)
    assert found.text == "unknown key in [tool.meprop-bench.gate]: 'margn': did you mean 'margin'?"


_ASV = '{"version": 1, "repo": ".", %s}'


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (_ASV % '"project": "x"', []),
        ('// says "what"\n{"version": 1, /* {,} */ "repo": "http://x//y", "matrix": {},}', []),
        (_ASV % '"benchmak_dir": "b"', ["unknown key 'benchmak_dir': did you mean 'benchmark_dir'?"]),
        (_ASV % '"build_cache_size": 4, "zzz": 1', ["unknown key 'zzz'"]),
        ('{"repo": "."}', ["there is no version"]),
        ('{"version": 2, "repo": "."}', ["the version is 2"]),
        ('{"version": 1}', ["there is no repo"]),
        (_ASV % '"branches": []', ["the branches are empty"]),
        ('{"version": 1,', ["it is not JSON"]),
        ("[1]", ["it holds a list, not an object"]),
        ("", ["it is not JSON"]),
        ("[" * 100_000, ["it is not JSON"]),
    ],
)
def test_asv_s_configuration(text: str, problems: list[str], tmp_path: Path) -> None:
    (tmp_path / "asv.conf.json").write_text(text)
    found = asv(tmp_path)
    assert states(found) == (["problem"] * len(problems) or ["ok"])
    assert all(f.text.startswith(problem) for f, problem in zip(found, problems, strict=False)), found


def test_json5_is_read_where_its_reader_is(tmp_path: Path) -> None:
    (tmp_path / "asv.conf.jsonc").write_text("{version: 1, repo: '.'}")
    assert states(asv(tmp_path)) == ["ok"]


def test_a_plugin_may_read_keys_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "asv.conf.json").write_text(_ASV % '"plugins": ["p"], "its_own": 1')
    assert states(asv(tmp_path)) == ["warning"]


def test_asv_refuses_two_files(tmp_path: Path) -> None:
    for name in ("asv.conf.json", "asv.conf.jsonc"):
        (tmp_path / name).write_text(_ASV % '"project": "x"')
    assert states(asv(tmp_path)) == ["problem"]


def test_without_asv_its_file_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asv.config", None)
    (tmp_path / "asv.conf.json").write_text(_ASV % '"reslts_dir": "r"')
    (found,) = asv(tmp_path)
    assert (found.state, found.text) == ("ok", "not looked at: asv, whose keys these are, is not installed")


@pytest.mark.parametrize("name", ["pyproject.toml", "asv.conf.json", "mine.toml"])
@pytest.mark.parametrize("what", ["a folder", "not UTF-8", "binary"])
def test_no_broken_file_is_a_traceback(name: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if what == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe\x00 = 1" if what == "not UTF-8" else bytes(range(256)))
    look = {"pyproject.toml": project, "asv.conf.json": asv}.get(name)
    (found,) = look(tmp_path) if look else preset(str(path))
    assert found.state == "problem"
    assert "\n" not in found.text


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        (_SOUND, "ok", "mine: 2 cases"),
        (_SOUND + 'device = "cuda:7"\n', "warning", "cuda:7"),
        (_SOUND.replace("[[sweep]]", "buget = 1\n[[sweep]]"), "problem", "did you mean 'budget'?"),
        (_SOUND + "hiden = 3\n", "problem", "did you mean 'hidden'?"),
        (_SOUND + "batch = -1\n", "problem", "batch must be an integer of at least 1, not -1"),
        (_SOUND.replace("[[sweep]]", "processes = inf\n[[sweep]]"), "problem", "processes"),
        ("name = ", "problem", "not TOML"),
    ],
)
def test_presets_are_read_and_planned(text: str, state: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    (found,) = preset(str(path))
    assert (found.state, found.check) == (state, "mine.toml")
    assert words in found.text or "sound preset" in found.text, found


def test_presets_that_are_not_there(tmp_path: Path) -> None:
    (found,) = preset(str(tmp_path / "none.toml"))
    assert (found.state, "No such file" in found.text) == ("problem", True)
    (found,) = preset("quik")
    assert "did you mean 'quick'?" in found.text
    assert states(preset("quick")) == ["ok"]
