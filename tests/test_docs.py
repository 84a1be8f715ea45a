"""What a newcomer reads is true: pages build, links lead somewhere, commands parse, excerpts are current."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from meprop_bench.cli import cli
from meprop_bench.cli.report import collected
from meprop_bench.report.index import as_page

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    ROOT / name
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "examples/*.md",
        "reports/*.md",
        "benchmarks/*.md",
        "meprop_bench/gate/*.md",
    )
    for name in ROOT.glob(pattern)
)
_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index", "commands", "api", "methodology", "papers", "reports", "results", "log/accuracy", "changes"):
        assert (tmp_path / f"{page}.html").stat().st_size > 5_000
    assert "--in-features" in (tmp_path / "commands.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=_NAMES)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=_NAMES)
def test_commands_parse(page: Path) -> None:
    for block in _blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition("#")[0])
            if words and words[0].rpartition("/")[2] == "meprop-bench" and len(words) > 1:
                group = cli.make_context("meprop-bench", words[1:], resilient_parsing=True)
                name, command, rest = cli.resolve_command(group, words[1:])
                assert command is not None
                context = click.Context(command, parent=group, info_name=name, resilient_parsing=True)
                command.make_parser(context).parse_args(rest)  # raises for an option that is not there


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(_blocks(page, "python")):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"example {number + 1} of {page.name}: {done.stderr}"


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _committed(pattern: str) -> set[str]:
    """Names below reports/ that git has; where there is no git, all that are there."""
    done = subprocess.run(["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = {line.split("/")[1] for line in done.stdout.splitlines()} or {path.name for path in ROOT.glob("reports/*")}
    return {name for name in names if re.match(pattern, name)}


def test_the_readme_is_one_page_with_a_current_excerpt():
    spec = importlib.util.spec_from_file_location("excerpt", ROOT / "docs/excerpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = _text("README.md")
    assert len(readme.splitlines()) <= 150
    folder = module.current(ROOT / "reports")
    assert module.excerpt(folder) in readme, "run `make readme`"
    assert f"]({module.PLOT.as_posix()})" in readme
    stored = (ROOT / module.PLOT).read_bytes()
    drawn = module.plot(folder).svg
    if (made := _creator(stored)) != (here := _creator(drawn)):
        pytest.skip(f"the README's plot was drawn by {made}, and here is {here}")
    assert stored == drawn, "run `make readme`"


def _creator(svg: bytes) -> str:
    found = re.search(rb"Matplotlib v[\d.]+", svg)
    return found[0].decode() if found else ""


def test_the_reference_has_every_public_name_of_the_method():
    page = _text("docs/api.rst")
    for module in ("nn", "optim", "distributed"):
        names = importlib.import_module(f"meprop_bench.{module}").__all__
        assert not [name for name in names if not re.search(rf"^\.\. auto\w+:: {name}$", page, re.M)], module


def test_the_list_of_results_is_what_the_results_give():
    index, _ = collected(ROOT / "reports")
    assert as_page(index, trends=True) == _text("reports/README.md"), "run `meprop-bench report --index reports`"
    assert {entry.place.partition("/")[0] for entry in index.entries} == _committed(r"20\d\d-")


def test_every_entry_of_the_log_is_in_its_index():
    index = _text("docs/log/index.md")
    listed = set(re.findall(r"^- \[(.*)\]\(([\w-]+)\.md#([^)]+)\)$", index, re.M))
    found = set()
    for page in (ROOT / "docs/log").glob("*.md"):
        for heading in re.findall(r"^## (20.*)$", page.read_text(encoding="utf-8"), re.M):
            anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            found.add((heading.partition(" · ")[2], page.stem, anchor))
    assert listed == found


def test_the_architecture_page_lists_the_files_between_the_arguments_and_the_number():
    section = _text("docs/architecture.md").partition("## From arguments to a number")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. \[[^\]]+\]\(\.\./(meprop_bench/[\w/]+\.py)\)", section, re.M)
    assert 10 <= len(files) <= 20
    assert len(set(files)) == len(files)
    for number, file in enumerate(files[1:], 1):  # each is imported, or started, by one before it
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        parent, _, stem = name.rpartition(".")
        inside = re.escape(name.removeprefix("meprop_bench."))
        reached = re.compile(
            rf"\bmeprop_bench\.{inside}\b|\"{inside}:|from {re.escape(parent)} import [^\n]*\b{stem}\b"
        )
        package = f"{file.rpartition('/')[0]}/__init__.py"  # one that loads its modules by name
        assert package in files[:number] or any(reached.search(_text(earlier)) for earlier in files[:number]), file


def test_the_hosted_workflow_runs_what_make_has_on_every_python_that_is_supported():
    workflow = yaml.safe_load(_text(".github/workflows/test.yml"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([\w-]+):", _text("Makefile"), re.M))
    ran = set()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert {"uses", "run"} & set(step)
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/checkout@v4"))
            if "run" in step:
                assert re.fullmatch(r"make [\w-]+", step["run"])
                assert step["run"][5:] in targets
                ran.add(step["run"][5:])
    assert ran == {"test", "cluster", "docs", "browser"}
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    oldest = re.search(r'requires-python = ">=([\d.]+)"', _text("pyproject.toml"))
    assert oldest is not None
    assert matrix["python"][0] == oldest[1]
    assert all(set(left_out) <= {"os", "python"} for left_out in matrix["exclude"])


def test_pre_commit_runs_the_linters_of_make():
    (repository,) = yaml.safe_load(_text(".pre-commit-config.yaml"))["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    recipe = _text("Makefile").partition("\nlint:")[2].partition("\n\n")[0]
    lint = re.findall(r"\$\(BIN\)/(.*)", recipe)
    as_make = [entry.replace(".venv/bin/", "").replace(" --fix", "") for entry in entries]
    assert as_make == [line.replace(" --check", "").removesuffix(" .") for line in lint]
    assert all(hook["language"] == "system" for hook in repository["hooks"])
