// The autograd node of a convolution whose backward pass is the kernel `native`: as that of a linear layer, which see.
//
//     forward     y by torch's own operator, of one dimension or two
//     backward    the machine code of `ops.kernels.native.conv`, one call

#pragma once

#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>

#include <array>
#include <vector>

#include "node.h"

namespace conv {

using namespace node;
using Pair = std::array<Word, 2>;
using Sizes = std::array<Word, 4>;

// What is called: torch's OpenMP (0: one thread), the bodies of the parallel
// regions, and the entry point, whose arguments are described there.
struct Native {
  Word openmp, pixels, maps, images;
  Compiled<14> backward;
};

// A case, as far as its plan depends on it: images (B, G C, H, W), filters (N, C, kh, kw), each pair for height and
// width. k is an int, or the bits of a ratio; automatic says that the kernel is "auto", which looks at what is needed.
struct Case {
  Sizes x, w;
  Pair stride, padding, dilation;
  Word groups, k, threads;
  bool ratio, automatic, need_dx, need_dw;

  bool operator==(const Case&) const = default;
};

struct Hash {
  size_t operator()(const Case& c) const {
    size_t hash = c.ratio + 2 * c.automatic + 4 * c.need_dx + 8 * c.need_dw;
    for (Word word : c.x) mix(hash, word);
    for (Word word : c.w) mix(hash, word);
    for (const Pair& pair : {c.stride, c.padding, c.dilation}) {
      for (Word word : pair) mix(hash, word);
    }
    for (Word word : {c.groups, c.k, c.threads}) mix(hash, word);
    return hash;
  }
};

// What to do with a case: k resolved, shares, bytes to work in, and `Plan` of `ops.kernels.native.conv` with the tables
// whose addresses are its last words.
struct Plan {
  Word k, shares, bytes;
  std::vector<Word> words, place;
  std::vector<int32_t> slot, patch;
};

using PlanPointer = std::shared_ptr<const Plan>;  // of nothing: the case is not this node's
inline Layer<Native, Case, PlanPointer, Hash> layer;
inline Native& native = layer.native;

// One or two dimensions as two: a single one is the width.
inline Sizes sizes_of(const Tensor& t) {
  return t.dim() == 4 ? Sizes{t.size(0), t.size(1), t.size(2), t.size(3)} : Sizes{t.size(0), t.size(1), 1, t.size(2)};
}

template <typename T>
std::vector<T> numbers(PyObject* bytes) {
  std::vector<T> result(PyBytes_GET_SIZE(bytes) / sizeof(T));
  std::memcpy(result.data(), PyBytes_AS_STRING(bytes), result.size() * sizeof(T));
  return result;
}

inline PlanPointer ask(const Case& c) {
  const auto answer = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunction(
      layer.plan_of, "L(LLLL)(LLLL)(LL)(LL)(LL)LNsOO", c.threads, c.x[0], c.x[1], c.x[2], c.x[3], c.w[0], c.w[1], c.w[2],
      c.w[3], c.stride[0], c.stride[1], c.padding[0], c.padding[1], c.dilation[0], c.dilation[1], c.groups,
      number(c), c.automatic ? "auto" : "native",
      c.need_dx ? Py_True : Py_False, c.need_dw ? Py_True : Py_False));
  if (!answer) throw python_error();
  if (answer.is_none()) return nullptr;
  long long k, shares, bytes;
  PyObject *words, *place, *slot, *patch;
  if (!PyArg_ParseTuple(answer.ptr(), "LLLSSSS", &k, &shares, &bytes, &words, &place, &slot, &patch)) {
    throw python_error();
  }
  auto plan = std::make_shared<Plan>(Plan{
      k, shares, bytes, numbers<Word>(words), numbers<Word>(place), numbers<int32_t>(slot), numbers<int32_t>(patch)});
  const size_t last = plan->words.size() - 3;
  plan->words[last] = reinterpret_cast<Word>(plan->place.data());
  plan->words[last + 1] = reinterpret_cast<Word>(plan->slot.data());
  plan->words[last + 2] = reinterpret_cast<Word>(plan->patch.data());
  return plan;
}

inline PlanPointer plan_for(const Case& c) {
  return layer.plan_for(c, [&] { return ask(c); });
}

class MePropConvolutionBackward : public LayerBackward {
 public:
  std::string name() const override { return "MePropConvolutionBackward"; }

  // x and W are saved as they were given, as torch does.
  void set(const Tensor& x, const Tensor& w, PlanPointer plan, const Case& c) {
    plan_ = std::move(plan);
    case_ = c;
    x_ = SavedVariable(x, false);
    w_ = SavedVariable(w, false);
  }

 protected:
  bool as_saved(const Tensor& x, const Tensor& w) const override {
    return is_image(x, case_.x) && is_image(w, case_.w);
  }

