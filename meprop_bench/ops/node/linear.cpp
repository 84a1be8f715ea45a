// The autograd node of a linear layer whose backward pass is the kernel `native`: see `meprop_bench/ops/node/__init__.py`.
//
//     forward     y = x Wᵀ + b, by torch's own operator
//     backward    the machine code that the Python registration calls, at its address, on fresh tensors made here
//
// Nothing is decided here. What a case needs (is it the native kernel's? how many threads, how much scratch?) is asked of
// Python once for each shape. Where anything is out of the ordinary, forward returns None and backward calls Python.

#include <ATen/SparseTensorImpl.h>
#include <ATen/ops/linear.h>

#include "conv.h"
#include "gradients.h"
#include "kept.h"
#include "lstm.h"
#include "node.h"

namespace {

using namespace node;

// What is called, in the order in which `set_linear` gets it: the addresses of torch's OpenMP (0: one thread), of the bodies
// of parallel regions (of `unified` the first three, of `example` the others), and of the three entry points, whose
// arguments are described there.
struct Native {
  Word openmp, sum, gather, multiply, select, sort, sums;
  Compiled<Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
           Word, Word, Word, Word, Word>
      backward;
  Compiled<Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word> pairs;
  Compiled<Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word>
      products;
  Word kept_from;  // bytes of a dense weight gradient from which its memory is kept; 0: never
};

Native native{};
PyObject* plan_of = nullptr;          // what to do with a shape
PyObject* python_backward = nullptr;  // the backward pass for what is not ordinary

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

std::unordered_map<Case, Plan, Hash> plans;  // under the interpreter's lock

// `hybrid_rows` without the operators' checks and dispatch: the first `count` rows.
Tensor hybrid_rows(Tensor hits, Tensor values, Word count, Word n) {
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

class MePropLinearBackward : public torch::autograd::Node {
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

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x_.reset_data();
    w_.reset_data();
  }

 protected:
  variable_list apply(variable_list&& incoming) override {
    Tensor x, w;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      x = x_.unpack();
      w = w_.unpack();
    }
    Tensor dy = std::move(incoming[0]);
    if (!dy.defined()) return variable_list(3);
    if (at::GradMode::is_enabled() || !unwatched() || !ordinary(dy) || torch::autograd::isFwGradDefined(dy) ||
        !as_it_was(x, case_.b, case_.m) || !as_it_was(w, case_.n, case_.m)) {
      return in_python(dy, x, w);
    }
    dy = dy.contiguous();
    Case c = case_;
    Plan plan = plan_;
    if (native.openmp != 0 && at::get_num_threads() != c.threads) {
      c.threads = at::get_num_threads();
      plan = planned_anew(c);
      if (!plan.ours) return in_python(dy, x, w);
    }
    return c.unified ? unified(dy, x, w, c, plan) : example(dy, x, w, c, plan);
  }

 private:
  SavedVariable x_, w_;
  Plan plan_;
  Case case_{};
  std::shared_ptr<kept::Record> record_;  // of W, where its gradient is kept

  // What was saved may have got other data, or come from a hook.
  static bool as_it_was(const Tensor& t, Word rows, Word columns) {
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

  variable_list in_python(const Tensor& dy, const Tensor& x, const Tensor& w) {
    pybind11::gil_scoped_acquire lock;
    const auto arguments = pybind11::make_tuple(
        wrapped(dy), wrapped(x), wrapped(w), plan_.k, case_.unified ? "unified" : "example", case_.rows,
        task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2));
    return gradients_of(python_backward, arguments);
  }
};

Plan ask(PyObject* const* arguments, const Case& c) {
  const auto answer = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunction(
      plan_of, "LOOOOOO", static_cast<long long>(c.threads), arguments[0], arguments[1], arguments[3], arguments[4],
      arguments[5], arguments[6]));
  if (!answer) throw python_error();
  if (answer.is_none()) return {};
  long long k, few, shares, bytes;
  int streaming;
  if (!PyArg_ParseTuple(answer.ptr(), "LLLLp", &k, &few, &shares, &bytes, &streaming)) throw python_error();
  return {true, k, few, shares, bytes, streaming};
}

// What is known of a case; nothing where it has to be asked for.
const Plan* known(const Case& c) {
  const auto found = plans.find(c);
  return found == plans.end() ? nullptr : &found->second;
}

// What is known of a case, else asked for with the arguments of `linear`.
Plan plan_for(const Case& c, PyObject* const* arguments) {
  if (const Plan* plan = known(c)) return *plan;
  if (plans.size() >= kMostPlans) plans.clear();
  return plans.emplace(c, ask(arguments, c)).first->second;
}

Plan MePropLinearBackward::planned_anew(Case& c) const {
  pybind11::gil_scoped_acquire lock;
  // The kernel was chosen in the forward pass, and k is known.
  c.automatic = c.ratio = false;
  c.k = plan_.k;
  // Before anything is made to ask with: on a graph that is kept, each backward pass comes here.
  if (const Plan* plan = known(c)) return *plan;
  const auto x = fresh({1}).expand({c.b, c.m}), w = fresh({1}).expand({c.n, c.m});  // for their shapes
  const auto a = pybind11::make_tuple(
      wrapped(x), wrapped(w), pybind11::none(), c.k, c.unified ? "unified" : "example", c.rows, "native");
  PyObject* arguments[7];
  for (int i = 0; i < 7; ++i) arguments[i] = PyTuple_GET_ITEM(a.ptr(), i);
  return plan_for(c, arguments);
}

