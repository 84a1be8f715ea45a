"""The reader against a library that behaves as NVML does: handles, states, units, errors, and cards that disappear.

The fake takes the error classes, the constants and the GPM structure from `pynvml` itself, so that a name which is not
there, or a field that is spelt otherwise, fails here, too.
"""

from __future__ import annotations

import ctypes
import inspect
import math
from types import SimpleNamespace

import pynvml
import pytest

from meprop_bench.measure.nvml import Nvml, throttle_words
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import Sampler

UUID = "11111111-2222-3333-4444-555555555555"
CARD = SimpleNamespace(uuid=UUID, pci_bus_id=0x1B, pci_device_id=0, pci_domain_id=0)


class Library:
    """NVML with one card, number 3 of the machine.

    Args:
        faults: function -> error code, or a function that makes one of how often it was asked before.
        initial: the error that nvmlInit meets.

    """

    NVMLError = pynvml.NVMLError

    def __init__(self, faults=None, initial=None, gpm=True, mig=None, names=("GPU-" + UUID, "0000:1b:00.0")):
        self.faults, self.initial, self.gpm_supported, self.mig, self.names = faults or {}, initial, gpm, mig, names
        self.references = 0
        self.asked = {}
        self.samples = {}  # address -> when it was taken, None before
        self.ticks = 0
        self.gpm_returns = {}

    def __getattr__(self, name):
        if name.startswith(("NVML_", "NVMLError_", "c_nvml")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def _enter(self, name, handle=None):
        """What every function does first: fail as told, without nvmlInit, or with a handle of another library."""
        if not self.references:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        before = self.asked.get(name, 0)
        self.asked[name] = before + 1
        fault = self.faults.get(name)
        if (code := fault(before) if callable(fault) else fault) is not None:
            raise pynvml.NVMLError(code)
        if handle not in (None, "card 3"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlInit(self):
        if self.initial is not None:
            raise pynvml.NVMLError(self.initial)
        self.references += 1

    def nvmlShutdown(self):
        self._enter("nvmlShutdown")
        self.references -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._enter("nvmlDeviceGetHandleByUUID")
        return self._handle(uuid)

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId):
        self._enter("nvmlDeviceGetHandleByPciBusId")
        return self._handle(pciBusId[4:])  # NVML takes a domain of 4 or 8 digits

    def _handle(self, name):
        if name not in self.names:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "card 3"

    def nvmlDeviceGetMigMode(self, device):
        self._enter("nvmlDeviceGetMigMode", device)
        if self.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [self.mig, self.mig]

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._enter("nvmlDeviceGetUtilizationRates", handle)
        self.ticks += 1
        return SimpleNamespace(gpu=90 + self.ticks, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        self._enter("nvmlDeviceGetMemoryInfo", handle)
        return SimpleNamespace(total=8 << 30, used=(self.ticks % 2 + 1) << 30, free=0)

    def nvmlDeviceGetClockInfo(self, handle, type):
        self._enter("nvmlDeviceGetClockInfo", handle)
        assert type == pynvml.NVML_CLOCK_SM
        return 1980 - 100 * (self.ticks == 2)

    def nvmlDeviceGetPowerUsage(self, handle):
        self._enter("nvmlDeviceGetPowerUsage", handle)
        return 300_000 + 50_000 * self.ticks  # milliwatts

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._enter("nvmlDeviceGetTemperature", handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 50 + self.ticks

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._enter("nvmlDeviceGetTotalEnergyConsumption", handle)
        return 5_000_000 + 400_000 * self.ticks  # millijoules since the driver was loaded

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self._enter("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return 0x4 if self.ticks == 2 else 0x0

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._enter("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return 0x40

    def nvmlGpmQueryDeviceSupport(self, device):
        self._enter("nvmlGpmQueryDeviceSupport", device)
        return SimpleNamespace(isSupportedDevice=int(self.gpm_supported))

    def nvmlGpmSampleAlloc(self):
        self._enter("nvmlGpmSampleAlloc")
        buffer = ctypes.create_string_buffer(8)
        sample = ctypes.cast(buffer, pynvml.c_nvmlGpmSample_t)
        self.samples[_address(sample)] = None
        sample.keep = buffer
        return sample

    def nvmlGpmSampleGet(self, device, gpmSample):
        self._enter("nvmlGpmSampleGet", device)
        self._known(gpmSample)
        self.samples[_address(gpmSample)] = self.ticks
        return gpmSample

    def nvmlGpmMetricsGet(self, metricsGet):
        self._enter("nvmlGpmMetricsGet")
        if metricsGet.version != pynvml.NVML_GPM_METRICS_GET_VERSION:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        first, second = (self._known(sample) for sample in (metricsGet.sample1, metricsGet.sample2))
        if first is None or second is None or not first < second:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        for metric in metricsGet.metrics[: metricsGet.numMetrics]:
            metric.nvmlReturn, metric.value = self.gpm_returns.get(metric.metricId, (0, 10.0 * metric.metricId))
        return metricsGet

    def nvmlGpmSampleFree(self, gpmSample):
        self._enter("nvmlGpmSampleFree")
        self._known(gpmSample)
        del self.samples[_address(gpmSample)]

    def _known(self, sample):
        if _address(sample) not in self.samples:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.samples[_address(sample)]


def _address(sample):
    return ctypes.cast(sample, ctypes.c_void_p).value


def sample(library, readings=3, card=CARD):
    """Sample one card for 2 s and hold that nothing was left open."""
    answers, ticks = iter([False] * (readings - 1) + [True]), iter([0.0, 2.0])
    gpu = Nvml("cuda:0", library, card)
    with Sampler([gpu], now=lambda: next(ticks), pause=lambda _: next(answers)) as sampler:
        sampler._thread.join()
    assert library.references == 0
    assert library.samples == {}
    found = sampler.summary
    assert set(found.values) | set(found.unavailable) == set(Nvml.fields)
    assert not set(found.values) & set(found.unavailable)
    return found


def after(count, code):
    return lambda before: code if before >= count else None


def test_the_fake_has_the_functions_of_the_library():
    names = [name for name in vars(Library) if name.startswith("nvml")]
    assert len(names) == 18
    for name in names:
        real = list(inspect.signature(inspect.unwrap(getattr(pynvml, name))).parameters)
        ours = list(inspect.signature(getattr(Library, name)).parameters)[1:]
        if real != ["args", "kwargs"]:  # behind a decorator of pynvml's
            assert ours == real, name


def test_a_card_that_tells_everything():
    found = sample(Library())
    assert found.unavailable == {}
    assert found.values == {
        "gpu_utilization": 92.0,
        "gpu_memory_utilization": 40.0,
        "gpu_memory_used_bytes": 2 << 30,
        "sm_clock_mhz": pytest.approx(1980 - 100 / 3),
        "gpu_power_w": 400.0,
        "gpu_energy_j": 1200.0,
        "gpu_energy_source": "counter",
        "temperature_c": 53.0,
        "throttle_reasons": ["power cap"],
        "sm_utilization": 20.0,
        "sm_occupancy": 30.0,
        "tensor_utilization": 50.0,
        "dram_utilization": 100.0,
    }


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "NVML: NVML Shared Library Not Found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "NVML: Driver Not Loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "NVML: RM has detected an NVML/RM version mismatch."),
    ],
)
def test_without_a_driver_every_field_says_so(code, reason):
    found = sample(Library(initial=code))
    assert found.values == {}
    assert set(found.unavailable.values()) == {reason}


def test_this_machine_answers_or_says_why_not():
    reason = Nvml("cuda:0", properties=CARD).unavailable_reason()
    assert reason is not None  # there is no such card anywhere
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        ("nvmlDeviceGetUtilizationRates", {"gpu_utilization", "gpu_memory_utilization"}),
        ("nvmlDeviceGetMemoryInfo", {"gpu_memory_used_bytes"}),
        ("nvmlDeviceGetClockInfo", {"sm_clock_mhz"}),
        ("nvmlDeviceGetPowerUsage", {"gpu_power_w"}),
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
        ("nvmlDeviceGetCurrentClocksEventReasons", {"throttle_reasons"}),
    ],
)
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_one_metric_may_be_missing_and_is_not_asked_again(function, fields, code):
    library = Library(faults={function: code})
    found = sample(library)
    assert set(found.unavailable) >= fields
    assert {found.unavailable[name] for name in fields} == {f"NVML: {pynvml.NVMLError(code)}"}
    assert library.asked[function] == 1
    assert "gpu_energy_j" in found.values


