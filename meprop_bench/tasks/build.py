"""A user's `build`: found by its name, called with the seed set, and whatever is wrong with it said in one line.

Finding and importing it is the same for any function that a user names, and needs the standard library alone where that
is no model.

    my_model.py:build         a function in a file; my_model.py alone means its `build`
    package.module:build      in a module that can be imported from the working directory
    build@0123456789ab        pickled: one that was typed into a notebook, say (`named`, `pickled`)

The user's code runs in the measuring processes and nowhere else. An import or a call that changes what these depend on
(threads, the default dtype, the working directory, ...) would change what is measured, so it is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pickle
import random
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from meprop_bench import pickling
from meprop_bench.cache import places, writable
from meprop_bench.errors import Absent, UserError, nearest, one_of, out_of_memory

if TYPE_CHECKING:
    from meprop_bench.training import Training

__all__ = [
    "Stream", "call", "check_name", "failed", "find", "guarded", "is_model", "is_pickled", "named", "pickled", "seeded",
    "source_of", "unchanged",
]  # fmt: skip

_PICKLES = "models"
_SHOWN = 240
"""Characters of an error's own text: torch explains itself at length."""

_PACKAGE, _LIBRARY = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")
"""Folders of code that is not the user's."""


def is_model(name: str) -> bool:
    """Whether a name is that of a user's `build`, and not that of a task."""
    return ":" in name or is_pickled(name) or name.endswith(".py")


def is_pickled(name: str) -> bool:
    """Whether a name is that of a function that was pickled, which is there while it is measured and no longer."""
    return "@" in name


def check_name(name: str, what: str = "model") -> None:
    """Check that there is such a file, or module, without running it; `UserError` if not.

    `what` the name is of, for messages.
    """
    where, function = _parts(name)
    if is_pickled(name):
        _pickle(name)
    elif where.endswith(".py"):
        if not Path(where).is_file():
            raise Absent(f"there is no file {where}: name your {what} as path/to/file.py:function")
    elif not all(part.isidentifier() for part in where.split(".")):
        raise UserError(f"{name!r} is not a {what}: name it as path/to/file.py:function or package.module:function")
    if not function.isidentifier():
        raise UserError(f"{function!r} in {name!r} is not the name of a function: write {where}:build, for instance")


def source_of(name: str) -> str | None:
    """Return 12 hexadecimal digits of the file that a model is in, or None: two of an edited file differ."""
    where, _ = _parts(name)
    if is_pickled(name):
        return name.rpartition("@")[2]
    try:
        path = Path(where) if where.endswith(".py") else Path(*where.split(".")).with_suffix(".py")
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return None


@contextmanager
def named(build: str | Path | Callable[[], Any]) -> Iterator[str]:
    """Give the name by which the measuring processes find a model: a name as it is, a function pickled meanwhile.

    `UserError`: it is neither, or cannot be pickled.
    """
    if isinstance(build, str | Path):
        yield str(build)
        return
    kind = type(build).__name__
    if not callable(build) or "torch.nn.modules.module" in (base.__module__ for base in type(build).__mro__):
        raise UserError(
            f"a model is given by a function, or its name, not by something of type {kind}: give build itself, which"
            " returns a meprop_bench.Training, as it is called anew in each measuring process"
        )
    while (held := _hold(_pickle(name := pickled(build)))) is None:
        pass  # another process has just removed it
    try:
        yield name
    finally:
        _release(held)


def pickled(build: Callable[[], Any]) -> str:
    """Pickle a function, with what it refers to, for the measuring processes; return the name that they find it by.

    What it imports is found where it is found here: the pickle says where that is.

    `UserError`: it cannot be pickled, or cloudpickle is not installed.
    """
    module = sys.modules.get(getattr(build, "__module__", None) or "")
    name = pickling.function_name(build)
    data = pickle.dumps([path or os.getcwd() for path in sys.path])
    data += pickling.pickled(build, {name: build}, () if module is None else (module,))
    if (folder := writable(_PICKLES)) is None:
        raise UserError("there is no folder that a pickled model can be written to: set XDG_CACHE_HOME to one")
    found = f"{re.sub('[^A-Za-z0-9_]+', '-', name).strip('-')}@{hashlib.sha256(data).hexdigest()[:12]}"
    path = folder / f"{found}.pickle"
    if not path.exists():
        from meprop_bench.atomic import replacing

        with replacing(path) as file:
            file.write(data)
    return found


