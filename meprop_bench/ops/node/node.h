// What the nodes of the kernel `native` have in common: compiled code at its address, what an ordinary tensor is, memory,
// what a layer is set up with and its plans, the node of a layer y = f(x, W, b), and the way to Python and back.

#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <unordered_map>
#include <utility>

namespace node {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Word = int64_t;

// Numba's own calling convention: a status that is 0 when nothing was raised, the result by address, then so many words.
template <size_t... each>
auto of_words(std::index_sequence<each...>) -> int (*)(Word* result, void** raised, decltype(each, Word())...);

template <size_t count>
using Compiled = decltype(of_words(std::make_index_sequence<count>()));

template <typename... Words>
Word call(int (*compiled)(Word*, void**, Words...), std::common_type_t<Words>... arguments) {
  Word result = 0;
  void* raised = nullptr;
  TORCH_CHECK(compiled(&result, &raised, arguments...) == 0, "the compiled kernel failed: out of memory?");
  return result;
}

constexpr size_t kMostPlans = 1024;

inline void mix(size_t& hash, Word word) {
  hash = (hash ^ static_cast<size_t>(word)) * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 29;
}

// A float32 tensor in the memory of this process, without anything that changes what operators mean: a subclass,
// a wrapper of torch.func, a lazy conjugation, another layout.
inline bool ordinary(const Tensor& t) {
  static const c10::DispatchKeySet keys = [] {
    // Not by an operator: whatever mode is on at the first call, these are the keys of ordinary tensors.
    c10::InferenceMode off(false);
    return at::detail::empty_cpu({1}, at::kFloat).key_set();
  }();
  return t.key_set() == keys && t.scalar_type() == at::kFloat;
}

// What an older torch goes back without, names of dimensions, is nothing to us; a later one has no such key.
template <typename Key>
c10::DispatchKeySet without_names(c10::DispatchKeySet keys) {
  if constexpr (requires { Key::Named; }) {
    return keys.remove(Key::Named);
  } else {
    return keys;
  }
}

// No autocast, tracer, dispatch mode or transformation that wants to see each operator.
inline bool unwatched() {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const auto excluded = without_names<c10::DispatchKey>(local.excluded_);
  return local.included_ == c10::default_included_set && excluded == c10::default_excluded_set;
}

// Whether a node may stand for a layer: autograd records, and nobody wants to see the operators or the call.
inline bool recorded() {
  return at::GradMode::is_enabled() && unwatched() && !at::impl::torch_function_mode_enabled();
}

// An alias to be saved, as `ops.saved` has it: it keeps the numbers when the variable gets other data, counts changes
// in place with it, and has its edge in the graph.
inline Tensor pinned(const Tensor& t) {
  const auto* impl = t.unsafeGetTensorImpl();
  Tensor alias(impl->shallow_copy_and_detach(impl->version_counter(), /*allow_tensor_metadata_change=*/false));
  if (t.requires_grad()) {
    torch::autograd::impl::set_gradient_edge(alias, torch::autograd::impl::gradient_edge(t));
  }
  return alias;
}

inline Word address(const Tensor& t) {
  return t.defined() ? reinterpret_cast<Word>(t.const_data_ptr()) : 0;
}

inline Tensor fresh(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::detail::empty_cpu(sizes, dtype);
}

// Memory to work in, kept from call to call, one block for each thread that calls.
inline Word scratch(Word bytes) {
  thread_local Tensor block;
  if (!block.defined() || block.numel() < bytes) block = fresh({bytes}, at::kByte);
  return address(block);
}

// Nodes of the graph are held as torch holds them: by std::shared_ptr, or, in later versions, by intrusive_ptr.
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<T>(new T());
  } else {
    return c10::make_intrusive<T>();
  }
}

// A node with edges to the inputs, where any of them needs a gradient.
template <typename T, typename... Inputs>
auto node_from(const Inputs&... inputs) {
  decltype(make_node<T>()) node;
  if (torch::autograd::compute_requires_grad(inputs...)) {
    node = make_node<T>();
    node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  }
  return node;
}

inline std::optional<Tensor> if_defined(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
}

inline pybind11::object wrapped(const Tensor& t) {
  return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(t));
}

// The gradients that a function of Python's gives, None for those that are not needed.
inline variable_list gradients_of(PyObject* function, const pybind11::tuple& arguments) {
  const auto result = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallObject(function, arguments.ptr()));
  if (!result) throw python_error();
  variable_list gradients;
  for (const auto& gradient : pybind11::cast<pybind11::tuple>(result)) {
    gradients.push_back(gradient.is_none() ? Tensor() : THPVariable_Unpack(gradient.ptr()));
  }
  return gradients;
}

// Whether this is a string of two, and which.
inline std::optional<bool> is_first(PyObject* name, const char* first, const char* second) {
  if (!PyUnicode_CheckExact(name)) return std::nullopt;
  if (PyUnicode_CompareWithASCIIString(name, first) == 0) return true;
  if (PyUnicode_CompareWithASCIIString(name, second) == 0) return false;
  return std::nullopt;
}

// Read an int that fits.
inline bool integer(PyObject* value, Word& number) {
  if (!PyLong_CheckExact(value)) return false;
  int overflow = 0;
  number = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0;
}

