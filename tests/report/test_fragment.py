"""A report within another page."""

from __future__ import annotations

from html.parser import HTMLParser

from meprop_bench.report.cells import Cell
from meprop_bench.report.fragment import as_fragment, folded, table
from meprop_bench.report.sections import Section


class _Page(HTMLParser):
    """Checks that what is opened is closed, and collects tags and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def test_it_is_whole_and_needs_nothing_from_elsewhere(document):
    page = _Page(as_fragment(document, ["Take unified k=8.", "Its accuracy was not compared."]))
    assert page.text.index("Take unified k=8.") < page.text.index("150x [149, 151]")
    assert {tag for tag, _ in page.tags} <= {
        "div", "style", "p", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "span",
    }  # fmt: skip
    assert not any(name in ("src", "href", "onclick") for _, attributes in page.tags for name in attributes)
    for line in (*document.summary, *document.notes, *document.hints):
        assert line in page.text


def test_its_styles_are_its_own(document):
    style = as_fragment(document).partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    for selector in style.replace("\n", " ").split("}")[:-1]:
        assert all(".meprop-bench" in part for part in selector.partition("{")[0].split(",")), selector


def test_what_a_user_named_is_escaped():
    section = Section("<b>", ("a<b",), (((Cell("<script>alert(1)</script>", "bad"),),),), left=frozenset({"a<b"}))
    text = table(section)
    assert "<script>" not in text
    assert '<td class="bad left phrase">&lt;script&gt;' in text


def test_nothing_is_folded_under_a_title_alone():
    assert folded("How", "") == ""