def _hold(path: Path) -> BinaryIO | None:
    """Keep other processes from removing a pickle; None where it is removed already."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with suppress(ImportError, OSError):  # elsewhere than on POSIX, or on a file system without locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file
    file.close()
    return None


def _release(file: BinaryIO) -> None:
    """Remove a pickle, unless another process holds it, too."""
    with file, suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(file.name)


def find(name: str, what: str = "model") -> Callable[..., Any]:
    """Import what the name says and return the function; `UserError`: there is none, or its import fails.

    The random numbers of a model's import are seeded, so that data that it draws are the same in all processes.
    """
    check_name(name, what)
    where, function = _parts(name)
    if is_pickled(name):
        with guarded(name, "unpickled"), _pickle(name).open("rb") as file:
            sys.path += [path for path in pickle.load(file) if path not in sys.path]
            build: Callable[..., Any] = pickle.load(file)
            return build
    with seeded(0) if what == "model" else nullcontext(), guarded(name, "imported"):
        module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where, what)
    found = getattr(module, function, None)
    if found is None:
        defined = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = nearest(function, defined)
        returns = ", a function that returns a meprop_bench.Training" if what == "model" else ""
        hint = f"did you mean {close!r}?" if close else f"define it{returns}"
        raise Absent(f"{where} has no function {function!r}: {hint}")
    if not callable(found):
        raise UserError(f"{function!r} in {where} is not a function, but of type {type(found).__name__}")
    build = found
    return build


def call(name: str, build: Callable[[], Any], seed: int) -> Training:
    """Return what `build()` returns, all random numbers seeded; `UserError` if it fails, or is no `Training`.

    A dictionary of a training's fields is one, too: a project need not import this package to be measured by it.
    """
    from meprop_bench.training import Training

    try:
        with seeded(seed), guarded(name, "called"):
            found = build()
            if isinstance(found, Mapping):
                found = _training(found)
    except UserError as error:
        text = str(error)
        raise UserError(text if name in text else f"{name}: {text}") from error
    if not isinstance(found, Training):
        raise UserError(f"{name} returned {type(found).__name__}: it has to return a meprop_bench.Training")
    return found


def _training(record: Mapping[Any, Any]) -> Training:
    from dataclasses import MISSING, fields

    from meprop_bench.training import Training

    known = fields(Training)
    for key in record:
        one_of("key of the dictionary that it returns:", key, [spec.name for spec in known])
    if missing := [spec.name for spec in known if spec.default is MISSING and spec.name not in record]:
        raise UserError(f"the dictionary that it returns has no {', '.join(missing)}: add it")
    return Training(**record)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, `random` and NumPy, and put them back to where they were."""
    states = _States()
    _seed(seed)
    try:
        yield
    finally:
        states.restore()


def _seed(seed: int) -> None:
    """Seed torch, `random` and NumPy."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  what users' code draws from


class _States:
    """The states of the random number generators that users' code draws from."""

    def __init__(self) -> None:
        import numpy as np
        import torch

        self._found = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        import numpy as np
        import torch

        torch.set_rng_state(self._found[0])
        random.setstate(self._found[1])
        np.random.set_state(self._found[2])  # noqa: NPY002
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class Stream:
    """Draws from an iterator with random numbers of its own, so that what else draws some does not change it.

    Generators that a DataLoader, or its sampler, was given go on where they are; they are seeded, too.
    """

    def __init__(self, items: Any, seed: int) -> None:
        import torch

        batches = getattr(items, "batch_sampler", None)
        for holder in (items, getattr(items, "sampler", None), batches, getattr(batches, "sampler", None)):
            if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        with seeded(seed):
            if getattr(items, "persistent_workers", False) and getattr(items, "_iterator", None) is None:
                iter(items)  # starts the workers, for which it draws a number more than it ever does again
                _seed(seed)
            self._items = iter(items)
            self._states = _States()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        others = _States()
        self._states.restore()
        try:
            found = next(self._items)
            self._states = _States()
        finally:
            others.restore()
        return found