// Read k into a case: an int, or the bits of a ratio.
template <typename Case>
bool set_k(PyObject* k, Case& c) {
  if (integer(k, c.k)) return true;
  if (!PyFloat_CheckExact(k)) return false;
  const double ratio = PyFloat_AS_DOUBLE(k);
  c.ratio = true;
  std::memcpy(&c.k, &ratio, sizeof ratio);
  return true;
}

// The k of a case as Python has it.
template <typename Case>
PyObject* number(const Case& c) {
  if (!c.ratio) return PyLong_FromLongLong(c.k);
  double ratio;
  std::memcpy(&ratio, &c.k, sizeof ratio);
  return PyFloat_FromDouble(ratio);
}

// A layer: the words that it is set up with (`Native`: addresses, in the order in which `set_<layer>` gets them), what says
// what to do with a case and what does its work in Python, and the plans that are known. Under the interpreter's lock.
template <typename Native, typename Case, typename Plan, typename Hash>
struct Layer {
  Native native{};
  PyObject *plan_of = nullptr, *python_backward = nullptr;
  std::unordered_map<Case, Plan, Hash>& plans = *new std::unordered_map<Case, Plan, Hash>;  // outlives the interpreter

  // What is known of a case, else what `ask` finds out.
  template <typename Ask>
  Plan plan_for(const Case& c, const Ask& ask) {
    const auto found = plans.find(c);
    if (found != plans.end()) return found->second;
    Plan plan = ask();
    if (plans.size() >= kMostPlans) plans.clear();
    return plans.emplace(c, std::move(plan)).first->second;
  }
};

// set_<layer>(addresses, plan_of, backward): see `Layer`.
template <auto& layer>
PyObject* set_up(PyObject*, PyObject* arguments) {
  HANDLE_TH_ERRORS
  constexpr int kWords = sizeof layer.native / sizeof(Word);
  PyObject *addresses, *plan, *backward;
  if (!PyArg_ParseTuple(arguments, "O!OO", &PyTuple_Type, &addresses, &plan, &backward)) return nullptr;
  TORCH_CHECK(PyTuple_GET_SIZE(addresses) == kWords, "set up with ", kWords, " addresses");
  Word words[kWords];
  for (int i = 0; i < kWords; ++i) {
    words[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(addresses, i));
    if (PyErr_Occurred()) return nullptr;
  }
  std::memcpy(&layer.native, words, sizeof words);
  Py_INCREF(plan);
  Py_INCREF(backward);
  Py_XSETREF(layer.plan_of, plan);
  Py_XSETREF(layer.python_backward, backward);
  layer.plans.clear();
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// x, W and b of a layer y = f(x, W, b).
struct Inputs {
  const Tensor &x, &w;
  Tensor b;

  // As Python gave them, None for no bias; nothing where one is no exact tensor.
  static std::optional<Inputs> read(PyObject* const* a) {
    if (!THPVariable_CheckExact(a[0]) || !THPVariable_CheckExact(a[1]) ||
        !(a[2] == Py_None || THPVariable_CheckExact(a[2]))) {
      return std::nullopt;
    }
    return Inputs{THPVariable_Unpack(a[0]), THPVariable_Unpack(a[1]), a[2] == Py_None ? Tensor() : THPVariable_Unpack(a[2])};
  }

  // Memory that is what it looks like, b (n,) for W (n, ...), and nothing that forward-mode differentiation follows.
  bool plain() const {
    using torch::autograd::isFwGradDefined;
    return ordinary(x) && ordinary(w) && x.is_contiguous() && w.is_contiguous() && w.dim() > 0 &&
           (!b.defined() || (ordinary(b) && b.dim() == 1 && b.size(0) == w.size(0))) && !isFwGradDefined(x) &&
           !isFwGradDefined(w) && !isFwGradDefined(b);
  }
};

// The node of such a layer: dx, dW and db by compiled code, where nothing is out of the ordinary, else by Python.
class LayerBackward : public torch::autograd::Node {
 public:
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x_.reset_data();
    w_.reset_data();
  }

 protected:
  SavedVariable x_, w_;  // undefined where it is not needed

  // What was saved may have got other data, or come from a hook.
  virtual bool as_saved(const Tensor& x, const Tensor& w) const = 0;
  virtual variable_list compiled(const Tensor& dy, const Tensor& x, const Tensor& w) = 0;
  virtual variable_list in_python(const Tensor& dy, const Tensor& x, const Tensor& w) = 0;

  variable_list apply(variable_list&& incoming) override {
    Tensor x, w;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      x = x_.unpack();
      w = w_.unpack();
    }
    const Tensor dy = std::move(incoming[0]);
    if (!dy.defined()) return variable_list(3);
    if (at::GradMode::is_enabled() || !unwatched() || !ordinary(dy) || torch::autograd::isFwGradDefined(dy) ||
        !as_saved(x, w)) {
      return in_python(dy, x, w);
    }
    return compiled(dy.contiguous(), x, w);
  }

  // Call Python's backward pass with a layer's own arguments between the tensors and what is needed.
  template <typename... Own>
  variable_list by(PyObject* backward, const Tensor& dy, const Tensor& x, const Tensor& w, const Own&... own) {
    const auto arguments = pybind11::make_tuple(
        wrapped(dy), wrapped(x), wrapped(w), own..., task_should_compute_output(0), task_should_compute_output(1),
        task_should_compute_output(2));
    return gradients_of(backward, arguments);
  }
};

}  // namespace node
