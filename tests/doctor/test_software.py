from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meprop_bench.doctor import software
from meprop_bench.doctor.check_result import CheckResult
from meprop_bench.measure.sampler import SampleSummary
from meprop_bench.ops.kernels import compiled
from meprop_bench.ops.node import SWITCH

_TORCH = {"torch": "2.13.0+cpu", "blas": "mkl", "cpu_capability": "AVX2", "openmp": "4.5", "unavailable": {}}


def by_check(findings: list[CheckResult]) -> dict[str, CheckResult]:
    return {finding.check: finding for finding in findings}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution -> its version; a test fills it. The package's own metadata are those of pyproject.toml."""
    there: dict[str, str] = {}
    monkeypatch.setattr(software, "installed", there.get)
    return there


def test_what_is_missing_names_its_extra(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        software,
        "_extras",
        lambda: {"numba": "cpu", "jinja2": "report", "scikit-learn": "digits", "asv": "suites", "triton": "gpu"},
    )
    installed |= {"matplotlib": "3.9", "asv": "0.6.6", "pytest-benchmark": "5.0"}
    found = by_check(software.software(_TORCH))
    assert found["torch"] == CheckResult("software", "torch", "ok", "2.13.0+cpu, mkl, AVX2, OpenMP 4.5")
    assert (found["kernels"].state, found["kernels"].advice) == ("note", "pip install 'meprop-bench[cpu]'")
    assert found["report"].text == "matplotlib 3.9, jinja2 not installed"
    assert found["report"].advice == "pip install 'meprop-bench[report]'"
    assert (found["suites"].state, found["suites"].advice) == ("ok", "")
    assert found["export"].advice == "pip install onnx"  # no extra brings it here


def test_extras_come_from_the_package_s_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2.5",
        'numba>=0.61; extra == "cpu"',
        'scikit-learn>=1.4; extra == "digits"',
        'triton>=3.1; platform_system == "Linux" and extra == "gpu"',
        'meprop-bench[cpu,report]; extra == "all"',
    ]
    monkeypatch.setattr(software, "requires", lambda _: lines)
    software._extras.cache_clear()
    found = software._extras()
    software._extras.cache_clear()
    assert {name: found[name] for name in ("numba", "scikit-learn", "triton")} == {
        "numba": "cpu",
        "scikit-learn": "digits",
        "triton": "gpu",
    }
    assert "torch" not in found


def test_without_torch_there_is_a_problem(installed: dict[str, str]) -> None:
    absent = dict.fromkeys(_TORCH) | {"unavailable": {"torch": "ModuleNotFoundError while reading it"}}
    assert by_check(software.software(absent))["torch"].state == "problem"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(compiled, "load", lambda module: None)  # which would compile into it
    installed["numba"] = "0.68"
    return tmp_path / "meprop-bench" / "numba-1" / "native_2"


def compile_(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


def test_a_cold_cache_is_one_that_had_to_be_written(cache: Path) -> None:
    def judged(before: frozenset[str], *, loaded: bool) -> Any:
        found = software.kernels(before, software.compiled(), loaded=loaded)
        assert found is not None
        return found.state, found.text

    assert judged(frozenset(), loaded=True)[0] == "warning"
    compile_(cache, "a.nbi")
    before = software.compiled()
    assert len(before) == 1
    assert judged(before, loaded=True) == ("ok", f"warm: nothing had to be compiled, in {cache.parents[1]}")
    assert "not tried" in judged(before, loaded=False)[1]
    compile_(cache, "b.nbc")
    assert judged(before, loaded=False) == ("warning", "was cold: 1 files were written now")


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged() -> tuple[str, str]:
        found = software.kernels(frozenset(), frozenset({"a"}), loaded=True)
        assert found is not None
        assert (found.state, "XDG_CACHE_HOME" in found.advice) == ("warning", True)
        return found.text, found.advice

    file = cache.parents[1] / "file"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    text, advice = judged()
    assert text == f"{file}/meprop-bench cannot be written"
    assert "every process compiles" in advice
    (file.parents[1] / "temporary").mkdir()
    assert "/meprop-bench cannot be written, so it is in" in judged()[0]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "there is no home directory, so it is in" in judged()[0]


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("Numba cannot be imported (ImportError: NumPy 9)", "pip install --force-reinstall 'meprop-bench[cpu]'"),
        ("Numba is told to compile nothing: unset NUMBA_DISABLE_JIT", ""),
    ],
)
def test_kernels_that_cannot_be_used_say_why(
    cache: Path, monkeypatch: pytest.MonkeyPatch, reason: str, advice: str
) -> None:
    monkeypatch.setattr(compiled, "unavailable_reason", lambda: reason)
    found = software.kernels(frozenset(), frozenset({"a"}), loaded=False)
    text = f"{reason}; layers run on torch's operators, several times slower"
    assert found == CheckResult("software", "native kernels", "warning", text, advice)


