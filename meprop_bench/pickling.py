"""Functions sent to other processes: pickled by cloudpickle, with what they refer to.

Closures, lambdas and what was typed into a notebook travel by value. So does what is defined in a module that another
process would not find by its name, though this one has imported it: pytest imports test modules and conftest files in
ways of its own. Whatever is installed, or found on `sys.path`, travels by its name.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.optional import said, unavailable_reason

__all__ = ["function_name", "pickled"]


def pickled(what: object, parts: Mapping[str, object], modules: Iterable[ModuleType] = ()) -> bytes:
    """Return a pickle, in which code keeps the name of its file, for tracebacks.

    Args:
        what: to be pickled.
        parts: what it is made of, by the names that a reader knows: "parse", "argument 1 of parse".
        modules: whose functions and classes travel by value though another process would find them.

    Raises:
        UserError: cloudpickle is missing, or something has no pickle; one line names it.

    """
    if (reason := unavailable_reason("cloudpickle")) is not None:
        raise UserError(
            f"functions are sent to other processes by cloudpickle, which {reason}: pip install cloudpickle"
        )
    with _by_value(modules):
        try:
            return _dumps(what)
        except Exception as error:  # noqa: BLE001  a pickle may raise anything
            raise UserError(_culprit(parts, error)) from None


def function_name(function: Callable[..., Any]) -> str:
    """Return a function's name as a reader knows it: "parse", "Parser.parse"."""
    bare = function.func if isinstance(function, partial) else function
    plain = None if inspect.isbuiltin(bare) else getattr(bare, "__qualname__", None)  # torch.mm's has a private class
    name = plain or getattr(bare, "__name__", None) or type(bare).__qualname__
    return str(name).rpartition("<locals>.")[2]


def _dumps(what: object) -> bytes:
    import cloudpickle

    table = cloudpickle.Pickler.dispatch_table

    def reduced(code: CodeType) -> tuple[Any, ...]:
        make, fields, *rest = table[CodeType](code)
        return make, tuple(code.co_filename if value == "<dynamic-code>" else value for value in fields), *rest

    pickler = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": ChainMap({CodeType: reduced}, table)})
    pickler(stream := io.BytesIO()).dump(what)
    return stream.getvalue()


@contextmanager
def _by_value(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Have functions and classes of modules that another process would not find pickled by value."""
    import cloudpickle

    wanted = {module.__name__: module for module in modules if module.__name__ != "__main__"}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module.__name__ == name and not _found_elsewhere(module):
            wanted[name] = module
    already = cloudpickle.list_registry_pickle_by_value()
    ours = [module for name, module in wanted.items() if name not in already and name in sys.modules]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)


_INSTALLED = tuple(f"{prefix}{os.sep}" for prefix in {sys.prefix, sys.base_prefix})


def _found_elsewhere(module: ModuleType) -> bool:
    """Whether another process finds this module by its name: what is installed, and what has no file of Python source
    (built in, compiled, a namespace), is not even looked for. (cloudpickle sends __main__ by value anyway.)
    """
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or file.startswith(_INSTALLED) or "site-packages" in file:
        return True
    return module.__name__ == "__main__" or _place(module.__name__, tuple(sys.path)) == os.path.realpath(file)


@cache
def _place(name: str, path: tuple[str, ...]) -> str | None:
    """Return the file that another process would import, with this `sys.path`; what is imported here is no answer."""
    inside: Sequence[str] | None = None
    found: ModuleSpec | None = None
    for last in range(1, name.count(".") + 2):
        full, found = ".".join(name.split(".")[:last]), None
        with suppress(ImportError, AttributeError, ValueError):
            found = next((spec for finder in _finders() if (spec := finder.find_spec(full, inside))), None)
        if found is None:
            return None
        inside = found.submodule_search_locations or ()
    return os.path.realpath(found.origin) if found and found.origin else None


def _finders() -> list[Any]:
    """Return what finds modules here and in any other process: not pytest's own, which is in front of them."""
    return [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_pytest")]


def _culprit(parts: Mapping[str, object], error: Exception) -> str:
    """Say what has no pickle."""
    for name, value in parts.items():
        for what, part in (*_within(name, value), (name, value)):
            try:
                _dumps(part)
            except Exception as own:  # noqa: BLE001  whatever it is, it names the culprit
                kind = "" if inspect.isroutine(part) else f", of type {type(part).__name__},"
                return f"{what}{kind} cannot be sent to another process ({said(own)}): make it in the function"
    return f"{', '.join(parts) or 'it'} cannot be sent to another process ({said(error)})"


def _within(name: str, function: object) -> Iterator[tuple[str, object]]:
    """Yield what a function refers to."""
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        for variable, value in {**variables.nonlocals, **variables.globals}.items():
            yield f"the variable {variable!r} of {name}", value
    elif inspect.ismethod(function):
        yield f"the object of {name}", function.__self__
