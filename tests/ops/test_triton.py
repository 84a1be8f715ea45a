"""The Triton kernels against the oracle: interpreted on the CPU, or on a GPU where there is one.

On a machine with a GPU they run on it; `TRITON_INTERPRET=1 pytest tests/ops/test_triton.py` interprets them there, too.
The interpreter takes about half a millisecond for each call within a kernel, so shapes are small.
"""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from meprop_bench.ops import SELECTIONS, kernels, linear, reference, select
from meprop_bench.ops.kernels import KERNELS, Request
from meprop_bench.ops.kernels.triton import launch
from tests.ops.conftest import arrange, device_of_triton, has_boundary

pytest.importorskip("triton", reason="needs Triton (extra `gpu`)")

from meprop_bench.ops.kernels.triton import atomic, example, largest, unified

DEVICE = device_of_triton()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIFIED, EACH = ("unified", "random-unified"), ("example", "random")
CAN = {"triton": SELECTIONS, "triton_gather": UNIFIED, "triton_atomic": EACH, "triton_kept": UNIFIED}
NAMES = tuple(CAN)
on_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU, without TRITON_INTERPRET")


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Products in full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def request_of(k, selection, rows=False, need=(True, True, True)):
    return Request(k, selection, rows, *need)


def one_answer(dy, k, selection):
    """Whether there is one right selection: sums are rounded, single numbers are compared as they are."""
    wide = dy.double().abs()
    return has_boundary(wide.sum(0), k) if selection == "unified" else has_boundary(wide, k, rounding=0.0)


def draw(batch, n, m, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return tuple(torch.randn(*shape).to(DEVICE, dtype) for shape in ((batch, n), (batch, m), (n, m)))


def check(grads, dy, x, w, idx, need=(True, True, True)):
    """Against the oracle; sums have at most some hundred terms, are float32 and rounded once."""
    dy, x, w, idx = (t.cpu() for t in (dy, x, w, idx))
    expected = reference.backward(dy, x, w, idx)
    bounds = reference.backward(dy.abs(), x.abs(), w.abs(), idx)
    slack = 128 if dy.dtype == torch.float32 else 8
    for grad, e, bound, needed in zip(grads, expected, bounds, need, strict=True):
        assert (grad is not None) == needed
        if grad is not None:
            assert grad.dtype == dy.dtype
            error = (grad.to_dense().cpu().double() - e).abs()
            assert (error <= slack * torch.finfo(dy.dtype).eps * bound + 1e-12).all()


def check_rows(grad):
    assert grad.is_coalesced()
    assert (grad.sparse_dim(), grad.dense_dim()) == (1, 1)
    again = torch.sparse_coo_tensor(grad.indices(), grad.values(), grad.shape, check_invariants=True).coalesce()
    assert torch.equal(again.indices(), grad.indices())  # sorted and unique, as promised


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_kernel_equals_the_oracle(name, data):
    pick = data.draw
    dtype = pick(st.sampled_from(DTYPES))
    selection = pick(st.sampled_from(CAN[name]))
    batch, n, m = pick(st.integers(1, 8)), pick(st.integers(2, 12)), pick(st.integers(1, 9))
    k = pick(st.one_of(st.just(1), st.just(n - 1), st.integers(1, n - 1)))
    rows, seed = pick(st.booleans()), pick(st.integers(0, 2**32 - 1))
    need = pick(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    layouts = pick(st.tuples(*[st.sampled_from(("plain", "transposed", "strided", "expanded"))] * 3))
    dy, x, w = (arrange(t, layout) for t, layout in zip(draw(batch, n, m, dtype, seed), layouts, strict=True))
    b = torch.zeros(n, dtype=dtype, device=DEVICE)
    chance = selection.startswith("random")
    assume(chance or one_answer(dy, k, selection))
    torch.manual_seed(seed)
    idx = select(dy, k, selection) if chance else reference.select(dy, k, selection)

    tensors = [t.detach().requires_grad_(needed) for t, needed in zip((x, w, b), need, strict=True)]
    y = linear(*tensors, k=k, selection=selection, sparse=rows, kernel=name)
    torch.manual_seed(seed)
    found = iter(torch.autograd.grad(y, [t for t in tensors if t.requires_grad], dy))
    grads = [next(found) if needed else None for needed in need]
    if rows and need[1]:
        check_rows(grads[1])
    check(grads, dy, x, w, idx, need)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "rows"), [(7, True), (40, False)])  # fewer columns than are gathered first, and more
