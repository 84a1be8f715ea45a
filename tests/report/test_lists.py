"""The pages that list results in a real browser: all of them, what moved, and two of them compared."""

import random

import pytest

pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("matplotlib", reason="needs the report extra")
from meprop_bench.report.compare import compare
from meprop_bench.report.document import Document
from meprop_bench.report.index import Index, ListedResult, Notes, write_index
from meprop_bench.report.page import as_html
from meprop_bench.report.trends import Trends
from tests.report.browser import CUT, WIDTHS
from tests.report.conftest import make_row

MACHINE = {"cpu_model": "AMD EPYC", "cpu_usable_cores": 2, "cpu_capability": "AVX512"}
VERDICT = (
    "On this machine at h=500 unified k=80 pays: a training step is 1.78x [1.69, 1.88] as fast as dense, the backward"
    " pass 2.87x [2.58, 3.18], and accuracy holds within 0.5 points (+0.09 [-0.16, +0.33]). At h=2048 unified k=64 pays"
    " if the accuracy holds: a training step is 2.96x [2.77, 3.17] as fast as dense; its accuracy was not compared."
)
QUESTION = "whole training steps of users' models: a GPT, a BERT, perceptrons, against the fastest dense side here"
ABOUT = "Every folder is one run. [METHODOLOGY.md](METHODOLOGY.md) says how.\n\n[No](javascript:alert(1)) `code <b>`."


def result(run, factor=1.0, key="e0", cases=14):
    source = random.Random(run)
    rows = [
        make_row(f"case-{k}", k=8 + k, speedup=30 / (8 + k) * factor * source.uniform(0.997, 1.003),
                 median=(8 + k) * 1e-4, environment_id=key, git_revision=f"rev{run}")
        for k in range(cases)
    ]  # fmt: skip
    environment = {**MACHINE, "torch": f"2.{key}", "numba_threading_layer": "a layer of a very long name, " * 3}
    return Document(f"run-{run}", "meprop-bench speedup", f"2026-03-{run + 1:02}T00:00:00", rows, {key: environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lists")
    trends = Trends("meprop-bench report --index .")
    for run in range(12):
        trends.add(f"2026-03-{run + 1:02}_amd-epyc-2c_quick", result(run, 1.0 if run < 6 else 1.4))
    entries = [
        ListedResult(f"2026-03-{day:02}_amd-epyc-2c_paper-icml-3-short-2", f"2026-03-{day:02}T00:00:00", "Measurements",
              QUESTION, ("AMD EPYC, 2 cores, AVX512",), VERDICT, paged=day % 2 == 0)
        for day in range(1, 9)
    ]  # fmt: skip
    write_index(root, Index(entries, "meprop-bench report --index .", Notes(about=ABOUT), trends.said()), trends)
    both = compare(result(1), result(2, 1.4, "e1"), across_environments=True)
    (root / "compare.html").write_text(as_html(both, ()), encoding="utf-8")
    return root


PAGES = ("index", "trends", "compare")
HIDDEN = """
[...document.querySelectorAll('td, th, p, h1, h2, h3')].filter((one) => one.checkVisibility()
  && getComputedStyle(one).overflow === 'hidden' && one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.textContent)
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_no_word_is_cut_and_nothing_is_wider_than_the_screen(open_address, folder, name, width, dark):
    address = (folder / f"{name}.html").as_uri()
    page = open_address(address, width=width, dark=dark)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert [text for text in page.value(HIDDEN) if len(text) > 12] == []  # headings of stacked cells are for readers
    # What is a sentence stands on the screen whole, without being pulled aside.
    far = "[...document.querySelectorAll('td.prose')].filter((one) => one.getBoundingClientRect().right > innerWidth)"
    assert page.value(f"{far}.map((one) => one.textContent)") == []
    assert page.complaints() == []
    assert page.requests() == [address]


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_no_table_is_cut(open_address, folder, name):
    page = open_address((folder / f"{name}.html").as_uri())
    page.media(paper=True)
    page.send("Emulation.setDeviceMetricsOverride", width=702, height=900, deviceScaleFactor=1, mobile=False)
    assert page.value(CUT.replace("LANDSCAPE", "false")) == []


def test_a_telephone_names_each_cell(open_address, folder):
    page = open_address((folder / "index.html").as_uri(), width=390)
    cell = "document.querySelector('td.prose')"
    assert page.value(f"getComputedStyle({cell}, '::before').content").strip('"') in ("result", "question")
    assert page.value(f"getComputedStyle({cell}).display") == "grid"
    wide = open_address((folder / "index.html").as_uri(), width=1280)
    assert wide.value(f"getComputedStyle({cell}).display") == "table-cell"


def test_the_index_leads_to_pages_where_there_are_and_to_trends_and_back(open_address, folder):
    page = open_address((folder / "index.html").as_uri())
    links = page.value("[...document.querySelectorAll('a')].map((one) => one.getAttribute('href'))")
    assert "2026-03-08_amd-epyc-2c_paper-icml-3-short-2/index.html" in links
    assert "2026-03-07_amd-epyc-2c_paper-icml-3-short-2/README.md" in links
    assert {"trends.html", "METHODOLOGY.md"} <= set(links)
    assert not any(link.startswith("javascript") for link in links)
    assert page.value("document.querySelector('code').textContent") == "code <b>"
    page.click("a[href='trends.html']")
    page.until("location.pathname.endsWith('trends.html')")
    assert page.value("document.querySelector('a[href=\"index.html\"]').textContent") == "All results"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "paper-icml-3-short-2/README.md" in readme
    assert "index.html" not in readme


def test_a_step_is_drawn_and_each_run_says_what_it_is(open_address, folder):
    page = open_address((folder / "trends.html").as_uri())
    page.until("document.querySelector('#trend .choices select')")
    panel = "document.querySelector('#trend .panel:not([hidden])')"
    # Two levels, of which the second one is higher up.
    levels = (
        f"[...{panel}.querySelectorAll('[aria-hidden] .s-c1')].map((one) => one.getBoundingClientRect())"
        ".filter((at) => at.width > 60).map((at) => [at.left, at.top]).sort((a, b) => a[0] - b[0])"
    )
    found = page.value(levels)
    assert len(found) == 2
    assert found[0][1] > found[1][1] + 20
    assert "from 2026-03-07 at rev6 on" in page.value(f"{panel}.querySelector('p').textContent")
    page.point_at("#trend .panel:not([hidden]) circle:nth-of-type(8)")
    page.until("!document.querySelector('#tip').hidden")
    said = page.value("document.querySelector('#tip').innerText")
    assert "rev7" in said
    assert "2026-03-08_amd-epyc-2c_quick" in said
    assert page.complaints() == []
