"""The page in a real browser, where there is one: what a reader sees and does, at the width of a telephone and of a
screen, in the dark and on paper; and what somebody who wrote the results cannot do."""

import re
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("matplotlib", reason="needs the report extra")
from meprop_bench.report.document import Document
from meprop_bench.report.formats import draw
from meprop_bench.report.page import as_html
from meprop_bench.report.plots import KINDS, STYLE
from meprop_bench.report.plots.training import SeedCurve, learning, sizes
from meprop_bench.results.schema import Utilization
from tests.report.browser import CUT, WIDTHS
from tests.report.conftest import PEAKS, linear_rows, make_row, mlp_rows


def used(row, factor=1.0):
    own = Utilization(seconds=2.0, iterations=100, cpu_utilization=198.0 / factor, power_w=80.0 / factor,
                      energy_per_step_j=0.4 / factor)  # fmt: skip
    return replace(row.sparse if factor > 1 else row.dense, utilization=own)


def story():
    """Rows of which every kind of picture is made."""
    counts = {"flops": 4e6, "bytes": 2e6, "baseline_flops": 4e8, "baseline_bytes": 4e6}
    grid = [
        make_row(f"g{h}-{k}-{phase}", k=k, batch=50, in_features=h, out_features=h, speedup=h / k / 12, phase=phase,
                 median=h * h * 1e-8 / (h / k / 12), **counts)
        for h in (250, 500, 1000, 2000)
        for k in (10, 30, 100)
        for phase in ("forward", "backward")
    ]  # fmt: skip
    rows = [*linear_rows(), *mlp_rows(), *grid]
    return [
        replace(row, dense=used(row), sparse=used(row, 2.0)) if row.workload == "mlp" and row.passed else row
        for row in rows
    ]


