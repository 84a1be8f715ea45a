"""Projects that know nothing of this package but a table in their pyproject.toml: measured for real, in scratch
repositories. What is slower sleeps, so that no verdict depends on what the machine does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from textwrap import dedent

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate import environments
from meprop_bench.gate.decide import judge
from meprop_bench.gate.judgement import Judgement, Outcome
from meprop_bench.gate.project import compare
from meprop_bench.gate.revisions import Measured
from meprop_bench.gate.settings import load_settings
from meprop_bench.gate.targets import targets
from meprop_bench.gate.worktree import work_trees
from meprop_bench.measure import layout

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs locks that end with their process")

_SLICE_S = 0.1
_MARGIN = 1.0
"""Of times: twice as slow. What is slowed here is slowed a hundred times."""


def _git(folder: Path, *words: str) -> str:
    own = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


class Repository:
    """A scratch repository, and what its environments are kept in."""

    pairs: int = 2  # of processes; of several times at once, two know too little

    def __init__(self, root: Path) -> None:
        self.root, self.cache = root / "a project", root / "cache"
        self.root.mkdir()
        self.cache.mkdir()
        _git(self.root, "init", "-q")

    def write(self, settings: str | None = None, **files: str) -> Repository:
        """Write files, `bench_py` as bench.py and `src_a_py` as src/a.py, without committing them."""
        if settings is not None:
            head = (
                f"[tool.meprop-bench.gate]\npairs = {self.pairs}\nbudget = 600\nconfidence = 0.6\nmargin = {_MARGIN}\n"
            )
            (self.root / "pyproject.toml").write_text(head + dedent(settings))
        for name, text in files.items():
            stem, _, ending = name.rpartition("_")
            path = self.root / f"{stem.replace('__', '/')}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return self

    def commit(self) -> Repository:
        _git(self.root, "add", ".")
        _git(self.root, "commit", "-q", "-m", "one")
        return self

    def measure(self, within: str = ".") -> Measured:
        """Compare the work tree with HEAD."""
        settings = load_settings(self.root / within)
        plan = targets(settings)

        def alone(*_: object) -> AbstractContextManager[None]:
            return nullcontext()

        with work_trees(self.root, "HEAD", None, project=self.root / within, cache=self.cache) as (base, head):
            self.folders = base.folder, head.folder
            found = compare(plan, base, head, settings, undecided=lambda _: [], slice_s=_SLICE_S, lock=alone)
        assert [path.name for path in self.cache.iterdir()] == ["slot-0.lock"]
        return found

    def gate(self, within: str = ".") -> tuple[Outcome, dict[str, Judgement]]:
        """Return the outcome, and the figures by name."""
        found = self.measure(within)
        judgements = judge(found.series, load_settings(self.root / within))
        incomparable, firm = found.open_cases(judgements)
        # However many figures may be inconclusive, what has no values stays open.
        outcome = Outcome("base", "head", judgements, found.notes, allowed=1.0, firm=firm, incomparable=incomparable)
        return outcome, {one.name: one for one in judgements}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    make = environments._make  # with pip it takes some seconds more
    monkeypatch.setattr(environments, "_make", lambda folder, *, pip: make(folder, pip=False))
    return Repository(tmp_path)


_LIBRARY = """
    def parse(text):
        return text.split()
"""
_BENCH = """
    from library import parse

    def text(size):
        return "word " * size

    def parse_large(text="a b c" * 100):
        return parse(text)
"""
_FUNCTIONS = """
    functions = [
      {function = "bench/speed.py:parse_large", setup = "bench/speed.py:text", sizes = [10, 1000], threads = 1},
    ]
