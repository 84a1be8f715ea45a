// The autograd node of a linear layer whose backward pass is the kernel `native`: see `meprop_bench/ops/node/__init__.py`.
//
//     forward     y = x Wᵀ + b, by torch's own operator
//     backward    the machine code that the Python registration calls, at its address, on fresh tensors made here
//
// Nothing is decided here. What a case needs (is it the native kernel's? how many threads, how much scratch?) is asked of
// Python once for each shape. Where anything is out of the ordinary, forward returns None and backward calls Python.

#pragma once

#include <ATen/SparseTensorImpl.h>
#include <ATen/ops/linear.h>

#include "kept.h"
#include "node.h"

namespace linear {

using namespace node;

// What is called: the addresses of torch's OpenMP (0: one thread), of the bodies
// of parallel regions (of `unified` the first three, of `example` the others), and of the three entry points, whose
// arguments are described there.
struct Native {
  Word openmp, sum, gather, multiply, select, sort, sums;
  Compiled<23> backward;
  Compiled<11> pairs;
  Compiled<17> products;
  Word kept_from;  // bytes of a dense weight gradient from which its memory is kept; 0: never
};

// A case, as far as its plan depends on it: x (b, m), W (n, m). k is an int, or the bits of a ratio; rows says that dW
// comes as sparse rows, automatic that the kernel is "auto".
struct Case {
  Word b, n, m, k, threads;
  bool ratio, unified, rows, automatic;

  bool operator==(const Case&) const = default;
};

struct Hash {
  size_t operator()(const Case& c) const {
    size_t hash = c.ratio + 2 * c.unified + 4 * c.rows + 8 * c.automatic;
    for (Word word : {c.b, c.n, c.m, c.k, c.threads}) mix(hash, word);
    return hash;
  }
};

// What to do with a case: whether this node takes it, k resolved, shares of the selection and of the products, bytes to
// work in, and whether results are written past the caches.
struct Plan {
  bool ours = false;
  Word k = 0, few = 0, shares = 0, bytes = 0, streaming = 0;
};

inline Layer<Native, Case, Plan, Hash> layer;
inline Native& native = layer.native;

// `hybrid_rows` without the operators' checks and dispatch: the first `count` rows.
inline Tensor hybrid_rows(Tensor hits, Tensor values, Word count, Word n) {
  if (values.size(0) != count) {
    hits = hits.narrow(1, 0, count);
    values = values.narrow(0, 0, count);
  }
  auto result = at::detail::make_tensor<at::SparseTensorImpl>(
      c10::DispatchKeySet(c10::DispatchKey::SparseCPU), caffe2::TypeMeta::Make<float>());
  auto* sparse = static_cast<at::SparseTensorImpl*>(result.unsafeGetTensorImpl());
  const Word sizes[] = {n, values.size(1)};
  sparse->resize_(1, 1, at::IntArrayRef(sizes, 2));
  sparse->set_indices_and_values_unsafe(hits, values);
  sparse->set_coalesced(true);
  return result;
}

class MePropLinearBackward : public LayerBackward {
  using Loan = kept::Record::Loan;

 public:
  std::string name() const override { return "MePropLinearBackward"; }

  void set(
      const Tensor& x, const Tensor& w, const Plan& plan, const Case& c, std::shared_ptr<kept::Record>&& record) {
    plan_ = plan;
    case_ = c;
    record_ = std::move(record);
    if (w.requires_grad()) x_ = SavedVariable(x.dim() == 2 ? x : pinned(x), false);
    if (x.requires_grad()) w_ = SavedVariable(pinned(w), false);
  }

 protected:
  bool as_saved(const Tensor& x, const Tensor& w) const override {
    return is_matrix(x, case_.b, case_.m) && is_matrix(w, case_.n, case_.m);
  }

