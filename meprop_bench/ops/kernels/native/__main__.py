"""Compile all native kernels now, once, into the cache that every later process loads them from."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from meprop_bench.ops.kernels import native

if __name__ == "__main__":
    for module in pkgutil.iter_modules(native.__path__):
        if module.name != "__main__":
            import_module(f"{native.__name__}.{module.name}")
