"""Made-up results with every shape that a row can have; the figures are in the range of real ones."""

import math
import random
import statistics
from datetime import UTC, datetime

import pytest
from scipy.special import stdtrit

from meprop_bench.measure.paired import Measurement
from meprop_bench.report.document import Document
from meprop_bench.results.schema import Parity, Row
from meprop_bench.results.store import Store
from meprop_bench.stats import mean_difference
from tests.report.browser import NAMES, Browser, executable

BIG = {"batch": 1024, "in_features": 8192, "out_features": 8192}
SMALL = {"batch": 50, "in_features": 784, "out_features": 500}
ENVIRONMENT = {"cpu": "AMD EPYC 7B13", "cores": 2, "torch": "2.13.0", "cache": {"l1d": "32 KiB"}, "gpu": None}
PEAKS = {"flops_per_s": {"float32": 2.0e11}, "bandwidth": [[65536, 8.1e10], [536870912, 3.5e10]]}


def make_row(case_id, **changes):
    """A timed row whose values scatter about the medians that the arguments give."""
    return Row.of(**stored(case_id, **changes))


def stored(case_id, *, median=1e-3, speedup=5.0, half=0.01, processes=5, **changes):
    """What a row stores."""
    lengths = [4] * processes
    values, baseline = scattered(median, speedup, half, processes)
    found = Measurement.from_values("backward", baseline, values, lengths, 1)
    row = {
        "workload": "linear",
        "method": "unified",
        "kernel": "gather",
        "kernel_requested": "auto",
        "k": 8,
        "device": "cpu",
        "threads": 2,
        "dtype": "float32",
        "gradient": "rows",
        "allocator": "kept",
        "phase": "backward",
        "environment_id": "aabbccddeeff",
        "check": "passed",
        "seed": 0,
        "median_s": found.median_s,
        "values_s": values,
        "baseline_median_s": found.baseline_median_s,
        "baseline_values_s": baseline,
        "run_lengths": lengths,
        "loops": 1,
        "speedup": found.speedup.estimate,
        "speedup_low": found.speedup.low,
        "speedup_high": found.speedup.high,
        "converged": half <= 0.02 and processes > 1,
        "floor_s": found.median_s * 0.6,
        "baseline_floor_s": found.baseline_median_s * 0.85,
        "peak_memory_bytes": 36 << 20,
        "baseline_peak_memory_bytes": 288 << 20,
        **BIG,
    }
    return {"case_id": str(case_id), **row, **changes}


def scattered(median, speedup, half, processes):
    """Return values of both sides, four of each process, that have these medians and an interval of this half-width."""
    steps = [step - (processes - 1) / 2 for step in range(processes)]
    width = math.log1p(half) * math.sqrt(processes) / float(stdtrit(processes - 1, 0.975)) if processes > 1 else 0.0
    unit = width / statistics.stdev(steps) if processes > 1 else 0.0
    within = (0.96, 1.0, 1.0, 1 / 0.96)
    values = [median * factor for _ in steps for factor in within]
    baseline = [median * speedup * math.exp(unit * step) * factor for step in steps for factor in within]
    return values, baseline


def noisy_row(case_id, *, seed, speedup=1.0, spread=0.01, processes=5, **changes):
    """A row whose processes differ by chance, with the speed-up and the interval that its values have."""
    source = random.Random(seed)
    factors = [speedup * math.exp(source.gauss(0, spread)) for _ in range(processes)]
    values = [1e-3] * 4 * processes
    baseline = [1e-3 * factor for factor in factors for _ in range(4)]
    found = Measurement.from_values("step", baseline, values, [4] * processes, 1).speedup
    row = stored(case_id, processes=processes, **changes)
    row |= {"values_s": values, "baseline_values_s": baseline, "median_s": 1e-3, "floor_s": 0.6e-3, "seed": seed}
    row |= {"baseline_median_s": statistics.median(baseline), "speedup": found.estimate}
    return Row.of(**row | {"speedup_low": found.low, "speedup_high": found.high})


def failed_row(case_id, **changes):
    """A row of a case that could not be run, or whose check failed: `changes` says which."""
    names = "median_s values_s baseline_median_s baseline_values_s run_lengths loops speedup speedup_low speedup_high"
    names += " converged floor_s baseline_floor_s peak_memory_bytes baseline_peak_memory_bytes"
    return Row.of(**{**stored(case_id), **dict.fromkeys(names.split()), "check": None, **changes})