def failed(name: str, doing: str, error: BaseException) -> UserError:
    """Return what went wrong in a user's code, with its line: `my_model.py:build failed in its loss (line 12): ...`."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not re.search("(site|dist)-packages", frame.filename)
        and not frame.filename.startswith(("<frozen", f"{_PACKAGE}{os.sep}", f"{_LIBRARY}{os.sep}"))
    ]
    at = f" ({_place(own[-1].filename)}, line {own[-1].lineno})" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        at = f" ({_place(error.filename)}, line {error.lineno})"
    text = _first_line(error)
    return UserError(f"{name} {doing}{at}: {type(error).__name__}{f': {text}' if text else ''}")


def _first_line(value: object) -> str:
    """Return what a value says, if it says something, in one line."""
    text = next((line.strip() for line in str(value).splitlines() if line.strip()), "")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN].rpartition(' ')[0]} ..."


def _place(file: str) -> str:
    """Return how a reader knows a file: those that IPython makes of a notebook's cells have random names."""
    return "its cell" if "ipykernel_" in file or "ipython-input" in file else Path(file).name


def _parts(name: str) -> tuple[str, str]:
    """Return file or module, and function."""
    where, _, function = name.rpartition(":")
    return (where, function) if where else (function, "build")


def _pickle(name: str) -> Path:
    found = next((path for folder in places(_PICKLES) if (path := folder / f"{name}.pickle").is_file()), None)
    if found is None or Path(name).name != name:
        raise UserError(f"the pickled model {name} does not exist any more: measure it from its notebook again")
    return found


def _from_file(path: Path) -> ModuleType:
    file, folder = path.resolve(), str(path.resolve().parent)
    name = path.stem
    if not _is_free(name, file):  # of another file, or of a library
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for modules beside it
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _is_free(name: str, file: Path) -> bool:
    """Whether no other file's module has the name."""
    known = sys.modules.get(name)
    return known is None or Path(getattr(known, "__file__", None) or "").resolve() == file


def _from_path(name: str, what: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise Absent(f"there is no module {error.name!r} to import from here: name your {what} as "
                     "package.module:function, or path/to/file.py:function") from None  # fmt: skip


@contextmanager
def guarded(name: str, done: str) -> Iterator[None]:
    """Make one line of whatever a user's code raises, and refuse what it changes of the process."""
    try:
        with unchanged(name, done):
            yield
    except (UserError, KeyboardInterrupt, MemoryError):
        raise
    except SystemExit as error:
        raise UserError(f"{name} ends the program when it is {done} (exit {_first_line(error.code)}): put what runs "
                        'the program under if __name__ == "__main__"') from None  # fmt: skip
    except BaseException as error:
        if out_of_memory(error):
            raise
        raise failed(name, f"cannot be {done}", error) from error


@contextmanager
def unchanged(name: str, done: str) -> Iterator[None]:
    """Refuse what a user's code changes of the process, and put it back: other code may run in it afterwards."""
    before = [(state, state.read()) for state in _process_states()]
    try:
        yield
    finally:
        changed = [(state, value, now) for state, value in before if (now := state.read()) != value]
        for state, value, _ in changed:
            state.write(value)
    for state, value, now in changed:
        raise UserError(f"{name} changes {state.name} when it is {done} ({value} to {now}), which changes what"
                        " is measured: leave that to the options, or do it under"
                        ' if __name__ == "__main__"')  # fmt: skip


class _ProcessState(NamedTuple):
    """What a user's code must leave as it is."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _process_states() -> list[_ProcessState]:
    """Return all of them; of torch none while it is not there."""
    folder = _ProcessState("the working directory", os.getcwd, os.chdir)
    if (torch := sys.modules.get("torch")) is None or not hasattr(torch, "is_anomaly_enabled"):
        return [folder]
    precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    exact = torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms

    def set_device(device: Any) -> None:
        torch.set_default_device(None if device.type == "cpu" else device)  # which it is where nobody sets one

    return [
        folder,
        _ProcessState("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        _ProcessState("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _ProcessState("torch's default device", torch.get_default_device, set_device),
        _ProcessState("whether torch computes gradients", torch.is_grad_enabled, torch.set_grad_enabled),
        _ProcessState("the precision of torch's matrix products", *precision),
        _ProcessState("whether torch is deterministic", *exact),
        _ProcessState("whether torch looks for anomalies", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    ]
