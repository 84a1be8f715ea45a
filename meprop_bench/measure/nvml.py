"""One NVIDIA GPU as its driver's library (NVML) shows it: utilisation, memory, clock, power, energy, throttling.

    gpu_utilization         percent of the time in which *some* kernel ran; one thread on one core of the chip is 100%
    gpu_memory_utilization  percent of the time in which device memory was read or written
    gpu_memory_used_bytes   the most memory in use, by anybody
    sm_clock_mhz            mean clock of the multiprocessors
    gpu_power_w             mean power of the board
    gpu_energy_j            the board's energy counter; without one, mean power times seconds (`gpu_energy_source`)
    temperature_c           the highest
    throttle_reasons        what held the clocks down, in words; empty when nothing did
    sm_utilization, sm_occupancy, tensor_utilization, dram_utilization
                            percent over the whole loop, from the chip's own counters (GPM: Hopper and later)

The first two look back over a window of 1/6 to 1 s, whatever is asked, so the loop must have run for a second before
the first reading counts (`measure.utilization` sees to that). How well the chip is used, the GPM figures tell: a
kernel of one block makes `gpu_utilization` 100 and `sm_utilization` 1.

Which GPU? NVML counts all cards of the machine, torch those that CUDA_VISIBLE_DEVICES leaves, in an order of its own;
so the card is found by its UUID, else by its place on the PCI bus, never by its number. On a card cut into slices
(MIG) utilisation does not exist and power is the whole card's, other tenants included: nothing is read there.

Every metric may be missing on its own (NotSupported, NoPermission): it then has a reason, and is not asked again. A GPU
that disappears (GpuIsLost) takes all figures with it: half a loop is no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from operator import or_
from typing import Any

from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import SampleSummary, mean

__all__ = ["Nvml", "throttle_words"]

_THROTTLES = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}

_GPM = {
    "sm_utilization": "NVML_GPM_METRIC_SM_UTIL",
    "sm_occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
    "tensor_utilization": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "dram_utilization": "NVML_GPM_METRIC_DRAM_BW_UTIL",
}

_NEVER = ("NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "INVALID_ARGUMENT")
"""Errors after which a metric need not be asked for again; after others (a timeout, for one) it may answer."""

_END = ("GPU_IS_LOST", "RESET_REQUIRED", "UNINITIALIZED", "DRIVER_NOT_LOADED", "GPU_NOT_FOUND")
"""Errors after which nothing can be read any more."""


def throttle_words(mask: int) -> tuple[str, ...]:
    """Return NVML's reasons for reduced clocks as words; a bit that is not known yet as its number."""
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return tuple(_THROTTLES.get(bit, hex(bit)) for bit in bits)


_SUMMARIES: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "gpu_memory_used_bytes": lambda readings: int(max(readings)),
    "temperature_c": lambda readings: float(max(readings)),
    "throttle_reasons": lambda masks: list(throttle_words(reduce(or_, masks))),
}
"""What becomes of the readings of a field; of others, their mean."""


