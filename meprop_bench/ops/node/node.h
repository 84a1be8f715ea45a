// What the nodes of the kernel `native` have in common: compiled code at its address, what an ordinary tensor is, memory,
// and the way to Python and back.

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
#include <optional>
#include <type_traits>
#include <unordered_map>

namespace node {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Word = int64_t;

// Numba's own calling convention: a status that is 0 when nothing was raised, the result by address, then the arguments.
template <typename... Arguments>
using Compiled = int (*)(Word* result, void** raised, Arguments...);

template <typename... Arguments>
Word call(Compiled<Arguments...> compiled, std::common_type_t<Arguments>... arguments) {
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

// Read what a node is set up with: the words of its `Native`, what tells its plans, and what does its work in Python.
template <typename Native>
bool set_up(PyObject* arguments, Native& native, PyObject*& plan_of, PyObject*& python_backward) {
  constexpr int kWords = sizeof(Native) / sizeof(Word);
  PyObject *addresses, *plan, *backward;
  if (!PyArg_ParseTuple(arguments, "O!OO", &PyTuple_Type, &addresses, &plan, &backward)) return false;
  TORCH_CHECK(PyTuple_GET_SIZE(addresses) == kWords, "set up with ", kWords, " addresses");
  Word words[kWords];
  for (int i = 0; i < kWords; ++i) {
    words[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(addresses, i));
    if (PyErr_Occurred()) return false;
  }
  std::memcpy(&native, words, sizeof native);
  Py_INCREF(plan);
  Py_INCREF(backward);
  Py_XSETREF(plan_of, plan);
  Py_XSETREF(python_backward, backward);
  return true;
}

}  // namespace node