def test_a_unified_pass_of_several_tiles(k, rows, dtype):
    dy, x, w = draw(70, 90, 140, dtype)
    grads = KERNELS["triton"].backward(dy, x, w, request_of(k, "unified", rows))
    check(grads, dy, x, w, reference.select(dy, k, "unified"))


@pytest.mark.parametrize("rows", [False, True])
def test_a_long_batch_is_cut_into_chunks(rows, monkeypatch):
    monkeypatch.setattr(unified, "_CHUNK", 50)
    monkeypatch.setattr(largest, "_EXAMPLES", 64)
    dy, x, w = draw(201, 11, 9)
    assert largest.column_sums(dy, sums=True)[0].shape == (3, 11)
    grads = KERNELS["triton"].backward(dy, x, w, request_of(3, "unified", rows))
    check(grads, dy, x, w, reference.select(dy, 3, "unified"))
    assert KERNELS["triton"].backward(dy, x, w, request_of(3, "unified", rows, (True, True, False)))[2] is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_pairs_are_sorted(dtype, monkeypatch):
    monkeypatch.setattr(example, "_FEW", 0)
    dy, x, w = draw(6, 11, 13, dtype)
    grads = KERNELS["triton"].backward(dy, x, w, request_of(4, "example"))
    check(grads, dy, x, w, reference.select(dy, 4, "example"))


def test_an_example_pass_of_several_panels(monkeypatch):
    monkeypatch.setattr(example, "_PANEL", 64)  # 16 columns of float32
    dy, x, w = draw(4, 20, 20)
    for rows in (False, True):
        grads = KERNELS["triton"].backward(dy, x, w, request_of(18, "example", rows))  # more than are read at once
        check(grads, dy, x, w, reference.select(dy, 18, "example"))


@pytest.mark.parametrize(
    ("dtype", "k", "rows"), [(torch.float32, 6, True), (torch.bfloat16, 11, False), (torch.float16, 1, True)]
)
def test_atomic_additions_of_whole_numbers_are_exact(dtype, k, rows, monkeypatch):
    """In any order: many ties, several panels, more neurons than at once."""
    monkeypatch.setattr(atomic, "_COLUMNS", 16)
    torch.manual_seed(0)
    dy, x, w = (torch.randint(-3, 4, shape).to(DEVICE, dtype) for shape in ((4, 12), (4, 20), (12, 20)))
    found = KERNELS["triton_atomic"].backward(dy, x, w, request_of(k, "example", rows))
    idx = reference.select(dy.cpu(), k, "example")
    if rows:
        check_rows(found[1])
        assert torch.equal(found[1].indices()[0].cpu(), idx.unique())
    for grad, expected in zip(found, reference.backward(dy.cpu(), x.cpu(), w.cpu(), idx), strict=True):
        assert grad.dtype == dtype
        assert torch.equal(grad.to_dense().cpu().double(), expected)


def test_sums_by_atomic_additions_are_float32_and_rounded_once():
    t = torch.zeros(5, 1, dtype=torch.int16, device=DEVICE)
    v, x = (torch.ones(5, 1, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    v[0] = 256  # to which bfloat16 cannot add 1
    assert atomic.weight_gradient(t, v, x, 2, False).tolist() == [[260], [0]]


WILD = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45]))