class Nvml:
    """One GPU, "cuda:N" as torch counts; a test has its own `pynvml` and what torch knows of the device."""

    fields = (
        *("gpu_utilization", "gpu_memory_utilization", "gpu_memory_used_bytes", "sm_clock_mhz", "gpu_power_w"),
        *("gpu_energy_j", "gpu_energy_source", "temperature_c", "throttle_reasons", *_GPM),
    )

    def __init__(self, device: str, library: Any = None, properties: Any = None) -> None:
        self._device, self._library, self._properties = device, library, properties
        self._gpu: Any = None
        self._open = False
        self._gpm: _Gpm | None = None
        self._gauges: dict[str, list[Any]] = {}
        self._energy_mj: list[int] = []
        self._reasons: dict[str, str] = {}
        self._absent: set[str] = set()

    def unavailable_reason(self) -> str | None:
        """Start NVML and find the GPU; say in one line why that cannot be done, or None."""
        if self._library is None:
            try:
                import pynvml
            except ImportError:
                return "nvidia-ml-py is not installed"
            self._library = pynvml
        try:
            self._library.nvmlInit()
            self._open = True
            self._gpu = self._find()
        except Unavailable as reason:
            return str(reason)
        except self._library.NVMLError as error:
            return _line(error)
        return None

    def start(self) -> None:
        """Read the counters for the first time."""
        self._read_energy()
        try:
            self._gpm = _Gpm(self._library, self._gpu)
        except Unavailable as reason:
            self._reasons |= dict.fromkeys(_GPM, str(reason))

    def read(self) -> None:
        """Read every gauge that this GPU has."""
        for names, call in self._calls():
            if (found := self._ask(names, call)) is not None:
                for name, value in zip(names, found, strict=True):
                    self._gauges.setdefault(name, []).append(value)

    def stop(self) -> None:
        """Read the counters for the last time."""
        self._read_energy()
        if self._gpm is not None:
            self._gpm.finish()

    def summary(self, seconds: float) -> SampleSummary:
        """Return what was found."""
        values = {name: _SUMMARIES.get(name, mean)(readings) for name, readings in self._gauges.items()}
        values |= self._energy(values.get("gpu_power_w"), seconds)
        if self._gpm is not None:
            found, missing = self._gpm.percentages()
            values |= found
            self._reasons |= missing
        return SampleSummary.of(values, self.fields, self._reasons)

    def close(self) -> None:
        """Free what was allocated and end NVML."""
        if self._gpm is not None:
            self._gpm.free()
        if self._open:
            self._open = False
            with suppress(self._library.NVMLError):  # a lost GPU's driver may be gone, too
                self._library.nvmlShutdown()

    def _find(self) -> Any:
        """Return the handle of the card that torch calls `device`."""
        if self._properties is None:
            import torch

            self._properties = torch.cuda.get_device_properties(self._device)
        library, properties = self._library, self._properties
        if (uuid := getattr(properties, "uuid", None)) is not None:
            for kind in ("GPU", "MIG"):
                with suppress(library.NVMLError_NotFound, library.NVMLError_InvalidArgument):
                    return self._whole(library.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}"), kind)
        if (bus := getattr(properties, "pci_bus_id", None)) is not None:
            place = f"{getattr(properties, 'pci_domain_id', 0):08x}:{bus:02x}:{properties.pci_device_id:02x}.0"
            with suppress(library.NVMLError_NotFound, library.NVMLError_InvalidArgument):
                return self._whole(library.nvmlDeviceGetHandleByPciBusId(place), "GPU")
        raise Unavailable(f"NVML does not know the GPU that torch calls {self._device}")

    def _whole(self, gpu: Any, kind: str) -> Any:
        """Refuse a slice of a card, and a card that is cut into slices."""
        cut = kind == "MIG"
        with suppress(self._library.NVMLError):  # most GPUs do not support the question
            cut = cut or self._library.nvmlDeviceGetMigMode(gpu)[0] == 1
        if cut:
            raise Unavailable("the GPU is cut into slices (MIG): NVML has no utilisation, power or energy of one slice")
        return gpu

    def _calls(self) -> Iterable[tuple[tuple[str, ...], Callable[[], Sequence[float]]]]:
        library, gpu = self._library, self._gpu

        def utilization() -> Sequence[float]:
            found = library.nvmlDeviceGetUtilizationRates(gpu)
            return found.gpu, found.memory

        return (
            (("gpu_utilization", "gpu_memory_utilization"), utilization),
            (("gpu_memory_used_bytes",), lambda: [library.nvmlDeviceGetMemoryInfo(gpu).used]),
            (("sm_clock_mhz",), lambda: [library.nvmlDeviceGetClockInfo(gpu, library.NVML_CLOCK_SM)]),
            (("gpu_power_w",), lambda: [library.nvmlDeviceGetPowerUsage(gpu) / 1e3]),
            (("temperature_c",), lambda: [library.nvmlDeviceGetTemperature(gpu, library.NVML_TEMPERATURE_GPU)]),
            (("throttle_reasons",), self._throttles),
        )

    def _throttles(self) -> Sequence[int]:
        """Ask by the new name, and by the old one where the binding or the driver is older (before 535)."""
        library = self._library
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            with suppress(AttributeError, library.NVMLError_FunctionNotFound):
                return [int(getattr(library, name)(self._gpu))]
        raise library.NVMLError(library.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _read_energy(self) -> None:
        found = self._ask(("gpu_energy_j",), lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._gpu))
        if found is not None:
            self._energy_mj.append(found)

    def _energy(self, power_w: float | None, seconds: float) -> dict[str, Any]:
        if len(self._energy_mj) == 2 and self._energy_mj[1] >= self._energy_mj[0]:
            return {"gpu_energy_j": (self._energy_mj[1] - self._energy_mj[0]) / 1e3, "gpu_energy_source": "counter"}
        if power_w is not None:
            return {"gpu_energy_j": power_w * seconds, "gpu_energy_source": "power readings"}
        self._reasons.setdefault("gpu_energy_j", "neither an energy counter nor power can be read")
        self._reasons["gpu_energy_source"] = self._reasons["gpu_energy_j"]
        return {}

    def _ask(self, names: Sequence[str], call: Callable[[], Any]) -> Any:
        """Ask for a metric; None, and a reason, when it is not there."""
        if names[0] in self._absent:
            return None
        try:
            return call()
        except self._library.NVMLError as error:
            if self._is(error, _END):
                raise Unavailable(f"the GPU disappeared: {_line(error)}") from None
            if self._is(error, _NEVER):
                self._absent.add(names[0])
            self._reasons |= dict.fromkeys(names, _line(error))
            return None

    def _is(self, error: Any, names: Iterable[str]) -> bool:
        return error.value in {getattr(self._library, f"NVML_ERROR_{name}", None) for name in names}