  variable_list compiled(const Tensor& dy, const Tensor& x, const Tensor& w) override {
    Case c = case_;
    Plan plan = plan_;
    if (native.openmp != 0 && at::get_num_threads() != c.threads) {
      c.threads = at::get_num_threads();
      plan = planned_anew(c);
      if (!plan.ours) return in_python(dy, x, w);
    }
    return c.unified ? unified(dy, x, w, c, plan) : example(dy, x, w, c, plan);
  }

  variable_list in_python(const Tensor& dy, const Tensor& x, const Tensor& w) override {
    pybind11::gil_scoped_acquire lock;
    return by(layer.python_backward, dy, x, w, plan_.k, case_.unified ? "unified" : "example", case_.rows);
  }

 private:
  Plan plan_;
  Case case_{};
  std::shared_ptr<kept::Record> record_;  // of W, where its gradient is kept

  // Undefined, or these numbers, whatever the dimensions before the last.
  static bool is_matrix(const Tensor& t, Word rows, Word columns) {
    return !t.defined() ||
           (ordinary(t) && t.size(-1) == columns && t.numel() == rows * columns && t.is_contiguous());
  }

  Tensor fresh_dx(const Tensor& dy, Word m) const {
    auto sizes = dy.sizes().vec();
    sizes.back() = m;
    return fresh(sizes);
  }

  // The number of threads is another than in the forward pass, and with it the memory to work in.
  Plan planned_anew(Case& c) const;

  // Where dW goes: nowhere when it is not needed.
  Loan loan_of(bool need_dw, Word rows, Word m) {
    return need_dw ? Loan(record_.get(), rows, m) : Loan();
  }

  // One selection for the whole batch: dy (b, n), x (b, m), W (n, m) -> dx (b, m), dW (n, m) or its k rows, db (n,), in
  // one call. Memory is made on this thread; the regions inside run on torch's, each share on its own columns.
  variable_list unified(const Tensor& dy, const Tensor& x, const Tensor& w, const Case& c, const Plan& plan) {
    const auto& [b, n, m, _, threads, ratio, unified, rows, automatic] = c;
    const Word k = plan.k;
    const bool need_dw = task_should_compute_output(1);
    Tensor hits = fresh({1, k}, at::kLong), dx, db;
    if (task_should_compute_output(0)) dx = fresh_dx(dy, m);
    Loan loan = loan_of(need_dw, rows ? k : n, m);
    if (task_should_compute_output(2)) db = fresh({n});
    const Word kept = call(
        native.backward, native.openmp, native.sum, native.gather, native.multiply, plan.few, plan.shares,
        address(dy), address(x), address(w), address(dx), address(loan.dw), address(db), b, n, m, k, address(hits), 0,
        rows, plan.streaming, scratch(plan.bytes), loan.written, loan.seed);
    Tensor dw = std::move(loan).done();
    if (rows && need_dw) dw = hybrid_rows(std::move(hits), std::move(dw), kept, n);
    return {dx, dw, db};
  }

  // A selection for each example, in two calls: `pairs` selects and sorts, which says how many rows dW has, and leaves
  // the sorted pairs in the scratch memory, from which `products` sums dx and dW up.
  variable_list example(const Tensor& dy, const Tensor& x, const Tensor& w, const Case& c, const Plan& plan) {
    const auto& [b, n, m, _, threads, ratio, unified, rows, automatic] = c;
    const Word k = plan.k, working = scratch(plan.bytes);
    const bool need_dx = task_should_compute_output(0), need_dw = task_should_compute_output(1);
    Tensor hits, dx, db;
    if (task_should_compute_output(2)) db = fresh({n});
    const Word count = call(
        native.pairs, native.openmp, native.select, native.sort, plan.few, address(dy), 0, b, n, k,
        address(db), working);
    if (need_dx) dx = fresh_dx(dy, m);
    Loan loan = loan_of(need_dw, rows ? count : n, m);
    if (rows) hits = fresh({1, count}, at::kLong);
    if (need_dx || need_dw) {
      // A list without rows has no address, and no address means that dw holds all rows.
      Word nothing;
      const Word listed = rows ? (count ? address(hits) : reinterpret_cast<Word>(&nothing)) : 0;
      call(native.products, native.openmp, native.sums, plan.shares, address(x), address(w), address(dx),
           address(loan.dw), b, n, k, m, count, listed, working, plan.streaming, loan.written, loan.seed);
    }
    Tensor dw = std::move(loan).done();
    if (rows && need_dw) dw = hybrid_rows(std::move(hits), std::move(dw), count, n);
    return {dx, dw, db};
  }
};

inline Plan ask(PyObject* const* arguments, const Case& c) {
  const auto answer = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunction(
      layer.plan_of, "LOOOOOO", static_cast<long long>(c.threads), arguments[0], arguments[1], arguments[3],
      arguments[4], arguments[5], arguments[6]));
  if (!answer) throw python_error();
  if (answer.is_none()) return {};
  long long k, few, shares, bytes;
  int streaming;
  if (!PyArg_ParseTuple(answer.ptr(), "LLLLp", &k, &few, &shares, &bytes, &streaming)) throw python_error();
  return {true, k, few, shares, bytes, streaming};
}