  variable_list compiled(const Tensor& dy, const Tensor& x, const Tensor& w) override {
    PlanPointer plan = plan_;
    if (native.openmp != 0 && at::get_num_threads() != case_.threads) {
      pybind11::gil_scoped_acquire lock;
      Case c = case_;
      c.threads = at::get_num_threads();
      plan = plan_for(c);
    }
    if (!plan) return in_python(dy, x, w);
    // Memory is made on this thread; the regions inside run on torch's.
    Tensor dx, dw, db;
    if (task_should_compute_output(0)) dx = fresh(x.sizes());
    if (task_should_compute_output(1)) dw = fresh(w.sizes());
    if (task_should_compute_output(2)) db = fresh({w.size(0)});
    call(native.backward, native.openmp, native.pixels, native.maps, native.images, plan->shares,
         reinterpret_cast<Word>(plan->words.data()), address(dy), 0, address(x), address(w), address(dx), address(dw),
         address(db), scratch(plan->bytes));
    return {dx, dw, db};
  }

  variable_list in_python(const Tensor& dy, const Tensor& x, const Tensor& w) override {
    pybind11::gil_scoped_acquire lock;
    const auto pair = [](const Pair& p) { return pybind11::make_tuple(p[0], p[1]); };
    const auto four = [](const Sizes& s) { return pybind11::make_tuple(s[0], s[1], s[2], s[3]); };
    return by(layer.python_backward, dy, x, w, pair(case_.stride), pair(case_.padding), pair(case_.dilation),
              case_.groups, pybind11::make_tuple(four(case_.x), four(case_.w)), plan_->k);
  }

 private:
  PlanPointer plan_;
  Case case_{};

  static bool is_image(const Tensor& t, const Sizes& sizes) {
    return ordinary(t) && (t.dim() == 3 || t.dim() == 4) && sizes_of(t) == sizes && t.is_contiguous();
  }
};

// One integer, or a tuple of as many as there are dimensions, for height and width; of a single dimension, `alone` is
// for the height. False for anything else.
inline bool read(PyObject* value, Word dimensions, Word least, Word alone, Pair& pair) {
  const bool several = PyTuple_CheckExact(value);
  if (several && PyTuple_GET_SIZE(value) != dimensions) return false;
  pair[0] = alone;
  for (Word i = 0; i < dimensions; ++i) {
    Word& number = pair[2 - dimensions + i];
    if (!integer(several ? PyTuple_GET_ITEM(value, i) : value, number) || number < least) return false;
  }
  return true;
}

// conv(x, w, b, stride, padding, dilation, groups, k, selection, kernel) -> y, or None: not for this node.
inline PyObject* conv(PyObject*, PyObject* const* a, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 10, "conv takes 10 arguments, not ", count);
  const auto inputs = Inputs::read(a);
  // What the Python registration takes instead: other selections and kernels, and whatever is not ordinary.
  const auto automatic = is_first(a[9], "auto", "native");
  Case c{};
  if (!inputs || !is_first(a[8], "example", "example") || !automatic || !set_k(a[7], c) || !recorded() ||
      !inputs->plain()) {
    Py_RETURN_NONE;
  }
  const auto& [x, w, b] = *inputs;
  const Word dimensions = w.dim() - 2;
  if (x.numel() == 0 || w.numel() == 0 || (dimensions != 1 && dimensions != 2) || x.dim() != w.dim() ||
      !read(a[3], dimensions, 1, 1, c.stride) || !read(a[4], dimensions, 0, 0, c.padding) ||
      !read(a[5], dimensions, 1, 1, c.dilation) || !integer(a[6], c.groups) || c.groups < 1 ||
      x.size(1) != w.size(1) * c.groups || w.size(0) % c.groups != 0) {
    Py_RETURN_NONE;
  }
  c.x = sizes_of(x);
  c.w = sizes_of(w);
  c.threads = native.openmp ? at::get_num_threads() : 1;
  c.automatic = *automatic;
  c.need_dx = x.requires_grad();
  c.need_dw = w.requires_grad();
  PlanPointer plan = plan_for(c);
  if (!plan) Py_RETURN_NONE;

  const auto node = node_from<MePropConvolutionBackward>(x, w, b);
  // y without the interpreter's lock and without torch's own node.
  Tensor y;
  {
    pybind11::gil_scoped_release unlocked;
    at::AutoDispatchBelowADInplaceOrView below;
    const auto sizes = [&](const Pair& pair) { return at::IntArrayRef(pair.data() + 2 - dimensions, dimensions); };
    y = dimensions == 2
            ? at::conv2d(x, w, if_defined(b), sizes(c.stride), sizes(c.padding), sizes(c.dilation), c.groups)
            : at::conv1d(x, w, if_defined(b), sizes(c.stride), sizes(c.padding), sizes(c.dilation), c.groups);
  }
  if (node) {
    node->set(x, w, std::move(plan), c);
    torch::autograd::set_history(y, node);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace conv