def test_without_numba_there_is_no_cache(
    cache: Path, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del installed["numba"]
    monkeypatch.setattr(compiled, "unavailable_reason", lambda: "Numba is not installed (extra `cpu`)")
    assert software.kernels(frozenset(), frozenset(), loaded=True) is None


def test_devices_of_this_machine_have_a_state_and_a_text() -> None:
    found = software.devices()
    assert [finding.check for finding in found] == ["CUDA", "NVML", "GPM", "RAPL"]
    assert {finding.state for finding in found} <= {"ok", "note"}
    assert all(finding.text for finding in found)


def test_a_machine_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    for name, value in (
        ("is_available", True),
        ("device_count", 2),
        ("get_device_name", "A GPU"),
        ("get_device_properties", SimpleNamespace(uuid="u")),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    found = {"gpu_utilization": 1.0, "sm_utilization": 1.0, "cpu_energy_j": 1.0}
    monkeypatch.setattr(
        software.Sampler, "summary", property(lambda _: SampleSummary(found), lambda *_: None), raising=False
    )
    assert [finding.state for finding in software.devices()] == ["ok"] * 4
    assert software.devices()[0].text == "CUDA 12.9: A GPU, A GPU"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that is a script, and Numba, so that nothing but the build decides about the node."""
    pytest.importorskip("numba")
    script = tmp_path / "c++"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.delenv(SWITCH, raising=False)
    return script


def _says(script: Path, text: str) -> None:
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)


def test_a_node_that_is_not_built_says_how_and_by_which_compiler(compiler: Path) -> None:
    _says(compiler, "echo; echo 'a compiler 12.2'; echo more")
    found = by_check(software.node())
    assert found["C++ node"].state == "note"
    assert "not in use, Python's is: it is not built yet: `python -m meprop_bench.ops" in found["C++ node"].text
    assert (found["compiler"].state, found["compiler"].text) == ("ok", f"{compiler}: a compiler 12.2")


@pytest.mark.parametrize(("script", "words"), [(None, "cannot be run: No such file"), ("exit 3", "exit code 3")])
def test_a_compiler_that_does_not_work_is_a_warning(compiler: Path, script: str | None, words: str) -> None:
    if script is not None:
        _says(compiler, script)
    found = by_check(software.node())["compiler"]
    assert (found.state, words in found.text) == ("warning", True)


def test_no_compiler_and_a_node_that_is_switched_off_are_notes(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(compiler.parent / "empty"))
    monkeypatch.setenv(SWITCH, "python")
    found = by_check(software.node())
    assert {finding.state for finding in found.values()} == {"note"}
    assert "it is switched off" in found["C++ node"].text
    assert "no C++ compiler" in found["compiler"].text


def test_a_node_in_use_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meprop_bench.ops.node.unavailable_reason", lambda: None)
    assert by_check(software.node())["C++ node"].state == "ok"
