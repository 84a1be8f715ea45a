import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

pytest.importorskip("jinja2", reason="needs the report extra")
from meprop_bench.report.cells import Cell
from meprop_bench.report.document import Document
from meprop_bench.report.findings import plain
from meprop_bench.report.page import as_html, grid
from meprop_bench.report.page.grid import columns_of
from meprop_bench.report.plots import Plot
from meprop_bench.report.sections import Section, distinct_rows


class Page(HTMLParser):
    """Collects tags, attributes and text; of scripts and styles the text by itself."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.inside = [], "", [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.inside.setdefault(self.open[-1], []).append(data)
        else:
            self.text += data

    @property
    def data(self):
        kind = next(attrs["type"] for tag, attrs in self.tags if tag == "script" and "type" in attrs)
        text = self.inside["script"][0]
        return json.loads(text if kind == "application/json" else gzip.decompress(base64.b64decode(text)))


def drawn(**changes):
    return Plot("speedup-1.svg", "Speed-up over k", b"<svg/>", figure="over", inline="<svg></svg>", **changes)


def test_the_page_is_whole_and_needs_nothing_from_outside(document):
    page = Page(as_html(document, [drawn(title="Step: speed-up over k")]))
    assert page.open == []
    assert "meprop-bench speedup --preset quick" in page.text
    assert "150x [149, 151]" in page.text
    assert "Step: speed-up over k" in page.text
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "form", "base")
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
        assert "style" not in attrs
        assert not any(name.startswith("on") for name in attrs)


def test_only_its_own_script_and_style_may_run(document):
    page = Page(as_html(document, []))
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, texts in (("script", page.inside["script"][1:]), ("style", page.inside["style"])):
        (text,) = texts
        known = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{known}'" in policy
    place = [tag for tag, attrs in page.tags].index("style")
    assert any(attrs.get("http-equiv") for _, attrs in page.tags[:place])  # before whatever it is about


EVIL = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "</style><style>*{display:none}</style>",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_strings_stay_text(make_row, evil):
    row = make_row("a", method=evil, kernel=evil, allocator=evil, notes=[evil])
    found = Document(evil, evil, evil, [row, make_row("b", k=9)], {evil: {evil: evil}}, {}, [evil])
    plot = drawn(title=evil, detail=evil, choices={"phase": evil}, columns=("line",), lines=((evil,),))
    text = as_html(found, [plot], evil)
    page = Page(text)
    assert page.text.count(evil) >= 8
    assert [tag for tag, _ in page.tags if tag in ("script", "style", "img")] == ["style", "script", "script"]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    methods = next(column for column in page.data["columns"] if column["head"] == "method")
    assert methods["texts"] == [evil, "unified"]
    assert json.loads(next(attrs["data-choices"] for _, attrs in page.tags if "data-choices" in attrs)) == {
        "phase": evil
    }


def test_names_without_end_and_signs_that_cannot_be_seen_do_not_get_in(make_row):
    wild = ["n" * 10_000, "a\x00b\x1b[31mc\u202eevil\u2066\ud800", "\u0301" * 500]
    rows = [make_row(str(place), method=name, notes=[name]) for place, name in enumerate(wild)]
    text = as_html(Document("t", "c", "s", rows), [])
    text.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert "n" * 500 not in text
    methods = next(column for column in Page(text).data["columns"] if column["head"] == "method")
    assert [len(name) <= 160 for name in methods["texts"]] == [True] * 3


def test_what_is_the_same_in_all_rows_is_a_line_and_no_column(make_row):
    columns, constant = columns_of([make_row("a", k=8), make_row("b", k=9)], frozenset())
    heads = [column.head for column in columns]
    assert "workload linear" in constant
    assert "check" not in heads
    assert "workload" not in heads
    assert heads[:2] == ["method", "k"]
    columns, constant = columns_of([make_row("a", k=8), make_row("b", k=9, workload="conv")], frozenset())
    assert "workload" in [column.head for column in columns]


def test_a_row_opens_to_its_values_warnings_and_failures(make_row, failed_row):
    rows = [make_row("a", notes=["noisy"]), failed_row("b", k=9, check="dw differs")]
    columns = {column.head: column for column in columns_of(rows, distinct_rows(rows))[0]}

    def told(head):
        return [columns[head].texts[columns[head].at(row)] for row in range(2)]

    assert told("warning") == ["noisy", ""]
    assert told("warnings") == ["1", ""]
    assert told("why it has no figures") == ["", "dw differs"]
    assert told("outcome") == ["faster", "no speed-up"]
    assert told("speed-up of each process")[0].endswith("(20 pairs)")
    assert told("dense, each process")[0].count("ms") == 5
    assert told("pairs, dense / sparse")[0].count("/") == 20
    assert columns["speed-up"].keys == [5.0, None]


@pytest.mark.parametrize(("count", "folded"), [(2, False), (9, True)])
def test_many_notes_are_folded_above_the_pictures(make_row, count, folded):
    notes = [f"differs in {number}" for number in range(count)]
    page = as_html(Document("t", "c", "s", [make_row("a")], notes=notes), [])
    assert f"differs in {count - 1}" in Page(page).text
    assert (f"<summary>{count} notes on how this was measured</summary>" in page) is folded


def test_many_rows_are_compressed_and_the_first_ones_stand_there(make_row, monkeypatch):
    monkeypatch.setattr(grid, "_PLAIN", 10_000)
    base = make_row("a")
    rows = [replace(base, case_id=str(place), k=place + 1, speedup=1 + place / 999) for place in range(3000)]
    text = as_html(Document("t", "c", "s", rows), [])
    page = Page(text)
    assert next(attrs.get("type") for tag, attrs in page.tags if tag == "script") == "application/gzip+base64"
    found = {column["head"]: column for column in page.data["columns"]}
    assert len(found["k"]["of"]) == 3000
    assert "filter" not in found["k"]
    assert len(found["speed-up"]["texts"]) == len(found["speed-up"]["keys"])
    assert len(found["speed-up of each process"]["texts"]) == 1
    assert len(text) < 300_000
    assert "3000 rows, of which the first 200" in page.text
    assert sum(tag == "tr" for tag, _ in page.tags) < 220


def test_what_has_no_rows_is_a_page_of_tables_and_pictures():
    class Listed:
        title, command, started = "Reports <b>", "meprop-bench report --index", ""
        notes = hints = how_to_read = facts = ()
        findings = plain([], ["3 results"])
        sections = (Section("Results", ("name",), (((Cell("a" * 999),),),)),)

    page = Page(as_html(Listed(), [Plot("trend.svg", "The speed-up over commits", b"<svg/>")]))
    assert page.open == []
    assert "Reports <b>" in page.text
    assert "a" * 100 in page.text
    assert "a" * 300 not in page.text
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == ["The speed-up over commits"]
    (policy,) = (attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    assert "img-src data:;" in policy
    assert "script" not in policy
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_report_without_rows_is_a_page():
    page = Page(as_html(Document("t", "c", "s", []), []))
    assert page.open == []
    assert "All rows" not in page.text
