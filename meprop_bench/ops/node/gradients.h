// Where the gradients of parameters are, for a compiled step of an optimizer: `meprop_bench/optim/table.py` says what for.

#pragma once

#include <ATen/SparseTensorImpl.h>

#include "node.h"

namespace gradients {

using node::address;
using node::ordinary;
using node::Tensor;
using node::Word;

// A parameter's gradient in memory that compiled code can read.
struct Place {
  Word gradient = 0, rows = 0, numbers = 0;  // the addresses of its numbers and of its rows, and how many numbers
};

// Whether each row comes once: they ascend from 0 or more.
inline bool ascending(const Word* rows, Word count) {
  Word before = -1;
  for (Word i = 0; i < count; before = rows[i++]) {
    if (rows[i] <= before) return false;
  }
  return true;
}

// A dense gradient (n, *), contiguous as its parameter is; nothing where it is another.
inline std::optional<Place> dense(const Tensor& gradient) {
  if (!ordinary(gradient) || !gradient.is_contiguous()) return std::nullopt;
  return Place{address(gradient), 0, gradient.numel()};
}

// A gradient of rows: indices (1, r), numbers (r, *); nothing where a row may come twice.
inline std::optional<Place> sparse(const Tensor& gradient) {
  const auto keys = gradient.key_set();
  if (keys.has_any(c10::python_ks) || keys.has(c10::DispatchKey::Negative)) return std::nullopt;
  const auto* impl = static_cast<const at::SparseTensorImpl*>(gradient.unsafeGetTensorImpl());
  const Tensor &indices = impl->indices(), &values = impl->values();
  if (impl->sparse_dim() != 1 || !indices.device().is_cpu() || !indices.is_contiguous() || !values.is_contiguous() ||
      values.is_neg() || values.scalar_type() != at::kFloat || values.key_set().has_any(c10::python_ks)) {
    return std::nullopt;
  }
  const Word count = indices.size(1);
  if (!impl->coalesced() && !ascending(indices.const_data_ptr<Word>(), count)) return std::nullopt;
  return Place{address(values), address(indices), values.numel()};
}

// gradients(parameters, rows) -> for each None, where it has no gradient, False, where Python has to look, or a
// `Place` as `optim/table.py` has it. Gradients of rows are looked at only if `rows`.
inline PyObject* gradients(PyObject*, PyObject* const* a, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 2 && PyList_CheckExact(a[0]), "gradients takes a list and a bool");
  const Py_ssize_t size = PyList_GET_SIZE(a[0]);
  auto found = pybind11::reinterpret_steal<pybind11::object>(PyList_New(size));
  if (!found) throw python_error();
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* const parameter = PyList_GET_ITEM(a[0], i);
    PyObject* answer = Py_NewRef(Py_False);
    if (THPVariable_CheckExact(parameter)) {
      const Tensor& p = THPVariable_Unpack(parameter);
      const Tensor& gradient = p.mutable_grad();
      if (!gradient.defined()) {
        Py_SETREF(answer, Py_NewRef(Py_None));
      } else if (ordinary(p) && p.is_contiguous() && p.numel() && gradient.sizes() == p.sizes()) {
        const bool rows = gradient.layout() == at::kSparse;
        std::optional<Place> place;
        if (gradient.device().is_cpu() && (!rows || a[1] == Py_True)) place = rows ? sparse(gradient) : dense(gradient);
        if (place) {
          Py_SETREF(answer, Py_BuildValue("NLLLLLL", THPVariable_Wrap(gradient), address(p), p.numel(), place->gradient,
                                          place->rows, place->numbers, rows ? p.size(0) : Word(0)));
          if (!answer) throw python_error();
        }
      }
    }
    PyList_SET_ITEM(found.ptr(), i, answer);
  }
  return found.release().ptr();
  END_HANDLE_TH_ERRORS
}

}  // namespace gradients
