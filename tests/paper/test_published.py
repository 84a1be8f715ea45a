import re
import subprocess
import sys

import pytest

from meprop_bench.errors import UserError
from meprop_bench.paper.published import COLUMNS, contradictions, parse_table, published, table

ISSUE = (
    *(f"icml:{number}" for number in range(1, 9)),
    "icml:fig4",
    *(f"tkde:{number}" for number in (1, 2, 3, 4, 5, 6, "7a", "7b", 8, 9, 10, 11, 12, 13)),
    "tkde:fig4",
)

# Lines of the papers' own text, copied: table, part, row -> the numbers in them, in order.
PRINTED = {
    ("icml:1", "POS-Tag (AdaGrad)", "meProp (k=5)"): "4 253.2 (69.2x) 97.18 (+0.29) 97.25 (+0.32)",
    ("icml:1", "Parsing (AdaGrad)", "MLP (h=500)"): "11 8,899.7 89.07 88.92",
    ("icml:1", "Parsing (Adam)", "meProp (k=20)"): "6 488.7 (18.6x) 90.02 (-0.10) 90.01 (+0.17)",
    ("icml:1", "MNIST (AdaGrad)", "meProp (k=10)"): "16 4.1 (41.7x) 98.20 (+0.00) 98.00 (+0.48)",
    ("icml:1", "MNIST (Adam)", "MLP (h=500)"): "17 169.5 98.32 97.82",
    ("icml:1", "MNIST (Adam)", "meProp (k=20)"): "15 7.9 (21.4x) 98.22 (-0.10) 98.01 (+0.19)",
    ("icml:2", "MNIST (Adam)", "meProp (k=20)"): "68 9 (18.4x) 77",
    ("icml:2", "POS-Tag (Adam)", "LSTM (h=500)"): "7,334 16,522 23,856",
    ("icml:3", "MNIST (Adam)", "MLP (h=20)"): "15 95.77",
    ("icml:4", "Parsing (Adam)", "meProp (k=40)"): "91.99 (+0.46)",
    ("icml:5", "5 hidden layers", "meProp (k=25)"): "98.21 (+0.16)",
    ("icml:6", "5 hidden layers", "meProp (k=50)"): "98.36 (+0.27)",
    ("icml:7", "Synthetic", "meProp (k=8)"): "8.37 (36.8x)",
    ("icml:7", "Synthetic", "meProp (k=512)"): "69.95 (4.4x)",
    ("icml:8", "MNIST", "meProp (k=64)"): "1,828.3 (9.7x)",
    ("tkde:2", "POS", "meProp (k=10)"): "4 435.6 (37.1x) 97.14 97.25 (+0.03)",
    ("tkde:2", "MNIST", "LSTM (h=500)"): "",
    ("tkde:2", "MNIST", "meProp (k=80)"): "14 28.7 (5.9x) 98.36 98.27 (+0.07)",
    ("tkde:1", "Parsing", "Parsing"): "39,832 (1,900,056) 1,700 (80,234) 2,416 (113,368)",
    ("tkde:6", "5 hidden layers", "meProp (k=50)"): "98.09 (+0.09)",
    ("tkde:7a", "Synthetic", "meProp (k=64)"): "14.4 (21.4x)",
    ("tkde:8", "MNIST", "meProp (k ratio=0.02)"): "99.23",
    ("tkde:9", "Zh-En", "meProp (6.25%)"): "39.48 36.42 (+0.09)",
    ("tkde:10", "MNIST", "meSimp (k=160, p=0.10)"): "14 154 (30.8%) 98.46 98.31 (+0.11)",
    ("tkde:11", "MNIST", "meSimp (k=160, p=0.10)"): "154 149 159",
    ("tkde:12", "Parsing", "MLP (h=51)"): "89.92 89.64",
    ("tkde:13", "MNIST", "meAct (p=0.004, e=10)"): "20 99 98.42 (+0.24)",
}
del PRINTED["tkde:2", "MNIST", "LSTM (h=500)"]


def test_every_table_of_both_papers_is_there():
    assert tuple(published()) == ISSUE


@pytest.mark.parametrize(("table_id", "part", "row"), PRINTED)
def test_figures_are_those_of_the_paper_s_text(table_id, part, row):
    numbers = [float(word.replace(",", "")) for word in re.findall(r"-?\d[\d,]*\.?\d*", PRINTED[table_id, part, row])]
    found = next(one for one in table(table_id).parts if one.name == part).row(row)
    assert sorted(found.figures.values()) == sorted(numbers)


def test_every_figure_has_a_unit_and_every_row_that_is_compared_a_baseline():
    for one in published().values():
        assert all(row.figures.keys() <= COLUMNS.keys() for part in one.parts for row in part.rows)
        for part in one.parts:
            assert part.baseline(part.rows[0]) is None
            assert all(part.baseline(row) is not None for row in part.rows[1:])


def test_contradictions_name_tables_that_exist():
    assert len(contradictions()) >= 20
    assert all(name in published() for tables, _ in contradictions() for name in tables)
    assert any("98.36" in text for text in table("tkde:6").contradictions)


def test_an_unknown_table_is_an_error_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'icml:fig4'"):
        table("icml:fig5")


ROWS = [{"name": "dense", "method": "dense", "test": 98.0}, {"name": "sparse", "method": "meprop", "test": 98.2}]


def entry(**changes):
    return {
        "id": "x:1",
        "title": "t",
        "caption": "c",
        "part": [{"name": "p", "task": "mnist", "rows": ROWS, **changes}],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{**ROWS[0], "tset": 1}]}, "did you mean 'test'"),
        ({"rows": [ROWS[0], {**ROWS[1], "test_gain": 0.3}]}, "gain is not"),
        ({"rows": [ROWS[0], ROWS[0]]}, "there twice"),
        ({"rows": [{**ROWS[0], "method": "magic"}]}, "unknown method"),
        ({"claims": ["always"]}, "unknown claim"),
        ({"clams": ["level"]}, "did you mean 'claims'"),
        ({"setting": {"optimiser": "adam"}}, "did you mean 'optimizer'"),
        ({"rows": [{**ROWS[0], "test": "98"}]}, "the table x:1, p: test is '98'"),
        ({"rows": [{"method": "dense"}]}, "has no 'name'"),
        ({"setting": {"k": -1}}, "more than 0"),
        (
            {"rows": [{**ROWS[0], "backward_s": 10.0}, {**ROWS[1], "backward_s": 1.0, "speedup": 9.0}]},
            "speed-up is not",
        ),
    ],
)
def test_a_mistake_in_the_data_is_found_on_reading(changes, message):
    with pytest.raises(UserError, match=message):
        parse_table(entry(**changes))


def test_list_and_show_do_not_load_torch():
    code = (
        "import sys; from meprop_bench.cli import run\n"
        "assert run(['paper', 'list', '--out', 'nowhere']) == 0 == run(['paper', 'show', 'tkde:9'])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
