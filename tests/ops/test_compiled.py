"""Half of an installation: layers run on torch's operators, and say why, whatever is wrong with what compiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import meprop_bench

ROOT = Path(meprop_bench.__file__).parents[1]

LAYERS = """
import warnings, torch
from meprop_bench.nn import MePropConv2d, MePropGRU, MePropLinear, MePropLSTM
from meprop_bench.ops import conv, kernels, node
from meprop_bench.ops.kernels import KERNELS, compiled

def gradients(make, x, **keywords):
    torch.manual_seed(0)
    layer = make(**keywords)
    y = layer(x)
    (y[0] if isinstance(y, tuple) else y).pow(2).sum().backward()
    return [p.grad.to_dense() for p in layer.parameters()]

def same(make, x):
    for one, other in zip(gradients(make, x), gradients(make, x, kernel="masked"), strict=True):
        torch.testing.assert_close(one, other)

for selection in ("example", "unified", "random"):
    for sparse in (False, True):
        torch.manual_seed(0)
        MePropLinear(20, 30, k=3, selection=selection, sparse=sparse)(torch.randn(6, 20)).sum().backward()
same(lambda **how: MePropLinear(20, 30, k=3, **how), torch.randn(6, 20))
same(lambda **how: MePropLinear(20, 30, k=3, selection="unified", **how), torch.randn(6, 20))
same(lambda **how: MePropConv2d(3, 4, 3, k=0.1, **how), torch.randn(2, 3, 8, 8))
same(lambda **how: MePropLSTM(5, 7, k=2, **how), torch.randn(4, 2, 5))
same(lambda **how: MePropGRU(5, 7, k=2, **how), torch.randn(4, 2, 5))
for make in (lambda: MePropLinear(20, 30, k=3, kernel="native"), lambda: conv.get("native")):
    try:
        make()
        raise SystemExit("kernel 'native' was not refused")
    except ValueError as error:
        assert str(error).startswith("kernel 'native' cannot be used: Numba"), error
layer = MePropLSTM(5, 7, k=2, kernel="native")
try:
    layer(torch.randn(4, 2, 5))
    raise SystemExit("kernel 'native' was not refused")
except ValueError as error:
    assert "cannot be used: Numba" in str(error), error
assert "Numba" in node.unavailable_reason(), node.unavailable_reason()
for name in KERNELS:
    try:
        KERNELS[name]
    except ImportError:
        assert name == "native"
