"""A profile as text or HTML: phases and stages side by side, a tree of operators for each side, what `why` answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from meprop_bench.report.cells import ABSENT, between, ratio, ratio_within, seconds, seconds_within
from meprop_bench.report.fragment import enclosed, folded, paragraphs, section
from meprop_bench.report.sections import Section, plain_section
from meprop_bench.report.terminal import new_page, printed, say, show
from meprop_bench.report.why import answers, phase_name, stage_names
from meprop_bench.results.profile import SIDES, Profile, Stage
from meprop_bench.stats import Interval, too_wide

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from meprop_bench.measure.profile import Node

__all__ = ["as_html", "as_text"]

_TREE = 62
"""Columns that a tree needs: two of them stand side by side where both fit."""

_NAME = 34
_WORDS = ("phase", "stage", "bound by")
_DROP = ("bound by", "efficiency", "floor, dense", "floor, sparse")
_STAGES_REMARK = (
    "Each stage was timed by itself, with warm caches, as the difference between calls that ask for more and for less;"
    " so they need not add up, and the rest is what the whole phase takes besides."
)
_FUSED_REMARK = (
    "Gather and product are one figure: the kernel {} reads the selected rows while it multiplies, and timing the two"
    " apart would cost as much as it measures. The kernel gather, with a unified selection, shows them apart."
)


def as_text(profile: Profile, *, terminal: bool = False, width: int | None = None) -> str:
    """Return the profile as text, what it answers first: on a terminal in its width, else as wide as it needs to be."""
    page = new_page(terminal=terminal, width=width)
    say(page, "bold red", *profile.doubts)
    say(page, "bold", profile.label)
    for answer in answers(profile):
        say(page, "bold", answer.question)
        say(page, "", answer.text)
        say(page, "dim", f"[{answer.how}]")
    for found in (_phases(profile), *([] if profile.stages_of is None else [_stages(profile)])):
        page.print()
        show(page, found)
    page.print()
    say(page, "bold", "Operators")
    _print_trees(page, profile)
    say(page, "dim", _slowdown(profile))
    if profile.notes:
        page.print()
        say(page, "", *profile.notes)
    return printed(page)


def as_html(profile: Profile) -> str:
    """Return the profile as a fragment of HTML, for a notebook: what it answers first, the operators folded away."""
    page = new_page(terminal=False, width=2 * _TREE + 4)
    _print_trees(page, profile)
    operators = f"<pre>{escape(printed(page))}</pre>\n{paragraphs('quiet', [_slowdown(profile)])}"
    found = [
        paragraphs("verdict", [answer.question]) + paragraphs("", [answer.text]) + paragraphs("quiet", [answer.how])
        for answer in answers(profile)
    ]
    sections = [_phases(profile), *([] if profile.stages_of is None else [_stages(profile)])]
    return enclosed(
        paragraphs("bad", profile.doubts),
        *found,
        *map(section, sections),
        folded("Operators", operators),
        paragraphs("quiet", profile.notes),
    )


def _phases(profile: Profile) -> Section:
    heads = ("phase", "dense", "sparse", "speed-up", "floor, dense", "floor, sparse", "efficiency")
    lines = [
        (
            phase_name(row.phase or ""),
            *(_timed(profile, side, row.phase or "") for side in SIDES),
            ABSENT if row.interval is None else ratio_within(row.interval),
            *(seconds(side.floor_s) for side in (row.dense, row.sparse)),
            ABSENT if row.sparse.efficiency is None else f"{row.sparse.efficiency:.0%}",
        )
        for row in profile.rows
    ]
    return _section("Phases", heads, lines)


def _stages(profile: Profile) -> Section:
    heads = ("stage", "dense", "floor", "x", "sparse", "floor", "x", "bound by")
    lines = []
    for name, words in stage_names(profile).items():
        if not any(profile.stage(side, name) for side in SIDES):
            continue
        found = [profile.stage(side, name) for side in SIDES]
        cells = [cell for stage in found for cell in _stage_cells(stage)]
        lines.append((words, *cells, (found[1] and found[1].bound) or ""))
    remark = _STAGES_REMARK + (" " + _FUSED_REMARK.format(profile.kernel) if profile.fused else "")
    return replace(_section(f"Stages of the {profile.stages_of}", heads, lines), remark=remark)


def _section(title: str, heads: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Section:
    return plain_section(title, heads, lines, left=_WORDS, keys=frozenset(heads[:1]), drop=_DROP)


def _timed(profile: Profile, side: str, phase: str) -> str:
    """Return a time with its interval over the processes."""
    found, value = profile.within(side, phase), profile.seconds(side, phase)
    if value is None or found is None:
        return seconds(value)
    return seconds_within(Interval(value, found.low, found.high))


def _stage_cells(stage: Stage | None) -> tuple[str, str, str]:
    if stage is None:
        return ABSENT, "", ""
    time = seconds_within(stage.interval)
    if not stage.floor_s or stage.vague:
        return time, "", ""
    return time, seconds(stage.floor_s), ratio(stage.seconds / stage.floor_s)


def _print_trees(page: Console, profile: Profile) -> None:
    from rich.table import Table

    trees = [_tree(side, profile) for side in SIDES]
    if page.width < 2 * _TREE:
        for tree in trees:
            page.print(tree)
        return
    grid = Table.grid(padding=(0, 4))
    grid.add_row(*trees)
    page.print(grid)


def _tree(side: str, profile: Profile) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(side, "bold"))
    for node in profile.trees.get(side, ()):
        whole_s = profile.seconds(side, node.name)
        scale = whole_s / node.seconds if whole_s and node.seconds else 1.0
        _grow(tree, node, scale, node.seconds * scale)
    return tree


def _grow(tree: Tree, node: Node, scale: float, whole_s: float) -> None:
    """Add a node: its share is that of its phase, its time that share of the phase's time without a profiler."""
    from rich.text import Text

    time_s = node.seconds * scale
    name = node.name if len(node.name) <= _NAME else node.name[: _NAME - 1] + "…"
    low, high = (None if bound is None else bound * scale for bound in (node.low, node.high))
    found = Interval.of(time_s, low, high)
    text = Text(name).append(f" {seconds_within(found)}")
    if whole_s and not too_wide(found.half_width):
        text.append(f" {time_s / whole_s:.0%}", "dim")
    if node.calls != 1:
        text.append(f" ×{node.calls:.3g}", "dim")
    if node.device_s:
        text.append(f" GPU {seconds(node.device_s)}")
    branch = tree.add(text)
    for child in node.children:
        _grow(branch, child, scale, whole_s)
    own_s = node.seconds - sum(child.seconds for child in node.children)
    if node.children and own_s * scale >= 0.05 * whole_s > 0:
        branch.add(Text(f"itself {seconds(own_s * scale)}").append(f" {own_s * scale / whole_s:.0%}", "dim"))


def _slowdown(profile: Profile) -> str:
    """Say what the profiler added, and what "itself" is."""
    factors = [
        node.seconds / whole_s
        for side, nodes in profile.trees.items()
        for node in nodes
        if (whole_s := profile.seconds(side, node.name))
    ]
    if not factors:
        return ""
    return (
        f"Shares are torch.profiler's, under which the phases took {between(factors)} as long; the times are these"
        " shares of what was timed without it, ×n the calls. Itself: outside of torch's operators, which is"
        " Python, autograd's engine, or a compiled kernel."
    )