class _Gpm:
    """The chip's own counters: two samples, allocated, taken one after the other, compared, and freed.

    `Unavailable`: this GPU has none.
    """

    def __init__(self, library: Any, gpu: Any) -> None:
        self._library, self._gpu = library, gpu
        self._samples: list[Any] = []
        self._error = "only one of two samples was taken"
        self._complete = False
        try:
            if not library.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice:
                raise Unavailable("the GPU has no GPM counters (they came with Hopper)")
            for _ in range(2):
                self._samples.append(library.nvmlGpmSampleAlloc())
            library.nvmlGpmSampleGet(gpu, self._samples[0])
        except (library.NVMLError, AttributeError) as error:
            self.free()
            raise Unavailable(_line(error)) from None

    def finish(self) -> None:
        """Take the second sample."""
        try:
            self._library.nvmlGpmSampleGet(self._gpu, self._samples[1])
            self._complete = True
        except self._library.NVMLError as error:
            self._error = _line(error)

    def percentages(self) -> tuple[dict[str, float], dict[str, str]]:
        """Return field -> percent between the samples, and field -> why there is none."""
        library = self._library
        if not self._complete:
            return {}, dict.fromkeys(_GPM, self._error)
        query = library.c_nvmlGpmMetricsGet_t()
        query.version = library.NVML_GPM_METRICS_GET_VERSION
        query.numMetrics = len(_GPM)
        query.sample1, query.sample2 = self._samples
        for place, constant in enumerate(_GPM.values()):
            query.metrics[place].metricId = getattr(library, constant)
        try:
            library.nvmlGpmMetricsGet(query)
        except library.NVMLError as error:
            return {}, dict.fromkeys(_GPM, _line(error))
        found, missing = {}, {}
        for place, name in enumerate(_GPM):
            metric = query.metrics[place]
            if metric.nvmlReturn != library.NVML_SUCCESS:
                missing[name] = _line(library.NVMLError(metric.nvmlReturn))
            elif metric.value != metric.value:
                missing[name] = "NVML gives no number"
            else:
                found[name] = float(metric.value)
        return found, missing

    def free(self) -> None:
        """Free both samples; once."""
        while self._samples:
            with suppress(self._library.NVMLError):
                self._library.nvmlGpmSampleFree(self._samples.pop())


def _line(error: Exception) -> str:
    if isinstance(error, AttributeError):
        return "the installed nvidia-ml-py is too old for it"
    return f"NVML: {error}"