def made(rows, title="2026-03-04_amd-epyc-2c_story", **more):
    import matplotlib as mpl

    peaks = {"cpu float32, 2 threads": PEAKS}
    document = Document(
        title, "meprop-bench speedup", "2026-03-04T05:06:07+00:00", rows, {"aabb": {"cpu": "x"}}, peaks, **more
    )
    plots, remark, left_out = draw(document)
    arms = {
        "MLP": [SeedCurve([1, 2, 3], [90, 93, 95], 9.0)] * 2,
        "meProp": [SeedCurve([1, 2, 3], [89, 93, 94], 4.0)] * 2,
    }
    with mpl.rc_context(STYLE):
        plots += learning("MNIST", "dev metric", arms, number=0)
        plots.append(sizes("MNIST", {"meSimp p=0.1": {"layer 1": [130.0, 140.0], "layer 2": [90.0]}}, 500, number=0))
    return as_html(document, plots, remark, left_out)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(made(story()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(open_address, address):
    """A function that opens the page, or another one, at the width of a screen."""

    def opened(where=address, **how):
        page = open_address(where, **how)
        if how.get("script", True):
            page.until("document.querySelector('.filters label') || !document.querySelector('#rows')")
        return page

    return opened


PANELS = """
[...document.querySelectorAll('.panel')].map((panel) => {
  panel.parentElement.querySelectorAll('.panel').forEach((one) => { one.hidden = one !== panel; });
  const svg = panel.querySelector('svg'), at = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')];
  const scale = at.width / svg.viewBox.baseVal.width;
  const outside = (one) => {
    const own = one.getBoundingClientRect();
    return own.left < at.left - 3 || own.right > at.right + 3 || own.top < at.top - 3 || own.bottom > at.bottom + 3;
  };
  return {
    title: panel.querySelector('h3').textContent,
    width: at.width,
    height: at.height,
    drawn: [...svg.querySelectorAll('[aria-hidden] *')].filter((one) => one.getBoundingClientRect().width).length,
    points: svg.querySelectorAll('circle').length,
    least: Math.min(...texts.map((one) => parseFloat(getComputedStyle(one).fontSize) * scale)),
    outside: texts.filter(outside).map((one) => one.textContent),
  };
})
"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_every_picture_is_drawn_without_a_word_on_the_console(open_page, width, dark, address):
    page = open_page(width=width, dark=dark)
    shown = page.value("[...document.querySelectorAll('[data-figure]')].map((one) => one.dataset.figure)")
    assert shown == [kind for kind in KINDS if kind != "trend"]  # which results have together
    found = page.value(PANELS)
    assert len(found) > 20
    for panel in found:
        assert panel["width"] > 300, panel
        assert panel["height"] > 60, panel
        assert panel["drawn"] > 10, panel
        assert panel["points"], panel
        assert panel["least"] >= 8, panel
        assert panel["outside"] == [], panel
    assert page.complaints() == []
    assert page.requests() == [address]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(open_page, width):
    page = open_page(width=width)
    page.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.value("document.documentElement.scrollWidth") <= width


def test_a_dark_page_is_dark_and_its_pictures_too(open_page):
    colour = "getComputedStyle(document.querySelector('svg.plot .f-ink')).fill"
    page = open_page(dark=False)
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value(colour) == "rgb(27, 27, 27)"
    page.media(dark=True)
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
    assert page.value(colour) == "rgb(230, 230, 230)"
    page.media(dark=True, paper=True)
    assert page.value(colour) == "rgb(27, 27, 27)"


def test_the_pointer_and_the_keyboard_show_what_a_point_is(open_page):
    page = open_page()
    page.point_at("#over .panel:not([hidden]) circle")
    page.until("!document.querySelector('#tip').hidden")
    said = page.value("document.querySelector('#tip').innerText")
    assert re.search(r"speed-up [\d.]+x \[[\d.]+, [\d.]+\]", said)
    assert "of each process" in said
    assert "pairs)" in said
    page.key("Escape")
    assert page.value("document.querySelector('#tip').hidden")
    page.value("document.querySelector('#over .panel:not([hidden]) circle').focus()")
    first = page.value("document.querySelector('#tip').innerText")
    page.key("ArrowRight")
    assert page.value("document.querySelector('#tip').innerText") != first
    page.key("End")
    count = page.value("document.querySelectorAll('#over .panel:not([hidden]) circle').length")
    assert (
        page.value(
            "[...document.querySelectorAll('#over .panel:not([hidden]) circle')].indexOf(document.activeElement)"
        )
        == count - 1
    )
    assert "k: k = " in page.value("document.activeElement.getAttribute('aria-label')")
    assert page.complaints() == []


def test_every_choice_leads_to_a_picture_and_is_in_the_address(open_page, address):
    page = open_page()
    kinds = [kind for kind in KINDS if page.value(f"document.querySelectorAll('#{kind} .choices select').length")]
    assert {"over", "accuracy", "learning"} <= set(kinds)
    labels = "[...document.querySelectorAll('#over .choices label')].map((one) => one.firstChild.textContent)"
    assert {"phase", "over", "metric"} <= set(page.value(labels))
    for kind in kinds:
        selects = page.value(f"document.querySelectorAll('#{kind} .choices select').length")
        for select in range(selects):
            at = f"#{kind} .choices label:nth-child({select + 1}) select"
            for value in page.value(f"[...document.querySelectorAll({at + ' option'!r})].map((one) => one.value)"):
                page.choose(at, value)
                assert page.value(f"document.querySelector({at!r}).value") == value
                assert page.value(f"document.querySelectorAll('#{kind} .panel:not([hidden])').length") == 1
    shown = page.value("[...document.querySelectorAll('.panel:not([hidden]) h3')].map((one) => one.textContent)")
    again = open_page(address, fragment=page.value("location.hash"))
    assert (
        again.value("[...document.querySelectorAll('.panel:not([hidden]) h3')].map((one) => one.textContent)") == shown
    )
    assert page.complaints() == []


def test_a_screen_reader_is_told_what_everything_is(open_page):
    page = open_page()
    page.send("Accessibility.enable")
    nodes = [node for node in page.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    said = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    named = {role: [name for one, name in said if one == role] for role, _ in said}
    titles = page.value("[...document.querySelectorAll('.panel:not([hidden]) h3')].map((one) => one.textContent)")
    assert set(titles) <= set(named["group"])
    points = named["image"]
    assert all(": " in point for point in points)
    assert any(re.search(r"k: k = 8; speed-up: [\d.]+x \[", point) for point in points)
    assert {"phase", "metric"} <= set(named["combobox"])
    assert {"search"} <= set(named["searchbox"])
    assert all(name for role in ("button", "combobox", "columnheader", "heading") for name in named[role])
    assert any(name.startswith("values and warnings of row") for name in named["button"])
    described = [
        node for node in nodes if node["role"]["value"] == "group" and node.get("name", {}).get("value") in titles
    ]
    assert all(node.get("description", {}).get("value") for node in described)


REACHED = """
(() => { const one = document.activeElement, style = getComputedStyle(one);
  return [one.tagName.toLowerCase() + (one.className.baseVal ?? one.className ? '.' + one.className : ''),
    style.outlineStyle !== 'none' || style.strokeWidth === '1.5px']; })()
"""


def test_all_is_reached_by_the_keyboard_and_what_is_reached_is_seen(open_page):
    page = open_page()
    found = {}
    for _ in range(250):
        page.key("Tab")
        name, seen = page.value(REACHED)
        found[name.split(".")[0] + (".open" if name.endswith(".open") else "")] = seen
    assert {"select", "circle", "input", "button", "button.open", "summary"} <= found.keys()
    assert all(seen for name, seen in found.items() if name != "body"), found
    page.value("document.querySelector('.grid thead button').focus()")
    page.key("Enter")
    assert "rows.sort" in page.value("location.hash")
    assert page.complaints() == []


def texts(page, column):
    return page.value(
        f"[...document.querySelectorAll('.grid tbody tr:not(.opened)')].map((one) => one.cells[{column}].innerText)"
    )


def heads(page):
    return page.value("[...document.querySelectorAll('.grid thead th')].map((one) => one.textContent)")


def test_rows_are_sorted_filtered_and_searched_and_the_address_says_it(open_page, address):
    page = open_page()
    place = heads(page).index("speed-up")
    page.click(f".grid thead th:nth-child({place + 1}) button")
    page.until("location.hash.includes('rows.sort=-speed-up')")
    factors = [float(text.split("x")[0]) for text in texts(page, place) if "x" in text]
    assert factors == sorted(factors, reverse=True)
    assert texts(page, place)[-1] == "–"
    page.click(f".grid thead th:nth-child({place + 1}) button")
    factors = [float(text.split("x")[0]) for text in texts(page, place) if "x" in text]
    assert factors == sorted(factors)
    assert page.value(f"document.querySelectorAll('.grid thead th')[{place}].ariaSort") == "ascending"

    labels = page.value("[...document.querySelectorAll('.filters label')].map((one) => one.firstChild.textContent)")
    page.choose(f".filters label:nth-child({labels.index('method') + 1}) select", "meprop")
    assert {text.strip("▸ ") for text in texts(page, heads(page).index("method"))} == {"meprop"}
    page.write(".filters input", "backward 128")
    page.until("location.hash.includes('rows.q=')")
    count = page.value("document.querySelector('.count').textContent")
    assert count == f"1 of {len(story())} rows"

    again = open_page(address, fragment=page.value("location.hash"))
    assert again.value("document.querySelector('.count').textContent") == count
    assert again.value("document.querySelector('.filters input').value") == "backward 128"
    again.write(".filters input", "no row has this")
    again.until("document.querySelector('.count').textContent.startsWith('0 of')")
    assert page.complaints() == again.complaints() == []


def test_a_row_opens_to_its_values_and_warnings(open_page, address):
    page = open_page()
    page.write(".filters input", "budget")
    page.until("document.querySelectorAll('.grid tbody tr').length === 1")
    page.click(".grid .open")
    said = page.value("document.querySelector('.opened').innerText")
    for words in ("budget spent", "speed-up of each process", "dense, each process", "pairs, dense / sparse"):
        assert words in said
    assert page.value("document.querySelector('.grid .open').ariaExpanded") == "true"
    again = open_page(address, fragment=page.value("location.hash"))
    assert again.value("document.querySelector('.opened').innerText") == said
    again.value("document.querySelector('.grid .open').focus()")
    again.key("Enter")
    assert again.value("document.querySelectorAll('.opened').length") == 0


def test_pages_of_rows_can_be_turned(browser, tmp_path, open_page):
    base = make_row("a")
    rows = [replace(base, case_id=str(place), k=place + 1, speedup=1 + place / 999) for place in range(3000)]
    path = tmp_path / "many.html"
    path.write_text(as_html(Document("many", "c", "s", rows), []), encoding="utf-8")
    page = open_page(path.as_uri())
    assert page.value("document.querySelector('.count').textContent") == "3000 rows, 1 to 200"
    page.click(".pages button:last-child")
    assert page.value("document.querySelector('.count').textContent") == "3000 rows, 201 to 400"
    assert texts(page, heads(page).index("k"))[0].strip("▸ ") == "201"
    assert page.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_and_its_button_begin_in_one_line(open_page, width):
    page = open_page(width=width)
    tops = """[...document.querySelectorAll('.grid td > .open')].map((button) => {
      const text = document.createRange(), own = button.getBoundingClientRect();
      text.selectNode(button.nextSibling);
      const first = text.getClientRects()[0];
      return own.top < first.bottom && first.top < own.bottom && own.left < first.left;
    })"""
    assert set(page.value(tops)) == {True}


A4 = {False: 702, True: 1032}
"""Pixels between the margins of a sheet upright, and on its side, as the rows are."""


@pytest.mark.parametrize("dark", [False, True])
def test_on_paper_no_table_is_cut_and_what_is_folded_is_open(open_page, dark, tmp_path):
    page = open_page(dark=dark)
    page.value("dispatchEvent(new Event('beforeprint'))")
    page.media(dark=dark, paper=True)
    for landscape, width in A4.items():
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        assert page.value(CUT.replace("LANDSCAPE", str(landscape).lower())) == []
    assert page.value("document.querySelector('.facts pre').checkVisibility()")
    # A button in the heading of a table is not drawn again on its next sheets.
    assert page.value("getComputedStyle(document.querySelector('.grid th button')).display") == "contents"
    page.paper(tmp_path / "page.pdf")
    if shutil.which("pdftotext") is not None:
        import subprocess

        text = subprocess.run(
            ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, check=True
        ).stdout
        assert b"meprop-bench speedup" in text
    assert page.complaints() == []


def test_without_its_script_a_page_shows_first_pictures_and_rows(open_page):
    page = open_page(script=False)
    assert page.value("document.querySelectorAll('.panel:not([hidden]) svg').length") == len(KINDS) - 1
    assert page.value("document.querySelectorAll('.grid tbody tr').length") == len(story())
    assert page.value("document.querySelector('noscript').checkVisibility()")


EVIL = (
    "<img src=https://example.org/x onerror=document.title='had'>",
    "</script><script>document.title='had'</script>",
    "javascript:document.title='had'",
    "</title></svg><script>document.title='had'</script>",
    "a\u202ereversed\u2066 \x1b[2J\x00",
    "n" * 10_000,
    "]]></style><style>body{display:none}</style>",
)


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_rows_do_nothing(open_page, tmp_path, width):
    rows = [
        make_row(f"{place}-{k}", k=k, phase=phase, speedup=40 / k, median=k * 1e-4, notes=[name], **evil)
        for place, name in enumerate(EVIL)
        for evil in [dict.fromkeys(("method", "kernel", "gradient", "workload", "allocator"), name)]
        for k in (8, 32)
        for phase in ("forward", "backward", "step")
    ]
    path = tmp_path / "evil.html"
    path.write_text(made(rows, title=EVIL[1], notes=EVIL, states=[]), encoding="utf-8")
    page = open_page(path.as_uri(), width=width)
    for kind in ("over", "phases"):
        assert page.value(f"document.querySelector('#{kind} .panel svg').getBoundingClientRect().height") > 60
    page.point_at("#over .panel:not([hidden]) circle")
    page.click(".grid .open")
    page.write(".filters input", "<img")
    assert page.value("document.title").startswith("</script>")
    assert page.value("getComputedStyle(document.body).display") == "block"
    assert page.value("document.images.length + document.querySelectorAll('script').length") <= 2
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.requests() == [path.as_uri()]
    assert page.complaints() == []


def test_the_policy_stops_what_would_run_all_the_same(open_page, tmp_path):
    text = made([make_row("a"), make_row("b", k=9)])
    evil = "<script>document.title='had'</script><style>body{display:none}</style><img src='https://example.org/x'>"
    path = tmp_path / "evil.html"
    path.write_text(text.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    page = open_page(path.as_uri())
    assert "had" not in page.value("document.title")
    assert page.value("getComputedStyle(document.body).display") == "block"
    assert sum("Content Security Policy" in line for line in page.complaints()) == 3
    assert page.blocked() == ["https://example.org/x"]
