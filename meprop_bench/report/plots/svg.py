"""A picture as SVG: drawn by matplotlib, then given names for its colours and a place for each of its figures.

matplotlib writes colours and fonts into every element. Here each colour of `PALETTE` becomes a class, so that a page
gives it another value on a dark screen and on paper, without drawing it twice; what is left of the styles becomes
attributes, which a strict content policy allows. Text stays text.

A picture is as wide as a telephone, so that its letters are readable there, with the legend below; a wider screen has
several side by side. Every figure shown has a `Point`: where it stands, and the line of the table beside the picture
that says it in full. The page makes these points show their line.

    Plot.svg       a file of its own: title, colours for light and dark, background
    Plot.inline    the same drawing for within a page, which has the title and the colours; with the points
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from meprop_bench.results.redact import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = ["COLOURS", "DASHES", "MARKERS", "PALETTE", "STYLE", "Picture", "Plot", "colours", "log_ticks", "name_of"]

PALETTE = {
    "ink": ("#1b1b1b", "#e6e6e6"),
    "quiet": ("#5f6368", "#a2a7ad"),
    "rule": ("#d7d9dc", "#3b3f44"),
    "page": ("#ffffff", "#16181a"),
    # Okabe and Ito's, two of them darker: each has a contrast of 3 to 1 with the page, and is told from the others with
    # any kind of colour vision.
    "c0": ("#0072b2", "#56b4e9"),
    "c1": ("#d55e00", "#ff8a4c"),
    "c2": ("#009e73", "#2fc79a"),
    "c3": ("#b5599a", "#e39cc4"),
    "c4": ("#8a6d00", "#f0c33c"),
    "c5": ("#444b52", "#c3c8cd"),
    # A stack's parts.
    "p0": ("#7fb7de", "#2f6d97"),
    "p1": ("#e07b39", "#c2591b"),
    "p2": ("#b8bcc0", "#60666c"),
    "p3": ("#d9b44a", "#c9a227"),
    # From much slower to much faster than dense, the fourth of them neither.
    "h0": ("#f4a582", "#8a3a12"),
    "h1": ("#f9c6ad", "#6b3218"),
    "h2": ("#fde5d8", "#47291b"),
    "h3": ("#f1f2f3", "#2a2d30"),
    "h4": ("#d6e6f4", "#1f3a50"),
    "h5": ("#aacfe9", "#1f4c6c"),
    "h6": ("#7fb7dd", "#1f5c85"),
    "h7": ("#56a0d0", "#216a99"),
}
"""Name of a colour -> on a light page, on a dark one."""

COLOURS = tuple(PALETTE[f"c{place}"][0] for place in range(6))
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 2)))
STYLE: Any = {
    "svg.hashsalt": "meprop-bench",  # the same rows give the same bytes
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), PALETTE["ink"][0]),
    "axes.edgecolor": PALETTE["quiet"][0],
    "grid.color": PALETTE["rule"][0],
}
_FONT = "system-ui, 'DejaVu Sans', sans-serif"
_WIDTH, _LINE, _LABEL, _STEM = 360, 13.5, 56, 90
_NAMES = {light: name for name, (light, _) in PALETTE.items()} | {"#000000": "ink", "black": "ink", "white": "page"}
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Plot:
    """One picture: the file's name, what it shows in a sentence, and the SVG.

    On a page it is one of a `figure`'s pictures, of which a reader chooses one: `choices` says which it is.
    """

    name: str
    caption: str
    svg: bytes
    figure: str = ""
    title: str = ""
    detail: str = ""  # what is constant in it
    choices: Mapping[str, str] = field(default_factory=dict)
    inline: str = ""
    columns: tuple[str, ...] = ()  # of the table beside it
    lines: tuple[tuple[str, ...], ...] = ()  # of that table, one for each point
    main: bool = True  # whether it is a file of its own, too, and in a README


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    cells: tuple[str, ...]


class Picture:
    """A pair of axes, and the points of what is drawn in it; `plot` ends it."""

    def __init__(self, *columns: str, left: float | None = None, right: float = 12, top: float = 8) -> None:
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(dpi=72)
        self.axes: Axes = self.figure.add_axes((0.1, 0.1, 0.8, 0.8))
        self.columns = columns
        self._margins = left, right, top
        self._points: list[_Point] = []

    def point(self, x: float, y: float, *cells: str) -> None:
        """Say what stands at a place, in the units of the axes: the cells of its line."""
        self._points.append(_Point(x, y, tuple(one_line(cell) for cell in cells)))

    def plot(
        self,
        stem: str,
        figure: str,
        title: str,
        detail: str,
        caption: str,
        *,
        cut: str = "",
        height: float = 200,
        choices: Mapping[str, str] | None = None,
        main: bool = True,
    ) -> Plot:
        """Lay it out, the axes `height` points high, and return it; `cut` is a sentence on what is not in it."""
        title, detail = one_line(title), one_line(f"{detail}.{cut}" if cut else detail, 400)
        self._lay_out(height)
        places = [self._place(point) for point in self._points]
        drawing = _drawing(self.figure, _short(stem))
        drawn = Plot(
            name=f"{stem}.svg",
            caption=one_line(f"{caption}{cut}", 600),
            svg=_file(drawing, title, detail),
            figure=figure,
            title=title,
            detail=detail,
            choices={key: one_line(value, 400) for key, value in (choices or {}).items()},
            columns=self.columns,
            lines=tuple(point.cells for point in self._points),
            main=main,
        )
        return replace(drawn, inline=_inline(drawing, drawn, places))

    def _lay_out(self, height: float) -> None:
        """Place the axes and below them the legend, in as many columns as its labels allow."""
        left, right, top = self._margins
        if left is None:  # as wide as the longest label of a tick, with the axis's own beside
            left = 24 + 6.2 * max((len(tick.get_text()) for tick in self.axes.get_yticklabels()), default=0)
        handles, labels = self.axes.get_legend_handles_labels()
        labels = [one_line(label, _LABEL) for label in labels]
        longest = max(map(len, labels), default=0)
        columns = 3 if longest <= 14 else 2 if longest <= 25 else 1
        legend = _LINE * -(-len(labels) // columns) + 4 if labels else 0
        bottom = 36 + legend
        whole = top + height + bottom
        self.figure.set_size_inches(_WIDTH / 72, whole / 72)
        self.axes.set_position((left / _WIDTH, bottom / whole, (_WIDTH - left - right) / _WIDTH, height / whole))
        if labels:
            self.figure.legend(
                handles,
                labels,
                ncols=columns,
                fontsize=9.5,
                loc="lower left",
                bbox_to_anchor=(4 / _WIDTH, 2 / whole),
                borderaxespad=0,
                borderpad=0,
                handlelength=2.2,
                labelspacing=0.25,
                columnspacing=1.2,
            )

    def _place(self, point: _Point) -> tuple[float, float]:
        """Return where a point is in the picture, from its upper left corner."""
        x, y = self.axes.transData.transform((point.x, point.y))
        return float(x), float(self.figure.bbox.height - y)


def log_ticks(low: float, high: float) -> Locator:
    """Return what places the ticks of a logarithmic axis from `low` to `high`: several, however short it is."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if high < _FEW_TIMES * low:
        return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    return LogLocator(subs=(1, 2, 5), numticks=7)