print(compiled.unavailable_reason())
"""


def fresh(program, path=(), **variables):
    """Run a program in a process of its own; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def package(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    return folder


BROKEN = [
    (
        "numba",
        "raise ImportError('needs NumPy 2.2.\\nGot 9')",
        "Numba cannot be imported (ImportError: needs NumPy 2.2.)",
    ),
    ("numba", "raise RuntimeError('ABI version 9')", "Numba cannot be imported (RuntimeError: ABI version 9)"),
    ("numba", "raise SystemError", "Numba cannot be imported (SystemError)"),
    ("numba", "import nowhere", "Numba cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
    ("numba", "", "Numba cannot be used"),
    ("llvmlite", "raise OSError('libllvmlite.so: cannot open')", "Numba cannot be imported ("),
]


@pytest.mark.parametrize(("name", "text", "reason"), BROKEN)
def test_a_numba_that_cannot_be_imported(tmp_path, name, text, reason):
    if name == "llvmlite":
        pytest.importorskip("numba")
    assert fresh(LAYERS, [package(tmp_path, name, text)]).startswith(reason)


def test_a_numba_that_is_not_there():
    assert fresh("import sys; sys.modules['numba'] = None" + LAYERS) == "Numba is not installed (extra `cpu`)"


def test_a_numba_that_compiles_nothing():
    pytest.importorskip("numba")
    reason = "Numba is told to compile nothing: unset NUMBA_DISABLE_JIT"
    assert fresh(LAYERS, NUMBA_DISABLE_JIT="1") == reason


def test_a_numba_that_cannot_compile():
    pytest.importorskip("numba")
    broken = """
import numba.core.compiler
def fail(*arguments, **keywords):
    raise numba.core.errors.LoweringError("no such instruction\\nmore")
numba.core.compiler.compile_extra = fail
numba.core.caching.IndexDataCacheFile.load = lambda *_: None
"""
    assert "Numba cannot compile it: LoweringError: " in fresh(broken + LAYERS)


TINY = """
import sys, types
import meprop_bench.ops.kernels
package = types.ModuleType("meprop_bench.ops.kernels.native")  # without its kernels, which take long to compile
package.__path__ = [meprop_bench.ops.kernels.__path__[0] + "/native"]
package.__file__ = package.__path__[0] + "/__init__.py"
sys.modules[package.__name__] = package
import numba
from meprop_bench import cache
from meprop_bench.ops.kernels.native.compiler import function
def double(x):
    return 2 * x
assert function(numba.int64(numba.int64))(double)(21) == 42
folder = cache.writable()
print(*sorted(str(file) for file in folder.rglob("*.nb?") if "double" in file.name) if folder else ["nothing"])
"""


def tiny(tmp_path, before="", program=TINY, **variables):
    """Compile a function in a process of its own; return the files in the cache."""
    file = tmp_path / "tiny.py"
    file.write_text(program)
    return fresh(f"{before}\nimport runpy\nrunpy.run_path({str(file)!r}, run_name='tiny')", **variables).split()


def test_damaged_files_in_the_cache_are_compiled_anew(tmp_path):
    pytest.importorskip("numba")
    made = [Path(file) for file in tiny(tmp_path, XDG_CACHE_HOME=str(tmp_path))]
    assert [file.suffix for file in made] == [".nbc", ".nbi"]
    for file, damage in zip(made, (lambda content: content[: len(content) // 2], lambda content: b""), strict=True):
        file.write_bytes(damage(file.read_bytes()))
        assert tiny(tmp_path, XDG_CACHE_HOME=str(tmp_path)) == []  # nobody stumbles over it twice
        assert tiny(tmp_path, XDG_CACHE_HOME=str(tmp_path)) == [str(file) for file in made]


def test_what_else_was_imported_compiles_nothing_anew(tmp_path):
    """All kernels are compiled at installation, by one process; others import some of them, in their own order."""
    pytest.importorskip("numba")
    made = tiny(tmp_path, XDG_CACHE_HOME=str(tmp_path))
    more = TINY.replace("import numba\n", "import numba; import meprop_bench.ops.kernels.native.topk\n")
    assert tiny(tmp_path, program=more, XDG_CACHE_HOME=str(tmp_path)) == made


NOBODY = """
import pwd
def unknown(*_):
    raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = pwd.getpwnam = unknown
"""


def test_a_user_without_a_home_keeps_its_cache_among_temporary_files(tmp_path):
    pytest.importorskip("numba")
    nobody = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"))
    found = tiny(tmp_path, NOBODY, TMPDIR=str(tmp_path), **nobody)
    assert len(found) == 2
    assert all(name.startswith(f"{tmp_path}/meprop-bench-") for name in found)


def test_without_any_folder_that_can_be_written_it_compiles_each_time(tmp_path):
    pytest.importorskip("numba")
    (tmp_path / "file").touch()
    nowhere = "import tempfile\ntempfile.gettempdir = lambda: (_ for _ in ()).throw(FileNotFoundError('none'))"
    assert tiny(tmp_path, nowhere, XDG_CACHE_HOME=str(tmp_path / "file")) == ["nothing"]


def test_compiling_without_numba_is_one_line(tmp_path):
    broken = package(tmp_path, "numba", "raise ImportError('needs NumPy 2.2')")
    environment = {**os.environ, "PYTHONPATH": f"{broken}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "meprop_bench.ops.kernels.native"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Numba cannot be imported (ImportError: needs NumPy 2.2)" in done.stderr
