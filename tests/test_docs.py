"""What a newcomer reads is true: pages build, links lead somewhere, commands parse, examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from meprop_bench.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    ROOT / name
    for pattern in ("*.md", "docs/*.md", "reports/*.md", "benchmarks/*.md", "meprop_bench/gate/*.md")
    for name in ROOT.glob(pattern)
)
_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index", "commands", "api", "methodology"):
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