def accuracy(difference, spread, verdict):
    dense = [96.2, 96.6, 96.1, 96.4, 96.3]
    unit = spread * math.sqrt(5) / float(stdtrit(4, 0.975)) / statistics.stdev(range(5))
    method = [figure + difference + unit * step for step, figure in zip(range(-2, 3), dense, strict=True)]
    found = mean_difference(list(zip(dense, method, strict=True)))
    return Parity(
        task="digits",
        seeds=[0, 1, 2, 3, 4],
        steps=400,
        baseline=dense,
        method=method,
        difference=found.estimate,
        low=found.low,
        high=found.high,
        margin=0.5,
        verdict=verdict,
    )


def linear_rows():
    rows = []
    for gradient, speedups in (("rows", (150, 120, 55, 16)), ("dense", (92, 80, 44, 15))):
        for k, speedup in zip((8, 32, 128, 512), speedups, strict=True):
            case = f"big-{gradient}-{k}"
            rows.append(make_row(case, k=k, gradient=gradient, median=1.35 / speedup, speedup=speedup))
    for k, speedup in ((8, 28), (32, 15), (128, 6.6)):
        case = {"method": "meprop", "kernel": "embedding_bag", "k": k, "median": 1.3 / speedup, "speedup": speedup}
        rows.append(make_row(f"big-meprop-{k}", half=0.015, **case))
    dense = 2.62e-4  # of all that are small
    rows.append(make_row("small", median=dense / 13.1, speedup=13.1, k=30, **SMALL))
    rows.append(
        make_row(
            "noisy",
            median=dense / 1.01,
            speedup=1.01,
            half=0.06,
            method="random",
            k=400,
            **SMALL,
            notes=["budget spent"],
        )
    )
    rows.append(make_row("slower", median=dense / 0.81, speedup=0.81, method="random-unified", k=400, **SMALL))
    rows.append(make_row("single", median=dense / 4.4, speedup=4.4, processes=1, k=100, **SMALL))
    rows.append(failed_row("wrong", check="dw differs from the oracle by 0.31", k=20, **SMALL, median_s=1e-5))
    rows.append(failed_row("broken", error="killed by signal 9, probably out of memory", k=2000, kernel=None))
    for k, speedup in ((8, 64), (32, 55), (128, 38), (512, 14)):
        rows.append(
            make_row(
                f"default-{k}", k=k, median=1.5 / speedup, speedup=speedup, allocator="default", environment_id="ff00"
            )
        )
    return rows


def mlp_rows():
    rows = []
    times = {"linear-backward": (1.9e-4, 9.0), "forward": (2.1e-4, 1.0), "backward": (2.8e-4, 6.5)}
    times |= {"update": (3.2e-4, 1.02), "step": (8.2e-4, 2.9)}
    common = {
        "workload": "mlp",
        "gradient": "dense",
        "batch": 50,
        "in_features": 64,
        "out_features": 500,
        "data": "digits",
    }
    found = {20: accuracy(0.04, 0.3, "pass"), 50: accuracy(-0.3, 0.5, "inconclusive"), 5: accuracy(-2.4, 0.8, "fail")}
    for k, parity in found.items():
        for phase, (median, speedup) in times.items():
            shown = parity if phase == "step" else None
            rows.append(
                make_row(f"mlp-{k}", phase=phase, median=median, speedup=speedup, k=k, parity=shown, layers=2, **common)
            )
    return rows


@pytest.fixture(name="make_row")
def make_row_fixture():
    return make_row


@pytest.fixture(name="noisy_row")
def noisy_row_fixture():
    return noisy_row


@pytest.fixture(name="failed_row")
def failed_row_fixture():
    return failed_row


@pytest.fixture
def rows():
    return [*linear_rows(), *mlp_rows()]


@pytest.fixture
def make_folder(tmp_path):
    """A function that stores rows in a new results folder and returns it."""

    def make(rows, name="quick", command="meprop-bench speedup --preset quick", environment="aabbccddeeff"):
        now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
        with Store.create(tmp_path, name, "amd-epyc-2c", command, {"target": 0.02}, now=now) as store:
            for row in rows:
                store.append([row])
            store.write_environment({environment: ENVIRONMENT}, {environment: PEAKS})
            return store.folder

    return make


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless browser, where there is one."""
    if (path := executable()) is None:
        pytest.skip(f"there is no {' or '.join(NAMES)} here")
    with Browser(path, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def open_address(browser):
    """A function that opens a page of the browser, until the end of the test."""
    pages = []

    def opened(where, *, fragment="", width=1280, **how):
        pages.append(browser.open(where + fragment, width=width, **how))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def document(rows):
    return Document(
        title="2026-03-04_amd-epyc-2c_quick",
        command="meprop-bench speedup --preset quick",
        started="2026-03-04T05:06:07+00:00",
        rows=rows,
        environments={"aabbccddeeff": ENVIRONMENT},
        peaks={"aabbccddeeff": PEAKS},
    )


@pytest.fixture
def folder(make_folder, rows):
    return make_folder(rows)
