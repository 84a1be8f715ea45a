"""The help of every command: options in groups, examples that parse, and nothing left out."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from meprop_bench.cli import VERBS, cli, run
from meprop_bench.cli.options import Grouped

_MOST = 6
"""Options that need no groups, `--help` included."""


def _commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        found[verb] = command
        if isinstance(command, click.Group):
            found |= {f"{verb} {name}": sub for name, sub in command.commands.items()}
    return found


COMMANDS = _commands()


def _parse(line: str) -> None:
    command: click.Command = cli
    words = shlex.split(line.partition("  #")[0])[1:]
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        if found is None and command.invoke_without_command:
            break
        assert found is not None, line
        command, words = found, words[1:]
    command.make_context(line, words, resilient_parsing=False).close()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_ends_with_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    lines = re.findall(r"^ +(meprop-bench .*)$", text.rpartition("Examples:")[2], re.M)
    assert lines, text
    for line in lines:
        assert line.startswith(f"meprop-bench {name} ") or line == f"meprop-bench {name}"
        _parse(line)


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if len(c.params) >= _MOST])
def test_many_options_are_in_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Grouped)
    assert len(command.groups) > 1
    options = {param.opts[-1].removeprefix("--") for param in command.params if isinstance(param, click.Option)}
    grouped = [option for names in command.groups.values() for option in names]
    assert sorted(grouped) == sorted(options)  # each once, and none that is not there
    run([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert [heading for heading in command.groups if f"\n{heading}:\n" not in text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    assert [param.opts for param in COMMANDS[name].params if isinstance(param, click.Option) and not param.help] == []
