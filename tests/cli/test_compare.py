import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from meprop_bench.cli.compare import command
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.paired import Measurement
from meprop_bench.report.bundle import write_bundle
from meprop_bench.results.baselines import Baselines
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store


def row(case_id="a", environment_id="e0", scale=1.0):
    values = [1e-3 * scale, 1.01e-3 * scale, 1.02e-3 * scale]
    base = {"workload": "linear", "method": "unified", "kernel": "gather", "kernel_requested": "auto", "k": 8}
    base |= {"batch": 10, "in_features": 784, "out_features": 500, "device": "cpu", "threads": 2, "dtype": "float32"}
    base |= {"gradient": "rows", "allocator": "kept", "phase": "backward", "check": "passed"}
    base |= {"values_s": values, "baseline_values_s": [5e-3] * 3, "run_lengths": [1, 1, 1], "loops": 1}
    speedup = Measurement.from_values("backward", [5e-3] * 3, values, [1, 1, 1], 1).speedup.estimate
    return Row.of(case_id=case_id, environment_id=environment_id, **base, median_s=values[1], speedup=speedup)


@pytest.fixture
def make(tmp_path):
    def made(*rows, name="quick"):
        now = datetime(2026, 3, 4, tzinfo=UTC)
        with Store.create(tmp_path, name, "amd-2c", f"meprop-bench speedup --name {name}", {}, now=now) as store:
            store.append(rows)
            store.write_environment({one.environment_id: {"cpu_model": one.environment_id} for one in rows})
        return store.folder

    return made


def call(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("form", "start"),
    [("table", "linear backward, 1 case: "), ("json", "{"), ("md", "linear backward, 1 case: "), ("csv", "case_id,")],
)
def test_each_format_prints_that_alone(make, form, start):
    result = call(make(row()), make(row(scale=0.5), name="after"), "--format", form)
    assert result.exception is None
    assert result.return_value == ExitCode.OK
    assert result.stdout.startswith(start)
    assert "\x1b" not in result.stdout
    assert result.stderr == ""
    if form == "json":
        assert json.loads(result.stdout)["rows"][0]["time"]["ratio"] == pytest.approx(2.0)


def test_another_environment_is_exit_3_unless_asked_for(make):
    folders = make(row()), make(row(environment_id="e1"), name="after")
    error = call(*folders).exception
    assert isinstance(error, UserError)
    assert error.exit_code == ExitCode.NOT_COMPARABLE
    assert "e0 → e1" in str(error)
    assert "\n" not in str(error)
    assert call(*folders, "--across-environments").exception is None


def test_nothing_there_is_one_line(make, tmp_path):
    assert call(make(row()), tmp_path / "nowhere").exception.exit_code == ExitCode.USAGE
    assert call(make(row()), make(row("b"), name="after")).exception.exit_code == ExitCode.NOT_COMPARABLE
    assert call(make(row()), make(name="empty")).exception.exit_code == ExitCode.NOTHING_MEASURED


def test_it_loads_no_torch(make):
    folders = [str(make(row())), str(make(row(), name="after"))]
    code = f"""
import sys
from meprop_bench.cli.compare import command
command.main({folders!r}, standalone_mode=False)
assert not {{"torch", "matplotlib"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_it_is_a_page_and_takes_bundles(make):
    pytest.importorskip("jinja2")
    folders = make(row()), make(row(scale=0.5), name="after")
    bundles = [write_bundle(folder, folder.with_suffix(".zip")).path for folder in folders]
    result = call(*bundles, "--format", "html")
    assert result.exception is None
    assert result.stdout.startswith("<!doctype html>")
    assert all(folder.name in result.stdout for folder in folders)


def test_a_named_baseline_is_either_side(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, after = make(row()), make(row(scale=0.5), name="after")
    Baselines().save("main", [before], source="quick", machine="AMD EPYC")
    result = call("main", after, "--format", "json")
    assert result.exception is None
    assert json.loads(result.stdout)["rows"][0]["time"]["ratio"] == pytest.approx(2.0)
    assert "does not exist" in str(call("absent", after).exception)