@pytest.mark.parametrize("programs", [1, 132])  # several rows for each program, and one
@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_the_k_largest_of_each_row_with_ties_to_the_lower_index(programs, data):
    batch, n = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 20))
    k = data.draw(st.integers(1, n - 1))
    dy = torch.tensor(data.draw(st.lists(st.lists(WILD, min_size=n, max_size=n), min_size=batch, max_size=batch)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(largest, "_PROGRAMS", programs)
        t, v = largest.rows(dy.to(DEVICE), k, "example")
    assert torch.equal(t.cpu().long(), reference.select(dy, k, "example").sort(dim=1).values)
    torch.testing.assert_close(v.cpu(), dy.gather(1, t.cpu().long()), rtol=0, atol=0, equal_nan=True)


@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_the_k_largest_columns_with_ties_to_the_lower_index(data):
    n = data.draw(st.integers(2, 40))
    k = data.draw(st.integers(1, n - 1))
    sums = torch.tensor(data.draw(st.lists(WILD, min_size=n, max_size=n))).abs()
    found = largest.columns(sums[None].to(DEVICE), None, None, k).cpu()
    assert torch.equal(found, reference.select(sums[None], k, "unified").sort().values)


def test_a_long_row_is_placed_in_parts():
    torch.manual_seed(0)
    dy = torch.randint(-3, 4, (2, 2500)).float()
    for k in (1, 800, 2499):
        t, _ = largest.rows(dy.to(DEVICE), k, "example")
        assert torch.equal(t.cpu().long(), reference.select(dy, k, "example").sort(dim=1).values)


@pytest.mark.parametrize("selection", ["example", "unified"])
def test_more_entries_than_a_program_holds(selection, monkeypatch):
    monkeypatch.setattr(largest, "LIMIT", 8)
    monkeypatch.setattr(largest, "_EXAMPLES", 4)
    for n in (8, 9):
        dy, x, w = draw(8, n, 5)
        grads = KERNELS["triton"].backward(dy, x, w, request_of(2, selection, rows=True))
        check_rows(grads[1])
        check(grads, dy, x, w, reference.select(dy, 2, selection))


def test_neurons_come_in_the_narrowest_type(monkeypatch):
    assert largest.rows(torch.randn(1, 9, device=DEVICE), 2, "random")[0].dtype == torch.int16
    wide = torch.randn(1, 1 << 15, device=DEVICE)
    t, v = largest.rows(wide, 3, "example")
    assert t.dtype == torch.int32
    assert torch.equal(wide.gather(1, t.long()), v)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by the interpreter
@pytest.mark.parametrize("wild", [math.nan, -math.inf])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_non_finite_gradients_come_through(selection, wild):
    for position in (0, 8) if selection == "unified" else (8,):
        dy, x, w = draw(3, 9, 3)
        x, w = x.abs() + 1, w.abs() + 1
        dy[1, position] = wild
        for name in [name for name in ("triton", "triton_atomic") if selection in CAN[name]]:
            dx, dw, db = KERNELS[name].backward(dy, x, w, request_of(2, selection))
            for grad in (dx[1], dw[position], db[position]):
                assert not grad.isfinite().any()
            if selection in EACH:
                assert dx[[0, 2]].isfinite().all()
            assert dw[torch.arange(9) != position].isfinite().all()


@pytest.mark.parametrize("name", ["triton", "triton_gather"])
def test_statistics_of_half_precision_do_not_overflow(name):
    dy = torch.full((4, 6), 40000.0, dtype=torch.float16, device=DEVICE)
    dy[0, 3] = 51200.0
    dy[1::2] *= -1
    x, w = torch.zeros(4, 5, dtype=torch.float16, device=DEVICE), torch.eye(6, 5, dtype=torch.float16, device=DEVICE)
    dx, _, db = KERNELS[name].backward(dy, x, w, request_of(1, "unified"))
    assert dx[0].tolist() == [0, 0, 0, 51200, 0]
    assert db.tolist() == [0, 0, 0, 11200, 0, 0]


@pytest.mark.parametrize(("selection", "few"), [("unified", 0), ("example", 0), ("example", 2048)])
def test_every_number_is_written_also_where_deterministic_algorithms_are_asked_for(selection, few, monkeypatch):
    monkeypatch.setattr(example, "_FEW", few)
    monkeypatch.setattr(unified, "_CHUNK", 5)  # two chunks, of which one is the shorter
    dy, x, w = draw(11, 12, 7)
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    try:
        for rows in (False, True):
            grads = KERNELS["triton"].backward(dy, x, w, request_of(3, selection, rows))
            check(grads, dy, x, w, reference.select(dy, 3, selection))
    finally:
        torch.use_deterministic_algorithms(False)


class NothingIsWaitedFor(TorchDispatchMode):
    """Fail on operators that bring a value or a size from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select", "is_nonzero", "equal")
        assert not any(part in func.name() for part in waits), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("selection", "rows", "few"),
    [
        ("unified", False, 0),
        ("unified", True, 0),
        ("random-unified", True, 0),
        ("example", False, 0),
        ("example", False, 2048),
        ("random", False, 0),
    ],
)
def test_the_host_waits_for_nothing(selection, rows, few, monkeypatch):
    monkeypatch.setattr(example, "_FEW", few)
    # On the CPU, where nobody waits, rows without a gradient are left out.
    for module in ("triton", "operators"):
        as_on_a_gpu = lambda rows, values, dy, n: kernels.hybrid_rows(rows, values, n)  # noqa: E731
        monkeypatch.setattr(f"meprop_bench.ops.kernels.{module}.unified_rows", as_on_a_gpu)
    dy, x, w = draw(4, 40, 6)
    for name in [name for name in NAMES if selection in CAN[name]]:
        with NothingIsWaitedFor():
            KERNELS[name].backward(dy, x, w, request_of(20, selection, rows))


def test_the_number_of_sparse_rows_is_waited_for():
    dy, x, w = draw(4, 9, 6)
    for name, waits in (("triton", "unique_consecutive"), ("triton_atomic", "nonzero")):
        with NothingIsWaitedFor(), pytest.raises(AssertionError, match=waits):
            KERNELS[name].backward(dy, x, w, request_of(2, "example", rows=True))


def test_products_are_rounded_as_torchs_are():
    assert [launch.precision(dtype) for dtype in DTYPES] == ["ieee"] * 3
    torch.set_float32_matmul_precision("high")
    assert [launch.precision(dtype) for dtype in DTYPES] == ["tf32", "ieee", "ieee"]
    torch.set_float32_matmul_precision("highest")


def reason(dtype=torch.float32, device=DEVICE, selection="unified", name="triton", rows=False):
    shapes = ((4, 5), (4, 3), (5, 3))
    dy, x, w = (torch.empty(shape, dtype=dtype, device=device) for shape in shapes)
    return KERNELS[name].unsupported(dy, x, w, request_of(2, selection, rows))


def test_what_it_cannot_do_it_says(monkeypatch):
    assert reason() is None
    assert "not float64" in reason(torch.float64)
    assert reason(device="meta") == "it runs on NVIDIA's GPUs, not on meta"
    assert "needs a unified selection" in reason(selection="example", name="triton_gather")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert reason() == "Triton is not installed (extra `gpu`)"
    with pytest.raises(ValueError, match="kernel 'triton' does not support this case: Triton is not installed"):
        linear(torch.ones(4, 3, requires_grad=True), torch.ones(5, 3), k=2, kernel="triton")


def test_atomic_additions_need_something_to_add():
    for selection in UNIFIED:
        assert reason(selection=selection, name="triton_atomic") == (
            f"it needs a selection for each example, not {selection!r}, where one program writes a row"
        )
    assert "not float64" in reason(torch.float64, selection="example", name="triton_atomic")
    assert [reason(selection=selection, name="triton_atomic") for selection in EACH] == [None, None]


@pytest.fixture
def deterministic():
    """Ask for deterministic algorithms, or with `warn_only` for a warning."""
    yield lambda **how: torch.use_deterministic_algorithms(True, **how)
    torch.use_deterministic_algorithms(False)


def test_atomic_additions_are_refused_where_deterministic_algorithms_are_asked_for(deterministic):
    x, w = torch.ones(1, 3, device=DEVICE), torch.ones(5, 3, device=DEVICE, requires_grad=True)
    before = linear(x, w, k=2, kernel="triton_atomic")
    deterministic()
    with pytest.raises(ValueError, match="kernel 'triton_atomic' does not support this case: it adds the weight grad"):
        linear(x, w, k=2, kernel="triton_atomic")
    with pytest.raises(RuntimeError, match="in no fixed order, and deterministic algorithms are asked for: take 'trit"):
        before.sum().backward()  # asked for since
    linear(x, w, k=2, kernel="triton").sum().backward()
    assert w.grad.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 3


def test_atomic_additions_are_warned_of_where_a_warning_is_asked_for(deterministic):
    deterministic(warn_only=True)
    x, w = torch.ones(1, 3, device=DEVICE), torch.ones(5, 3, device=DEVICE, requires_grad=True)
    y = linear(x, w, k=2, kernel="triton_atomic")
    with pytest.warns(UserWarning, match="kernel 'triton_atomic': it adds the weight gradient up in no fixed order"):
        y.sum().backward()
    assert w.grad.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 3


def test_without_a_weight_gradient_nothing_is_added_atomically(deterministic):
    deterministic()
    x, w = torch.ones(1, 3, device=DEVICE, requires_grad=True), torch.ones(5, 3, device=DEVICE)
    linear(x, w, k=2, kernel="triton_atomic").sum().backward()
    assert x.grad.tolist() == [[2.0] * 3]


def test_on_the_cpu_it_is_interpreted_or_nothing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert reason(device="cpu") == "it runs on a CUDA device, or on the CPU with TRITON_INTERPRET=1"


def test_older_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(launch, "_capability", lambda device: (7, 5))
    assert launch.unavailable_reason(torch.device("cuda:0")) == (
        "it needs a GPU of compute capability 8.0 or above, not 7.5"
    )


WITHOUT = """
import sys
sys.modules["triton"] = None  # whoever imports it gets an ImportError
import torch
from meprop_bench.ops.kernels import KERNELS, Request
w = torch.ones(5, 3)
for name in ("triton", "triton_gather", "triton_atomic", "triton_kept"):
    reason = KERNELS[name].unsupported(torch.ones(4, 5), torch.ones(4, 3), w, Request(2, "unified", False, 1, 1, 1))
    assert reason == "Triton is not installed (extra `gpu`)", reason
assert not [name for name in sys.modules if name.startswith("triton.")]
print("works without")
from meprop_bench.ops.kernels.triton import launch
del sys.modules["triton"]
"""

COMPILED = """
# Every launch of the host code, compiled for an H200 instead of run: the interpreter knows no types.
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from meprop_bench.ops.kernels import Request
from meprop_bench.ops.kernels import triton as kernels
from meprop_bench.ops.kernels.kept import Target
from meprop_bench.ops.kernels.triton import atomic, example, largest, unified, zeros

NAMES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16",
    torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}
seen = {}

def compile(self, *args, grid, warmup, num_warps=4, num_stages=3, **kwargs):
    values = dict(zip(self.arg_names, args)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(self.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        signature[parameter.name] = NAMES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    key = self.__name__, str(signature), str(constants)
    if key not in seen:
        source = ASTSource(self, signature=signature, constexprs=constants, attrs=attributes)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        seen[key] = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert seen[key].asm["cubin"]
        assert seen[key].metadata.shared <= 227 * 1024, key

JITFunction.run = compile
torch.empty = torch.zeros  # nothing is computed: what kernels would write has to be a valid index
unified._CHUNK = 64
CASES = {
    (torch.float32, "highest"): (("unified", 8, False, 0), ("example", 4, False, 2048), ("example", 4, False, 0)),
    (torch.float32, "high"): (("unified", 32, True, 0),),
    (torch.bfloat16, "highest"): (("unified", 32, False, 0), ("example", 4, False, 0)),
}
for (dtype, precision), cases in CASES.items():
    torch.set_float32_matmul_precision(precision)
    dy, x, w = torch.ones(128, 512, dtype=dtype), torch.ones(128, 256, dtype=dtype), torch.ones(512, 256, dtype=dtype)
    for selection, k, rows, few in cases:
        example._FEW = few
        kernels.KERNEL.backward(dy, x, w, Request(k, selection, rows, True, True, True))
    only_dw = Request(4, "example", dtype == torch.float32, False, True, False)
    kernels.each_example(dy, x, w, only_dw, atomic.weight_gradient)
    zeros.blanked(Target(w, torch.zeros(513, dtype=torch.uint8), 1), torch.arange(4), x)
largest.rows(torch.ones(2, 8192), 8, "example")
print(*sorted({name for name, *_ in seen}))
"""


def test_without_triton_the_package_works_and_with_it_every_launch_compiles_for_an_h200(tmp_path):
    """Both in one process, which does not interpret: importing torch takes as long as compiling three kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    program = WITHOUT + COMPILED
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    names = "_add_chunks _add_up _bags _blank _blank_rest _column_sums _products _search _select_columns _select_rows"
    assert found.stdout.splitlines() == ["works without", names]


CASES = [("unified", False), ("unified", True), ("random-unified", False), ("example", False), ("random", False)]


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("selection", "rows"), CASES)
def test_a_graph_holds_it(name, selection, rows):
    if selection not in CAN[name]:
        pytest.skip("another selection than it is for")
    dy, x, w = draw(64, 300, 200)
    ask = request_of(20, selection, rows)
    KERNELS[name].backward(dy, x, w, ask)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = KERNELS[name].backward(dy, x, w, ask)
    for seed in (1, 2):
        for tensor, fresh in zip((dy, x, w), draw(64, 300, 200, seed=seed), strict=True):
            tensor.copy_(fresh)
        graph.replay()
        assert torch.allclose(grads[2], dy.sum(0), atol=1e-4)
        if "random" not in selection:
            expected = KERNELS["masked"].backward(dy.double(), x.double(), w.double(), ask)
            for grad, e in zip(grads, expected, strict=True):
                assert torch.allclose(grad.to_dense().double(), e.to_dense(), atol=1e-4)


@pytest.mark.cuda
@on_gpu
def test_sparse_rows_of_each_example_are_refused_in_a_graph():
    dy, x, w = draw(64, 300, 200)
    ask = request_of(20, "example", rows=True)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        for name in ("triton", "triton_atomic"):
            assert "cannot wait" in KERNELS[name].unsupported(dy, x, w, ask)
        dy.zero_()


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("rows", [False, True])
def test_atomic_additions_of_many_examples_at_once_lose_none(rows):
    dy, x, w = draw(1024, 64, 1500)  # each row gets some 500 additions
    ask = request_of(30, "example", rows)
    found, expected = (KERNELS[name].backward(dy, x, w, ask) for name in ("triton_atomic", "triton"))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1].to_dense(), expected[1].to_dense(), atol=1e-3, rtol=1e-4)


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize(("selection", "rows"), CASES)
def test_the_driver_is_not_waited_for(selection, rows):
    dy, x, w = draw(512, 1000, 600)
    ask = request_of(30, selection, rows)
    KERNELS["triton"].backward(dy, x, w, ask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        KERNELS["triton"].backward(dy, x, w, ask)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("selection", "rows"), [*CASES[:2], ("example", False), ("example", True)])