inline Plan MePropLinearBackward::planned_anew(Case& c) const {
  pybind11::gil_scoped_acquire lock;
  // The kernel was chosen in the forward pass, and k is known.
  c.automatic = c.ratio = false;
  c.k = plan_.k;
  // On a graph that is kept, each backward pass comes here, and tensors to ask with are made once.
  return layer.plan_for(c, [&] {
    const auto x = fresh({1}).expand({c.b, c.m}), w = fresh({1}).expand({c.n, c.m});  // for their shapes
    const auto a = pybind11::make_tuple(
        wrapped(x), wrapped(w), pybind11::none(), c.k, c.unified ? "unified" : "example", c.rows, "native");
    PyObject* arguments[7];
    for (int i = 0; i < 7; ++i) arguments[i] = PyTuple_GET_ITEM(a.ptr(), i);
    return ask(arguments, c);
  });
}

// linear(x, w, b, k, selection, sparse, kernel) -> y, or None: not for this node.
inline PyObject* linear(PyObject*, PyObject* const* a, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "linear takes 7 arguments, not ", count);
  const auto inputs = Inputs::read(a);
  // What the Python registration takes instead: other selections and kernels, and whatever is not ordinary.
  const auto unified = is_first(a[4], "unified", "example");
  const auto automatic = is_first(a[6], "auto", "native");
  Case c{};
  if (!inputs || !PyBool_Check(a[5]) || !unified || !automatic || !set_k(a[3], c) || !recorded() || !inputs->plain()) {
    Py_RETURN_NONE;
  }
  const auto& [x, w, b] = *inputs;
  if (x.numel() == 0 || w.dim() != 2 || x.dim() < 1 || x.size(-1) != w.size(1)) Py_RETURN_NONE;
  c.n = w.size(0);
  c.m = w.size(1);
  c.b = x.numel() / c.m;
  c.threads = native.openmp ? at::get_num_threads() : 1;
  c.unified = *unified;
  c.automatic = *automatic;
  c.rows = a[5] == Py_True;
  const Plan plan = layer.plan_for(c, [&] { return ask(a, c); });
  if (!plan.ours) Py_RETURN_NONE;

  const auto node = node_from<MePropLinearBackward>(x, w, b);
  // A weight that is computed is another each time, and so would its record be.
  std::shared_ptr<kept::Record> record;
  if (node && !c.rows && native.kept_from && Word(sizeof(float)) * c.n * c.m >= native.kept_from &&
      w.requires_grad() && w.is_leaf()) {
    record = kept::record_of(a[1]);
  }
  // y (…, n), without the interpreter's lock and without torch's own node.
  Tensor y;
  {
    pybind11::gil_scoped_release unlocked;
    at::AutoDispatchBelowADInplaceOrView below;
    y = at::linear(x, w, if_defined(b));
  }
  if (node) {
    node->set(x, w, plan, c, std::move(record));
    torch::autograd::set_history(y, node);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace linear