"""


def _library(repository: Repository, settings: str = _FUNCTIONS) -> Repository:
    return repository.write(settings, src__library_py=_LIBRARY, bench__speed_py=_BENCH).commit()


# A pure Python library.


def test_a_library_that_is_the_same_passes_in_every_size(repository: Repository) -> None:
    outcome, figures = _library(repository).gate()
    assert sorted(figures) == [
        "bench/speed.py:parse_large size=10/call",
        "bench/speed.py:parse_large size=1000/call",
    ]
    assert all(one.pairs == 2 for one in figures.values())
    assert outcome.exit_code == ExitCode.OK


def test_a_library_that_got_slower_and_larger_fails(repository: Repository) -> None:
    _library(repository)
    slower = """
        import time

        def parse(text):
            if len(text) > 1000:
                time.sleep(0.02)
                kept = bytearray(1 << 20)
            return text.split()
    """
    outcome, figures = repository.write(src__library_py=slower).gate()
    name = "bench/speed.py:parse_large size="
    assert figures[f"{name}1000/call"].verdict == "fail"
    assert figures[f"{name}10/call"].verdict != "fail"
    memory = figures[f"{name}1000/peak memory call"]
    assert (memory.verdict, memory.quantity) == ("fail", "memory")
    assert memory.head is not None
    assert memory.head > 1 << 20
    assert outcome.exit_code == ExitCode.REGRESSION
    assert outcome.notes == ("the head is a snapshot of the work tree with 1 uncommitted files",)


def test_the_command_says_the_same(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _library(repository, 'functions = [{function = "bench/speed.py:parse_large", threads = 1}]')
    repository.write(src__library_py="import time\ndef parse(text):\n    time.sleep(0.05)\n")
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr("tempfile.tempdir", str(repository.cache))  # nobody waits for what else is measured here
    assert run(["gate", "--base", "HEAD", "--output", "../gate.md"]) == ExitCode.REGRESSION
    printed = capsys.readouterr()
    assert "Failed: " in printed.out
    assert "figures got worse, most of all" in printed.out.replace("\n", " ")
    assert "bench/speed.py:parse_large" in printed.out
    assert "Traceback" not in printed.err
    comment = (repository.root.parent / "gate.md").read_text()
    assert comment.startswith("<!-- meprop-bench gate:")
    assert "project -->" in comment.splitlines()[0]


def test_layouts_that_are_not_equal_are_a_note(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _library(repository, 'functions = [{function = "bench/speed.py:parse_large", threads = 1}]')
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr("tempfile.tempdir", str(repository.cache))
    asks = layout._LAUNCH.replace("personality(0x0040000)", "personality(0xFFFFFFFF)")  # and changes nothing
    monkeypatch.setattr(layout, "_LAUNCH", asks)
    run(["gate", "--base", "HEAD"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "memory layouts could not be equalised, so pairs of processes may differ by them: the system" in printed


def test_a_busy_machine_casts_no_doubt_on_an_installation_that_failed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = 'functions = [{function = "bench/speed.py:parse_large", threads = 1}]\nbuild = "test ! -e broken.txt"'
    _library(repository, settings)
    repository.write(broken_txt="yes").commit()
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr("meprop_bench.measure.machine.Observer.line", lambda self: "This machine was busy")
    assert run(["gate", "--base", "HEAD~1"]) == ExitCode.REGRESSION
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("Failed: 1 of 1 figures fails in the head alone, most of all installation/environment")
    assert run(["gate", "--base", "HEAD", "--head", "HEAD~1"]) == ExitCode.NOT_COMPARABLE
    assert capsys.readouterr().out.startswith("Not comparable: ")


def test_a_project_in_a_folder_of_its_repository(repository: Repository) -> None:
    settings = 'functions = [{function = "speed.py:work", threads = 1}]'
    repository.write(packages__speed_py="from shared import n\ndef work():\n    return sum(range(n))\n")
    repository.write(settings, packages__shared_py="n = 10\n", other_txt="x")
    (repository.root / "pyproject.toml").rename(repository.root / "packages/pyproject.toml")
    repository.commit()
    _, figures = repository.gate("packages")
    assert list(figures) == ["speed.py:work/call"]


# A training script.

_MODEL = """
    import torch
    from torch import nn

    def build():
        model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        x, y = torch.randn(64, 16), torch.randint(2, (64,))
        batches = list(zip(x.split(16), y.split(16)))

        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        def evaluate(model):
            return 100.0 - QUALITY

        return {"model": model, "loss": loss, "batches": batches, "evaluate": evaluate, "metric": "accuracy in %"}
