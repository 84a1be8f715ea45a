from html.parser import HTMLParser

import pytest

pytest.importorskip("jinja2", reason="needs the report extra")
from meprop_bench.report.document import Document
from meprop_bench.report.formats import as_html
from meprop_bench.report.plots import Plot


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_needs_nothing_from_outside(document):
    page = Page(as_html(document, [Plot("speedup-1.svg", "Speed-up over k", b"<svg/>")]))
    assert page.open == []
    assert "meprop-bench speedup --preset quick" in page.text
    assert "150x [149, 151]" in page.text
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe")
        assert attrs.get("src", "data:").startswith("data:")
        assert "href" not in attrs


def test_hostile_strings_stay_text(make_row):
    evil = "<script>alert(1)</script>"
    row = make_row("a", method=evil, kernel='"><img src=x onerror=alert(1)>', notes=[evil])
    document = Document(evil, evil, evil, [row], {evil: {evil: evil}}, {}, [evil])
    page = Page(as_html(document, [Plot("p.svg", '" onload="alert(1)', b"<svg/>")], evil))
    assert page.text.count(evil) >= 8
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
