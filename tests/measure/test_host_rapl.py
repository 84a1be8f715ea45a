from __future__ import annotations

from pathlib import Path

import pytest

from meprop_bench.measure.host import Rapl
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import Sampler


class Powercap:
    """The kernel's folder as it is laid out: zones, their parts below them, and a link to each part beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def zone(self, place: str, name: str, shown: int = 0, limit: int | None = 1_000_000) -> Path:
        parent = self.root / ":".join(place.split(":")[:2])
        folder = parent if place.count(":") == 1 else parent / place
        folder.mkdir(parents=True, exist_ok=True)
        if folder is not parent:
            (self.root / place).symlink_to(folder)
        (folder / "name").write_text(name + "\n")
        if limit is not None:
            (folder / "max_energy_range_uj").write_text(f"{limit}\n")
        self.show(folder, shown)
        return folder

    @staticmethod
    def show(folder: Path, microjoules: int) -> None:
        (folder / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path):
    return Powercap(tmp_path)


def test_packages_and_their_dram_are_added_and_nothing_twice(powercap):
    counted = [
        powercap.zone("intel-rapl:0", "package-0"),
        powercap.zone("intel-rapl:1", "package-1"),
        powercap.zone("intel-rapl:0:1", "dram"),
    ]
    parts = [
        powercap.zone("intel-rapl:0:0", "core"),
        powercap.zone("intel-rapl:2", "psys"),
        powercap.zone("intel-rapl-mmio:0", "package-0"),
    ]
    meter = Rapl(powercap.root)
    assert meter.unavailable_reason() is None
    meter.start()
    for folder, spent in zip(counted, (500_000, 200_000, 30_000), strict=True):
        powercap.show(folder, spent)
    for folder in parts:
        powercap.show(folder, 999_999)
    meter.stop()
    assert meter.summary(2.0).values == {"cpu_energy_j": pytest.approx(0.73)}


def test_a_counter_that_starts_again_from_nothing(powercap):
    package = powercap.zone("intel-rapl:0", "package-0", shown=900_000)
    meter = Rapl(powercap.root)
    meter.start()
    for shown in (950_000, 100_000, 800_000, 20_000):  # twice past the range of 1 J
        powercap.show(package, shown)
        meter.read()
    assert meter.summary(2.0).values["cpu_energy_j"] == pytest.approx(0.05 + 0.15 + 0.7 + 0.22)


def test_backwards_without_a_known_range_is_no_figure(powercap):
    package = powercap.zone("intel-rapl:0", "package-0", shown=900_000, limit=None)
    with Sampler([Rapl(powercap.root)], pause=lambda _: True) as sampler:
        sampler._thread.join()
        powercap.show(package, 5)
    assert sampler.summary.values == {}
    assert "went backwards" in sampler.summary.unavailable["cpu_energy_j"]


def test_no_meter(tmp_path):
    for root in (tmp_path, tmp_path / "not there"):
        assert "no RAPL energy counter" in Rapl(root).unavailable_reason()


def test_a_meter_that_only_root_may_read(powercap, monkeypatch):
    powercap.zone("intel-rapl:0", "package-0")
    allowed = Path.read_text

    def read_text(path, *rest):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return allowed(path, *rest)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert Rapl(powercap.root).unavailable_reason().startswith("only root may read the RAPL energy counters")


def test_a_meter_that_shows_nonsense(powercap):
    package = powercap.zone("intel-rapl:0", "package-0")
    (package / "energy_uj").write_text("")
    assert Rapl(powercap.root).unavailable_reason() == "the RAPL energy counters cannot be read"


def test_a_meter_that_goes_away_takes_its_figure_with_it(powercap):
    package = powercap.zone("intel-rapl:0", "package-0")
    meter = Rapl(powercap.root)
    meter.start()
    (package / "energy_uj").unlink()
    with pytest.raises((OSError, Unavailable)):
        meter.read()
