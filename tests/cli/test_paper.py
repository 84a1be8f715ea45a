import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.paper.experiment import experiment
from meprop_bench.paper.published import table
from meprop_bench.paper.subjects import Scale, Subject
from meprop_bench.report.findings import plain
from meprop_bench.results.schema import Row
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
        (["run", "icml:3", "--scale", "smoke", "--device", "cuda:99"], 2, "the device cuda:99 is not there"),
        (["run", "icml:3", "--scale", "smoke", "--device", "meta"], 2, "choose from cpu, cuda, cuda:N"),
        (["run", "icml:7", "--reuse", "nowhere"], 2, "nowhere does not exist"),
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


def test_the_page_of_claims_is_written_and_checked(tmp_path, capsys):
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
    (folder,) = tmp_path.iterdir()
    other = ["paper", "run", "tkde:3", *arguments[3:], "--reuse", str(folder)]
    assert run(other) == ExitCode.OK
    printed = capsys.readouterr()
    assert f"2 of 2 trainings are those of {folder}" in printed.err
    assert "[2/2]" not in printed.err
    (taken,) = (each for each in tmp_path.iterdir() if each != folder)
    assert f"2 of 2 trainings were made for {folder.name}" in (taken / "README.md").read_text().replace("\\", "")


def test_a_table_is_made_of_the_cases_that_another_folder_has_as_far_as_the_deadline_lets_it(tmp_path, capsys):
    """Nothing is measured here: two cases are there already, and for the third there is no time."""
    *known, unknown = experiment(table("icml:7"), "smoke").distinct_cases
    with Store.create(tmp_path / "elsewhere", "sweep", "cpu", "meprop-bench speedup", {}) as other:
        for case in known:
            other.append([_timed(case, phase) for phase in ("forward", "backward")])
        other.write_environment({"e": {"cpu_model": "x"}})
    arguments = ["run", "icml:7", "--scale", "smoke", "--reuse", str(other.folder), "--deadline", "0.000001"]
    assert run(["paper", *arguments, "--out", str(tmp_path)]) == ExitCode.OK
    printed = capsys.readouterr()
    assert f"{len(known)} of {len(known) + 1} timed cases are those of {other.folder}" in printed.err
    assert f"left out: {unknown.label}" in printed.err
    (folder,) = (path for path in tmp_path.iterdir() if path.name.endswith("paper-icml-7-smoke"))
    page = (folder / "README.md").read_text()
    assert "4.00x" in page
    assert f"All rows: measured for {other.folder.name.replace('_', chr(92) + '_')}" in page
    assert "1 of 3 cases are not measured" in page


def _timed(case, phase):
    return Row.of(
        case_id=case.case_id, workload=case.workload, method=case.method, kernel="gather", kernel_requested="auto",
        k=case.k, batch=case.batch, in_features=case.in_features, out_features=case.out_features, device=case.device,
        threads=case.threads, dtype=case.dtype, gradient=case.gradient, allocator=case.allocator, phase=phase,
        median_s=1e-3, values_s=(1e-3,) * 4, baseline_median_s=4e-3, baseline_values_s=(4e-3,) * 4,
        run_lengths=(2, 2), loops=1, speedup=4.0, speedup_low=4.0, speedup_high=4.0, processes=2, converged=True,
        check="passed", environment_id="e",
    )  # fmt: skip


@pytest.mark.parametrize("deadline", ["0", "-3", "nan"])
def test_a_deadline_is_a_time(deadline, capsys):
    assert run(["paper", "run", "icml:7", "--deadline", deadline]) == ExitCode.USAGE
    assert "a deadline must be more than 0 seconds" in capsys.readouterr().err


def test_a_busy_machine_is_the_first_line_of_a_table(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from types import SimpleNamespace

    from meprop_bench.cli.paper import print_paper

    monkeypatch.setattr("meprop_bench.paper.folder.own_sections", lambda document: [])
    print_paper(SimpleNamespace(findings=plain(["This machine was busy."], ["icml:1: no claim."])))
    assert capsys.readouterr().out.splitlines()[:2] == ["This machine was busy.", "icml:1: no claim."]
