"""Compile all native kernels now, once, into the cache that every later process loads them from; and the C++ node."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from meprop_bench.ops import node
from meprop_bench.ops.kernels import native
from meprop_bench.ops.node.build import build

if __name__ == "__main__":
    for module in pkgutil.iter_modules(native.__path__):
        if module.name != "__main__":
            import_module(f"{native.__name__}.{module.name}")
    build()
    if (reason := node.unavailable_reason()) is not None:
        print(f"layers run without the C++ node: {reason}")
