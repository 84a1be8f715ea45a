// The extension: the nodes of three layers, the predicate of `meprop_bench.ops.plain`, and what `optim.table` looks at. See
// `meprop_bench/ops/node/__init__.py`.

#include "conv.h"
#include "gradients.h"
#include "linear.h"
#include "lstm.h"

namespace {

using at::Tensor;

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

template <auto function>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"conv", fast<conv::conv>(), METH_FASTCALL, nullptr},
    {"gradients", fast<gradients::gradients>(), METH_FASTCALL, nullptr},
    {"linear", fast<linear::linear>(), METH_FASTCALL, nullptr},
    {"lstm", fast<lstm::lstm>(), METH_FASTCALL, nullptr},
    {"plain", fast<plain>(), METH_FASTCALL, nullptr},
    {"set_conv", node::set_up<conv::layer>, METH_VARARGS, nullptr},
    {"set_keys", set_keys, METH_VARARGS, nullptr},
    {"set_linear", node::set_up<linear::layer>, METH_VARARGS, nullptr},
    {"set_lstm", node::set_up<lstm::layer>, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "meprop_bench_node", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_meprop_bench_node() {
  return PyModule_Create(&definition);
}