_FEW_TIMES = 5
"""Between the ends of an axis on which 1, 2, 5, 10 would be one tick, or two."""


def name_of(kind: str, *words: object) -> str:
    """Return the stem of a file's name from what is in the rows, which may hold anything printable."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(str(word) for word in words if word not in (None, ""))).strip("-.")
    if len(plain) > _STEM:
        plain = f"{plain[:_STEM]}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"
    return f"{kind}-{plain}" if plain else kind


def colours() -> str:
    """Return the palette as CSS: a variable for each colour, light, dark and on paper, and classes that use it."""
    light, dark = ("".join(f"--{name}:{pair[place]};" for name, pair in PALETTE.items()) for place in (0, 1))
    classes = "".join(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in PALETTE)
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{color-scheme:light;{light}}}}}"
        f"{classes}"
    )


def _drawing(figure: Figure, stem: str) -> ElementTree.Element:
    """Return matplotlib's SVG with classes in the place of colours, without what a page has itself or nobody sees.

    Identifiers begin with `stem`: two drawings of one page must not have the same.
    """
    target = BytesIO()
    figure.savefig(target, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(target.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        _plain(element)
    used = {name for element in root.iter() for name in re.findall(r"#([^)]+)", " ".join(_references(element)))}
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
        for name in ("id", *_REFERENCES):
            if name in element.attrib:
                element.attrib[name] = re.sub(r"^(#|url\(#|)", rf"\g<1>{stem}", element.attrib[name])
    _pruned(root)
    return root


_REFERENCES = ("href", "clip-path")


def _references(element: ElementTree.Element) -> list[str]:
    return [element.attrib[name] for name in _REFERENCES if name in element.attrib]


def _pruned(parent: ElementTree.Element) -> None:
    """Drop what is not drawn, put what is grouped for no reason in the group's place, and leave out white space."""
    kept: list[ElementTree.Element] = []
    for child in parent:
        _pruned(child)
        child.tail = None
        if child.tag != "text" and not (child.text or "").strip():
            child.text = None
        empty = child.tag in ("g", "defs") and not len(child)
        invisible = child.tag == "path" and child.attrib.keys() == {"d", "fill"} and child.attrib["fill"] == "none"
        if child.tag in ("metadata", "style") or empty or (invisible and parent.tag == "g"):
            continue
        kept += list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = kept


