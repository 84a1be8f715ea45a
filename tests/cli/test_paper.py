import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.paper.scale import Scale
from meprop_bench.paper.subjects import Subject
from meprop_bench.results.store import Store


def test_list_has_every_table_and_says_what_cannot_be_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    assert run(["paper", "list", "--out", str(tmp_path)]) == ExitCode.OK
    printed = capsys.readouterr().out
    assert all(f"\n{table} " in printed for table in ("icml:1", "icml:fig4", "tkde:7b", "tkde:13", "tkde:fig4"))
    assert "data fetch mnist" in printed


def test_show_prints_figures_settings_and_contradictions(capsys):
    assert run(["paper", "show", "tkde:6"]) == ExitCode.OK
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("98.09", "batch 50", "One run.", "98.09 -> 98.36 in ICML"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "icml:9"], 2, "unknown table 'icml:9': did you mean"),
        (["run", "tkde:33"], 2, "unknown table"),
        (["run", "icml:3", "--seeds", "0"], 2, "--seeds must be at least 1"),
        (["run", "icml:3", "--processes", "0"], 2, "--processes must be at least 1"),
        (["run", "icml:3", "--scale", "huge"], 2, "huge"),
        (["run", "icml:4", "--scale", "short"], 5, "icml:4 cannot be run here"),
        (["report"], 2, "name results folders"),
        (["report", "--check"], 2, "add --claims"),
        (["report", "nowhere"], 2, "does not exist"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_the_right_code(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["paper", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_folder_of_another_verb_is_refused(tmp_path, capsys):
    with Store.create(tmp_path, "quick", "cpu", "meprop-bench speedup", {}) as store:
        folder = store.folder
    assert run(["paper", "report", str(folder)]) == ExitCode.USAGE
    assert "no result of `meprop-bench paper run`" in capsys.readouterr().err


def test_the_ledger_is_written_and_checked(tmp_path, capsys):
    claims = ["paper", "report", "--claims", "--out", str(tmp_path)]
    assert run([*claims, "--check"]) == ExitCode.REGRESSION
    assert run(claims) == ExitCode.OK
    assert run([*claims, "--check"]) == ExitCode.OK
    assert "| tkde:13 | not run |" in (tmp_path / "PAPERS.md").read_text()


def test_a_smoke_run_ends_with_the_paper_beside_ours_and_resumes_to_nothing(tmp_path, capsys, monkeypatch):
    """The real thing, with a process that trains: two trainings on some of the digits."""
    monkeypatch.setattr(Subject, "reason_not_trained", lambda self, _: None if self.name == "mnist" else "left out")
    monkeypatch.setattr("meprop_bench.paper.experiment.scale_of", lambda *_: Scale(epochs=1, examples=100))
    arguments = ["paper", "run", "icml:3", "--scale", "smoke", "--processes", "1", "--out", str(tmp_path)]
    assert run(arguments) == ExitCode.OK
    printed = capsys.readouterr()
    assert "meProp (k=20)" in printed.out
    assert "one run gives no interval" in printed.out
    assert "[2/2]" in printed.err
    assert run([*arguments, "--resume"]) == ExitCode.OK
    assert "[2/2]" not in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1
