import re

from meprop_bench.report.document import Document
from meprop_bench.report.markdown import as_readme
from tests.report.texts import as_markdown


def test_the_readme_says_what_made_it_and_how_to_read_it(document):
    text = as_readme(document, [("speedup-1.svg", "Speed-up over k")])
    assert text.startswith("# 2026-03-04\\_amd-epyc-2c\\_quick\n")
    assert "```sh\nmeprop-bench speedup --preset quick\n```" in text
    assert "![Speed-up over k](speedup-1.svg)" in text
    assert "## How to read this" in text
    assert "| cpu | AMD EPYC 7B13 |" in text
    assert "| aabbccddeeff.bandwidth | 64.0 KiB: 81.0 G, 512 MiB: 35.0 G |" in text
    assert "meprop-bench report 2026-03-04_amd-epyc-2c_quick" in text


def test_every_table_line_has_as_many_cells_as_its_head(document):
    widths = []
    for line in as_markdown(document).splitlines():
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1
            widths = []


def test_hostile_names_stay_text(make_row, failed_row):
    rows = [
        make_row("a", method="a|b", kernel="<script>alert(1)</script>", notes=["![x](http://e) `~~` *b*"]),
        failed_row("b", error="| # <img src=x> | \n---\n```"),
    ]
    text = as_markdown(Document("t", "c ``` d", "s", rows))
    assert r"a\|b" in text
    assert "<script>" not in text.replace(r"\<script", "")
    assert "<img" not in text.replace(r"\<img", "")
    assert "](http" not in text.replace(r"\](http", "")
    assert "````sh\nc ``` d\n````" in text


def test_no_rows(document):
    text = as_readme(Document("t", "meprop-bench speedup", "now", []), [], "Written without plots")
    assert "Nothing is measured yet." in text
    assert "> Written without plots" in text


def test_names_do_not_ping_or_link(make_row):
    rows = [
        make_row("a", workload="@octocat GH-12 owner/repo#5 https://e.example www.e.example :tada: :+1: 08:35:47+00:00")
    ]
    document = Document("t", "c", "s", rows)
    for text in (as_markdown(document), as_readme(document, [])):
        assert "octocat" in text
        assert not re.search(r"@octocat|GH-12|#5|://|www\.|:tada:|:\\?\+1:", text)
        assert "08:35:47+00:00" in text