_XLINK = "{http://www.w3.org/1999/xlink}href"
_LONG = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_DROPPED = ("font-family", "font-style", "font-weight", "font-variant", "font-stretch")


def _plain(element: ElementTree.Element) -> None:
    """Turn an element's style into attributes and classes, and shorten its figures."""
    attributes = element.attrib
    if _XLINK in attributes:
        attributes["href"] = attributes.pop(_XLINK)
    classes = []
    for declaration in attributes.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            attributes["font-size"] = size[1] if size else "10"
        elif name == "font-size":
            attributes[name] = value.removesuffix("px")
        elif name in ("fill", "stroke") and value.lower() in _NAMES:
            classes.append(f"{name[0]}-{_NAMES[value.lower()]}")
        elif name and name not in _DROPPED:
            attributes[name] = value
    if element.tag == "text" and not any(name.startswith("f-") for name in classes):
        classes.append("f-ink")
    if classes:
        attributes["class"] = " ".join(classes)
    for name in ("d", "x", "y", "width", "height", "transform", "points"):
        if name in attributes:
            attributes[name] = " ".join(_LONG.sub(_shorter, attributes[name]).split())
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]


def _shorter(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _short(stem: str) -> str:
    """Return what the identifiers of a picture begin with."""
    return f"i{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def _content(drawing: ElementTree.Element) -> str:
    return "".join(ElementTree.tostring(child, encoding="unicode") for child in drawing)


def _size(drawing: ElementTree.Element) -> tuple[float, float]:
    width, height = drawing.attrib["viewBox"].split()[2:]
    return float(width), float(height)


def _file(drawing: ElementTree.Element, title: str, detail: str) -> bytes:
    """Return the drawing with its title above it, in colours of its own."""
    width, height = _size(drawing)
    letters = width / 6.3
    lines = [(line, 12) for line in textwrap.wrap(title, int(letters * 0.9))]
    lines += [(line, 10) for line in textwrap.wrap(detail, int(letters * 1.1))]
    head, texts = 6.0 if lines else 0.0, []
    for line, size in lines:
        head += size * 1.35
        weight = ' font-weight="600"' if size == 12 else ""
        text = ElementTree.Element("text", {"x": "6", "y": f"{head - 3:g}", "font-size": str(size), "class": "f-ink"})
        text.text = line
        texts.append(ElementTree.tostring(text, encoding="unicode").replace("<text", f"<text{weight}", 1))
    head += 6 * bool(lines)
    name = ElementTree.Element("title")
    name.text = title or "plot"
    return "".join((
        f'<?xml version="1.0" encoding="utf-8"?>\n<!-- Matplotlib v{version("matplotlib")} -->\n',
        f'<svg xmlns="{_SVG}" viewBox="0 {-head:g} {width:g} {height + head:g}" width="{width * 1.4:g}"'
        f' height="{(height + head) * 1.4:g}" role="img" font-family="{_FONT}">',
        ElementTree.tostring(name, encoding="unicode"),
        f"<style>{colours()}*{{stroke-linejoin:round}}</style>",
        f'<rect class="f-page" x="0" y="{-head:g}" width="{width:g}" height="{height + head:g}"/>',
        f'<g transform="translate(0 {-head:g})">{"".join(texts)}</g>',
        _content(drawing),
        "</svg>\n",
    )).encode()  # fmt: skip


def _inline(drawing: ElementTree.Element, plot: Plot, places: Sequence[tuple[float, float]]) -> str:
    """Return the drawing for within a page, and a place to point at for each figure."""
    width, height = _size(drawing)
    stem = _short(plot.name.removesuffix(".svg"))
    points = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9"/>' for x, y in places)
    title, description = (ElementTree.Element(tag, {"id": f"{stem}-{tag}"}) for tag in ("title", "desc"))
    title.text, description.text = plot.title, plot.caption
    return "".join((
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="group"'
        f' aria-labelledby="{stem}-title" aria-describedby="{stem}-desc">',
        ElementTree.tostring(title, encoding="unicode"),
        ElementTree.tostring(description, encoding="unicode"),
        f'<g aria-hidden="true">{_content(drawing)}</g>',
        # An empty title: a browser's own label would cover what the script shows.
        f'<g class="points"><title></title>{points}</g></svg>',
    ))  # fmt: skip