def test_a_large_case_twice_gives_the_same_bits(selection, rows, dtype):
    dy, x, w = draw(1024, 2048, 1500, dtype)
    ask = request_of(30, selection, rows)
    one, other = (KERNELS["triton"].backward(dy, x, w, ask) for _ in range(2))
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(one, other, strict=True))
    idx = select(dy, 30, selection)
    if one_answer(dy, 30, selection):
        kept = torch.zeros_like(dy).scatter(1, each := idx.expand(1024, -1), dy.gather(1, each)).double()
        for grad, e in zip(one, (kept @ w.double(), kept.T @ x.double(), dy.double().sum(0)), strict=True):
            error = (grad.to_dense().double() - e).norm() / e.norm()
            assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.cuda
@on_gpu
def test_tf32_is_coarser_and_no_more_than_that():
    dy, x, w = draw(256, 512, 512)
    errors = []
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        dx = KERNELS["triton"].backward(dy, x, w, request_of(64, "unified"))[0]
        expected = KERNELS["masked"].backward(dy.double(), x.double(), w.double(), request_of(64, "unified"))[0]
        errors.append(float((dx.double() - expected).norm() / expected.norm()))
    torch.set_float32_matmul_precision("highest")
    assert errors[0] < 1e-6 < errors[1] < 2e-3


def test_auto_leaves_it_to_be_measured():
    dy, x, w = draw(4, 9, 6)
    for selection in SELECTIONS:
        chosen = kernels.get("auto").choose(dy.half(), x.half(), w.half(), request_of(2, selection)).name
        assert chosen == ("gather" if "unified" in selection else "embedding_bag")