def test_an_error_that_passes_costs_one_reading():
    def now_and_then(before):
        return pynvml.NVML_ERROR_TIMEOUT if before == 0 else None

    library = Library(faults={"nvmlDeviceGetPowerUsage": now_and_then})
    found = sample(library)
    assert found.values["gpu_power_w"] == 425.0
    assert library.asked["nvmlDeviceGetPowerUsage"] == 3


def test_an_error_that_stays_is_the_reason():
    library = Library(faults={"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_UNKNOWN})
    assert sample(library).unavailable == {"gpu_power_w": "NVML: Unknown Error"}
    assert library.asked["nvmlDeviceGetPowerUsage"] == 3


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
@pytest.mark.parametrize("function", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature"])
def test_a_card_that_disappears_takes_every_figure_with_it(function, code):
    library = Library(faults={function: after(2, code)})
    found = sample(library, readings=5)
    assert found.values == {}
    assert set(found.unavailable.values()) == {f"the GPU disappeared: NVML: {pynvml.NVMLError(code)}"}
    assert library.asked[function] == 3  # it is not asked again


def test_a_card_that_is_lost_at_the_end_or_before_the_beginning():
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    for fault in (after(1, lost), lost):
        found = sample(Library(faults={"nvmlDeviceGetTotalEnergyConsumption": fault}))
        assert found.values == {}
    found = sample(Library(faults={"nvmlDeviceGetHandleByUUID": lost}))
    assert found.unavailable["gpu_power_w"] == "NVML: GPU is lost"


def test_a_shutdown_that_fails_is_no_fault():
    library = Library(faults={"nvmlShutdown": pynvml.NVML_ERROR_UNKNOWN})
    gpu = Nvml("cuda:0", library, CARD)
    assert gpu.unavailable_reason() is None
    gpu.close()
    gpu.close()
    assert library.asked["nvmlShutdown"] == 1


def test_energy_from_power_where_there_is_no_counter():
    found = sample(Library(faults={"nvmlDeviceGetTotalEnergyConsumption": pynvml.NVML_ERROR_NOT_SUPPORTED}))
    assert (found.values["gpu_energy_j"], found.values["gpu_energy_source"]) == (800.0, "power readings")
    faults = dict.fromkeys(
        ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"), pynvml.NVML_ERROR_NOT_SUPPORTED
    )
    found = sample(Library(faults=faults))
    assert found.unavailable["gpu_energy_j"] == found.unavailable["gpu_energy_source"] == "NVML: Not Supported"


def test_a_counter_that_was_reset_is_not_believed():
    class Reset(Library):
        def nvmlDeviceGetTotalEnergyConsumption(self, handle):
            return 7_000_000 if self.ticks == 0 else 12

    assert sample(Reset()).values["gpu_energy_source"] == "power readings"


def test_throttling_by_its_old_name():
    old_driver = Library(faults={"nvmlDeviceGetCurrentClocksEventReasons": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
    assert sample(old_driver).values["throttle_reasons"] == ["thermal, by hardware"]

    class OldBinding(Library):
        @property
        def nvmlDeviceGetCurrentClocksEventReasons(self):
            raise AttributeError

    assert sample(OldBinding()).values["throttle_reasons"] == ["thermal, by hardware"]


def test_throttle_words():
    assert throttle_words(0) == ()
    assert throttle_words(0x1 | 0x4 | 0x20) == ("idle", "power cap", "thermal, by software")
    assert throttle_words(0x4 | 1 << 40) == ("power cap", hex(1 << 40))


def test_the_card_is_found_by_what_it_is_and_not_by_its_number():
    by_place = SimpleNamespace(pci_bus_id=0x1B, pci_device_id=0, pci_domain_id=0)
    assert "gpu_utilization" in sample(Library(), card=by_place).values
    renamed = SimpleNamespace(uuid="another", pci_bus_id=0x1B, pci_device_id=0)
    assert "gpu_utilization" in sample(Library(), card=renamed).values
    for stranger in (
        SimpleNamespace(uuid="another"),
        SimpleNamespace(),
        SimpleNamespace(pci_bus_id=1, pci_device_id=0),
    ):
        found = sample(Library(), card=stranger)
        assert found.unavailable["gpu_utilization"] == "NVML does not know the GPU that torch calls cuda:0"


@pytest.mark.parametrize("library", [Library(mig=1), Library(names=("MIG-" + UUID,))])
def test_a_slice_of_a_card_has_no_figures_of_its_own(library):
    found = sample(library)
    assert found.values == {}
    assert "cut into slices (MIG)" in found.unavailable["gpu_power_w"]


def test_a_card_with_slices_switched_off_is_whole():
    assert sample(Library(mig=0)).unavailable == {}


GPM = {"sm_utilization", "sm_occupancy", "tensor_utilization", "dram_utilization"}


def test_a_chip_without_its_own_counters():
    library = Library(gpm=False)
    found = sample(library)
    assert set(found.unavailable) == GPM
    assert "Hopper" in found.unavailable["sm_occupancy"]
    assert "nvmlGpmSampleAlloc" not in library.asked


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("nvmlGpmQueryDeviceSupport", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND),
        ("nvmlGpmSampleAlloc", after(1, pynvml.NVML_ERROR_MEMORY)),
        ("nvmlGpmSampleGet", pynvml.NVML_ERROR_NO_PERMISSION),
        ("nvmlGpmSampleGet", after(1, pynvml.NVML_ERROR_NOT_READY)),
        ("nvmlGpmMetricsGet", pynvml.NVML_ERROR_UNKNOWN),
    ],
)
def test_samples_are_freed_whatever_goes_wrong(function, fault):
    library = Library(faults={function: fault})
    found = sample(library)  # holds that none is left
    assert set(found.unavailable) == GPM
    assert all(reason.startswith("NVML: ") for reason in found.unavailable.values())


def test_single_metrics_of_the_chip_may_be_missing():
    library = Library()
    library.gpm_returns = {
        pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: (pynvml.NVML_ERROR_NOT_SUPPORTED, 0.0),
        pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: (0, math.nan),
    }
    assert sample(library).unavailable == {
        "tensor_utilization": "NVML: Not Supported",
        "sm_occupancy": "NVML gives no number",
    }


def test_a_binding_without_these_functions():
    class Old(Library):
        @property
        def nvmlGpmQueryDeviceSupport(self):
            raise AttributeError

    assert "too old" in sample(Old()).unavailable["sm_utilization"]


def test_asked_before_it_is_opened_it_refuses_as_nvml_does():
    with pytest.raises(Unavailable, match="disappeared: NVML: Uninitialized"):
        Nvml("cuda:0", Library(), CARD).start()