"""
_MODELS = """
    models = [{model = "my_model.py:build", method = "dense", threads = 1}]
    accuracy-seeds = 2
    accuracy-steps = 2
"""


def test_a_training_script_is_judged_by_time_memory_and_quality(repository: Repository) -> None:
    repository.pairs = 4  # one that the machine disturbed is left out
    repository.write(_MODELS, my_model_py=_MODEL.replace("QUALITY", "0.0")).commit()
    worse = (
        _MODEL.replace("QUALITY", "3.0")
        .replace("return nn.functional", "__import__('time').sleep(0.05)\n            return nn.functional")
        .replace("nn.Linear(8, 2)", "nn.Linear(8, 8), nn.Linear(8, 2)")
    )
    outcome, figures = repository.write(my_model_py=worse).gate()
    label = "model my_model.py:build dense cpu:1/"
    assert {name.removeprefix(label) for name in figures} >= {"forward", "backward", "update", "step", "accuracy"}
    assert not any("sparse/dense" in name or "operators" in name for name in figures)
    assert figures[f"{label}forward"].verdict == "fail"
    accuracy = figures[f"{label}accuracy"]
    assert (accuracy.verdict, accuracy.base, accuracy.head) == ("fail", 100.0, 97.0)
    assert [name for name, one in figures.items() if one.quantity == "memory"]
    assert outcome.exit_code == ExitCode.REGRESSION


def test_a_model_that_no_longer_builds_fails_and_one_that_does_not_yet_is_not_comparable(
    repository: Repository,
) -> None:
    sound = _MODEL.replace("QUALITY", "0.0")
    broken = sound.replace("import torch\n", "import torch, gone_with_the_wind\n", 1)
    repository.write(_MODELS, my_model_py=sound).commit()
    outcome, figures = repository.write(my_model_py=broken).gate()
    (one,) = figures.values()
    assert one.verdict == "fail"
    assert "cannot be imported (my_model.py, line 2): ModuleNotFoundError" in one.reason
    assert outcome.exit_code == ExitCode.REGRESSION
    repository.commit()
    outcome, figures = repository.write(my_model_py=sound).gate()
    (one,) = figures.values()
    assert (one.verdict, one.report_only) == ("inconclusive", False)
    assert one.reason.startswith("not comparable: the base cannot do it: my_model.py:build cannot be imported")
    assert outcome.exit_code == ExitCode.NOT_COMPARABLE


# An extension in C that has to be built.

_C = r"""
    #include <Python.h>
    #include <time.h>

    static PyObject *work(PyObject *self, PyObject *args) {
        struct timespec pause = {0, PAUSE};
        nanosleep(&pause, NULL);
        Py_RETURN_NONE;
    }
    static PyMethodDef methods[] = {{"work", work, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
    static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fast", "", -1, methods};
    PyMODINIT_FUNC PyInit_fast(void) { return PyModule_Create(&module); }
"""
_COMPILE = (
    "cc -shared -fPIC -I$(python -c \"import sysconfig; print(sysconfig.get_path('include'))\") {} -o "
    "$(python -c \"import sysconfig; print(sysconfig.get_path('purelib'))\")/fast.so"
)


def _compiler() -> str | None:
    import sysconfig

    if shutil.which("cc") is None:
        return "there is no C compiler"
    return None if Path(sysconfig.get_path("include"), "Python.h").is_file() else "Python's header files are missing"


@pytest.mark.skipif(_compiler() is not None, reason=str(_compiler()))
def test_an_extension_in_c_is_built_for_each_revision(repository: Repository) -> None:
    settings = f"""
        functions = [{{function = "bench.py:work", threads = 1}}]
        build = '''{_COMPILE.format("fast.c")}'''
    """
    bench = "import fast\ndef work():\n    fast.work()\n"
    repository.write(settings, fast_c=_C.replace("PAUSE", "1000"), bench_py=bench).commit()
    outcome, figures = repository.write(fast_c=_C.replace("PAUSE", "20000000")).gate()
    assert figures["bench.py:work/call"].verdict == "fail"
    assert outcome.exit_code == ExitCode.REGRESSION
    # And one that does not compile: in the head alone, then in the base alone, then in both.
    repository.write(fast_c="int broken(").gate()
    outcome, figures = repository.gate()
    (one,) = figures.values()
    assert (one.name, one.verdict, outcome.exit_code) == (
        "installation/environment",
        "fail",
        ExitCode.REGRESSION,
    )
    assert "the head, the work tree" in one.reason
    assert "cannot be installed: build (cc " in one.reason
    assert any("fast.c" in note for note in outcome.notes)
    repository.commit()
    outcome, figures = repository.write(fast_c=_C.replace("PAUSE", "1000")).gate()
    (one,) = figures.values()
    assert (one.verdict, outcome.exit_code) == ("inconclusive", ExitCode.NOT_COMPARABLE)
    assert one.reason.startswith("not comparable: the base, HEAD (")
    with pytest.raises(UserError, match="neither revision can be installed: build") as caught:
        repository.write(fast_c="int broken(").measure()
    assert caught.value.exit_code == ExitCode.USAGE


# What one revision has and the other has not, and what fails in one of them.

_TWO = """
    functions = [
      {function = "bench.py:kept", threads = 1},
      {function = "bench.py:other", threads = 1},
    ]
"""
_KEPT = "def kept():\n    return sum(range(100))\n"
_OTHER = _KEPT + "def other():\n    return sum(range(100))\n"
_RAISES = _KEPT + "def other():\n    raise ValueError('broken')\n"


@pytest.mark.parametrize(
    ("base", "head", "verdict", "reason", "codes"),
    [
        (_OTHER, _RAISES, "fail", "bench.py:other cannot be called (bench.py, line 4): ValueError: broken", (1,)),
        (_OTHER, _KEPT, "inconclusive", "gone: the head has none (bench.py has no function 'other'", (4,)),
        (_KEPT, _OTHER, "(inconclusive)", "new: the base has none (bench.py has no function 'other'", (0,)),
        (_KEPT, _RAISES, "fail", "new, and it fails: bench.py:other cannot be called", (1,)),
        (_RAISES, _OTHER, "inconclusive", "not comparable: the base cannot do it: bench.py:other cannot be", (3,)),
        (_RAISES, _RAISES, "inconclusive", "not comparable: neither can do it: the base: bench.py:other", (3,)),
        (_RAISES, _KEPT, "inconclusive", "not comparable: neither can do it: the base: bench.py:other", (3,)),
    ],
)
def test_each_has_a_line_and_a_code(
    base: str, head: str, verdict: str, reason: str, codes: Sequence[int], repository: Repository
) -> None:
    repository.write(_TWO, bench_py=base).commit()
    outcome, figures = repository.write(bench_py=head).gate()
    kept = figures.pop("bench.py:kept/call")
    assert kept.pairs == 2  # what the other one does costs it nothing
    (other,) = figures.values()
    assert other.case == "bench.py:other"
    assert (f"({other.verdict})" if other.report_only else other.verdict) == verdict
    assert other.reason.startswith(reason)
    assert outcome.exit_code in codes


def test_a_benchmark_that_the_settings_name_no_longer_is_gone(repository: Repository) -> None:
    repository.write(_TWO, bench_py=_OTHER).commit()
    outcome, figures = repository.write('functions = [{function = "bench.py:kept", threads = 1}]').gate()
    assert figures["bench.py:other/times"].reason == "gone: the head's settings name it not"
    assert outcome.exit_code == ExitCode.INCONCLUSIVE


def test_what_is_only_reported_leaves_nothing_open(repository: Repository) -> None:
    settings = _TWO + 'report-only = ["bench.py:other"]\n'
    repository.write(settings, bench_py=_RAISES).commit()
    outcome, figures = repository.write(bench_py=_OTHER).gate()
    assert figures["bench.py:other/times"].report_only
    assert outcome.exit_code == ExitCode.OK
    outcome, _ = repository.commit().write(bench_py=_KEPT).gate()
    assert outcome.exit_code == ExitCode.OK


def test_a_base_from_before_the_first_benchmark_is_not_comparable(repository: Repository) -> None:
    repository.write(readme_txt="nothing yet").commit()
    outcome, figures = repository.write(_TWO, bench_py=_OTHER).gate()
    assert {one.reason.partition(" (")[0] for one in figures.values()} == {"new: the base has none"}
    assert outcome.exit_code == ExitCode.NOT_COMPARABLE


def test_what_neither_has_is_wrong_usage(repository: Repository) -> None:
    repository.write('functions = ["bench.py:othr"]', bench_py=_OTHER).commit()
    with pytest.raises(UserError, match=r"names what neither revision has: .* did you mean 'other'") as caught:
        repository.measure()
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_process_that_dies_of_the_head_fails(repository: Repository) -> None:
    repository.write(_TWO, bench_py=_OTHER).commit()
    dies = _KEPT + "def other():\n    import os\n    os._exit(7)\n"
    outcome, figures = repository.write(bench_py=dies).gate()
    assert (figures["bench.py:other/correctness check"].reason, outcome.exit_code) == ("exited with status 7", 1)


# Code that is not the revision's own.


def test_an_installed_copy_is_refused(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `pip install --editable .`: both revisions would import the work tree."""
    settings = 'functions = [{function = "bench/speed.py:parse_large", threads = 1}]\npath = []'
    _library(repository, settings)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(repository.root / "src"), before))))
    with pytest.raises(UserError, match=r"the base, HEAD .* imports library from .*, which is not that rev") as caught:
        repository.measure()
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_what_both_would_share_is_refused(repository: Repository) -> None:
    copy = 'cp library.py "$(python -c "import sysconfig; print(sysconfig.get_path(\'purelib\'))")"'
    settings = f"""
        functions = [{{function = "bench/speed.py:parse_large", threads = 1}}]
        install = '''{copy}'''
        lock = ["lock.txt"]
    """
    repository.write(settings, library_py=_LIBRARY, bench__speed_py=_BENCH, lock_txt="1").commit()
    with pytest.raises(UserError, match="so base and head would be one code") as caught:
        repository.measure()
    assert caught.value.exit_code == ExitCode.NOT_COMPARABLE


def test_data_that_git_does_not_have_are_linked(repository: Repository) -> None:
    bench = "def work():\n    return open('data/numbers.txt').read()\n"
    repository.write('functions = [{function = "bench.py:work", threads = 1}]', bench_py=bench)
    repository.write(data__numbers_txt="1 2 3")
    (repository.root / ".gitignore").write_text("data\n")
    repository.commit()
    _, figures = repository.gate()
    assert figures["bench.py:work/times"].reason.startswith("not comparable: neither can do it")
    settings = (repository.root / "pyproject.toml").read_text() + '\nlink = ["data"]\n'
    (repository.root / "pyproject.toml").write_text(settings)
    _, figures = repository.gate()
    assert figures["bench.py:work/call"].pairs == 2
    (repository.root / "pyproject.toml").write_text(settings.replace('"data"', '"date"'))
    with pytest.raises(UserError, match="there is no date to link from"):
        repository.measure()
    assert (repository.root / "data/numbers.txt").read_text() == "1 2 3"