// linear(x, w, b, k, selection, sparse, kernel) -> y, or None: not for this node.
PyObject* linear(PyObject*, PyObject* const* a, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 7, "linear takes 7 arguments, not ", count);
  if (!THPVariable_CheckExact(a[0]) || !THPVariable_CheckExact(a[1]) ||
      !(a[2] == Py_None || THPVariable_CheckExact(a[2])) || !PyBool_Check(a[5])) {
    Py_RETURN_NONE;
  }
  const Tensor &x = THPVariable_Unpack(a[0]), &w = THPVariable_Unpack(a[1]);
  const Tensor b = a[2] == Py_None ? Tensor() : THPVariable_Unpack(a[2]);
  // What the Python registration takes instead: other selections and kernels, and whatever is not ordinary.
  const auto unified = is_first(a[4], "unified", "example");
  const auto automatic = is_first(a[6], "auto", "native");
  Case c{};
  if (!unified || !automatic || !set_k(a[3], c) || !at::GradMode::is_enabled() || !unwatched() ||
      at::impl::torch_function_mode_enabled() || !ordinary(x) ||
      !ordinary(w) || x.numel() == 0 || w.dim() != 2 || x.dim() < 1 || x.size(-1) != w.size(1) ||
      !x.is_contiguous() || !w.is_contiguous()) {
    Py_RETURN_NONE;
  }
  if (b.defined() && !(ordinary(b) && b.dim() == 1 && b.size(0) == w.size(0))) Py_RETURN_NONE;
  using torch::autograd::isFwGradDefined;
  if (isFwGradDefined(x) || isFwGradDefined(w) || isFwGradDefined(b)) Py_RETURN_NONE;
  c.n = w.size(0);
  c.m = w.size(1);
  c.b = x.numel() / c.m;
  c.threads = native.openmp ? at::get_num_threads() : 1;
  c.unified = *unified;
  c.automatic = *automatic;
  c.rows = a[5] == Py_True;
  const Plan plan = plan_for(c, a);
  if (!plan.ours) Py_RETURN_NONE;

  // The node, with edges to x, W and b, where any of them needs a gradient.
  decltype(make_node<MePropLinearBackward>()) node;
  if (torch::autograd::compute_requires_grad(x, w, b)) {
    node = make_node<MePropLinearBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, w, b));
  }
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
    y = at::linear(x, w, b.defined() ? std::optional<Tensor>(b) : std::nullopt);
  }
  if (node) {
    node->set(x, w, plan, c, std::move(record));
    torch::autograd::set_history(y, node);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// What `ops.plain` has of the keys of tensors, and whom to ask about subclasses.
struct Keys {
  uint64_t harmless = 0, dense = 0, devices = 0, meta = 0;
} keys;
PyObject* plain_in_python = nullptr;

// plain(*tensors) -> bool: `ops.plain.in_python`.
PyObject* plain(PyObject*, PyObject* const* a, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const Tensor* first = nullptr;
  uint64_t wanted = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (a[i] == Py_None) continue;
    if (!THPVariable_CheckExact(a[i])) return PyObject_Vectorcall(plain_in_python, a, count, nullptr);
    const Tensor& t = THPVariable_Unpack(a[i]);
    const uint64_t found = t.key_set().raw_repr() & ~keys.harmless;
    if (!first) {
      first = &t;
      wanted = found;
      if ((found & ~keys.devices) != keys.dense || (found & keys.meta) || t.is_complex()) Py_RETURN_FALSE;
    } else if (found != wanted || t.scalar_type() != first->scalar_type()) {
      Py_RETURN_FALSE;
    }
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

// set_keys(harmless, dense, devices, meta, in_python): see `Keys`.
PyObject* set_keys(PyObject*, PyObject* arguments) {
  HANDLE_TH_ERRORS
  unsigned long long harmless, dense, devices, meta;
  PyObject* in_python;
  if (!PyArg_ParseTuple(arguments, "KKKKO", &harmless, &dense, &devices, &meta, &in_python)) return nullptr;
  keys = {harmless, dense, devices, meta};
  Py_INCREF(in_python);
  Py_XSETREF(plain_in_python, in_python);
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// set_linear(addresses, plan_of, backward): see `Native`.
PyObject* set_linear(PyObject*, PyObject* arguments) {
  HANDLE_TH_ERRORS
  if (!set_up(arguments, native, plan_of, python_backward)) return nullptr;
  plans.clear();
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"conv", fast<conv::conv>(), METH_FASTCALL, nullptr},
    {"gradients", fast<gradients::gradients>(), METH_FASTCALL, nullptr},
    {"linear", fast<linear>(), METH_FASTCALL, nullptr},
    {"lstm", fast<lstm::lstm>(), METH_FASTCALL, nullptr},
    {"plain", fast<plain>(), METH_FASTCALL, nullptr},
    {"set_conv", conv::set_conv, METH_VARARGS, nullptr},
    {"set_keys", set_keys, METH_VARARGS, nullptr},
    {"set_linear", set_linear, METH_VARARGS, nullptr},
    {"set_lstm", lstm::set_lstm, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "meprop_bench_node", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_meprop_bench_node() {
  return PyModule_Create(&definition);
}
