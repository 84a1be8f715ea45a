"""meprop-bench: does sparsified back propagation pay, on this machine, for this model, and does it keep the accuracy?

    import meprop_bench as mb

    def build() -> mb.Training: ...

    found = mb.compare(build, k=[0.02, 0.05, 0.1], method=["meprop", "unified"])
    print(found.best())

The public names are loaded when they are first used, so that importing this, and whatever only reads results, never
waits for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "Training", "UserError", "__version__", "compare", "convert", "load", "profile", "revert", "tune",
]  # fmt: skip

__version__ = "0.1.0"

_PLACES = {
    "Training": "training",
    "UserError": "errors",
    "compare": "api.measure",
    "convert": "nn",
    "load": "api.results",
    "profile": "api.measure",
    "revert": "nn",
    "tune": "api.tuned",
}
"""Public name -> the module that it is in."""


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
