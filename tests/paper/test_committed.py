"""The claims that are committed are those of the results beside them, judged as this version judges."""

from pathlib import Path

import pytest

from meprop_bench.paper.folder import as_overview, read
from meprop_bench.report.markdown import escaped
from meprop_bench.results.store import Store

REPORTS = Path(__file__).parents[2] / "reports"
FOLDERS = sorted([*REPORTS.glob("*_paper-*"), *REPORTS.glob("*/*_paper-*")])


def test_the_page_of_claims_is_what_the_results_give():
    assert (REPORTS / "PAPERS.md").read_text(encoding="utf-8") == as_overview(REPORTS), "run `paper report --claims`"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_page_has_the_verdicts_that_its_results_give(folder):
    document = read(Store.open(folder))
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert escaped(f": {document.outcome}.") in page, "run `paper report FOLDER`"
    for claim in document.claims:
        assert f" | {claim.verdict} | {escaped(claim.why)} |" in page
