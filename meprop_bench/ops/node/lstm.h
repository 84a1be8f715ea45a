// The autograd node of an LSTM in one direction, whose backward pass is the kernel `native`: as that of a linear layer,
// which see. Here the way through the interpreter counts in the forward pass alone, so backward goes there.
//
//     forward     several examples: torch's own operator, which leaves the gates at the beginning of its workspace
//                 one example: the machine code of `ops.kernels.native.recurrent_forward`
//     backward    Python's

#pragma once

#include <ATen/ops/linear.h>
#include <ATen/ops/mkldnn_rnn_layer.h>

#include <array>
#include <vector>

#include "node.h"

namespace lstm {

using namespace node;

// What is called: torch's OpenMP (0: one thread), the bodies of the
// parallel regions, and the entry points, whose arguments are described there.
struct Native {
  Word openmp, alone_body, recall_body;
  Compiled<17> alone;
  Compiled<15> recall;
};

// A case, as far as its plan depends on it: x (steps, batch, m), states (1, batch, h). k is an int, or the bits of a
// ratio; automatic says that the kernel is "auto".
struct Case {
  Word steps, batch, m, h, k, threads;
  bool ratio, unified, automatic;

  bool operator==(const Case&) const = default;
};

struct Hash {
  size_t operator()(const Case& c) const {
    size_t hash = c.ratio + 2 * c.unified + 4 * c.automatic;
    for (Word word : {c.steps, c.batch, c.m, c.h, c.k, c.threads}) mix(hash, word);
    return hash;
  }
};

// What to do with a case: whether this node takes it, k resolved, the leading dimension of the gates in the workspace,
// 0 for one example, and into how many shares the work is cut that is done here.
struct Plan {
  bool ours = false;
  Word k = 0, ld = 0, shares = 0;
};

inline Layer<Native, Case, Plan, Hash> layer;
inline Native& native = layer.native;

inline Plan ask(const Case& c) {
  const auto answer = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunction(
      layer.plan_of, "LLLLLNss", c.threads, c.steps, c.batch, c.m, c.h, number(c), c.unified ? "unified" : "example",
      c.automatic ? "auto" : "native"));
  if (!answer) throw python_error();
  if (answer.is_none()) return {};
  long long k, ld, shares;
  if (!PyArg_ParseTuple(answer.ptr(), "LLL", &k, &ld, &shares)) throw python_error();
  return {true, k, ld, shares};
}

// x (steps, batch, m); W_ih (4 h, m), W_hh (4 h, h); b_ih and b_hh (4 h,), or neither; h and c (1, batch, h).
constexpr int kInputs = 7;
using Inputs = std::array<Tensor, kInputs>;

inline bool fit(const Inputs& inputs, const Case& c) {
  const std::array<std::vector<Word>, kInputs> sizes{{{c.steps, c.batch, c.m}, {4 * c.h, c.m}, {4 * c.h, c.h}, {4 * c.h},
                                                      {4 * c.h}, {1, c.batch, c.h}, {1, c.batch, c.h}}};
  for (int i = 0; i < kInputs; ++i) {
    const Tensor& t = inputs[i];
    if (t.defined() && !(ordinary(t) && t.is_contiguous() && t.sizes() == sizes[i])) return false;
  }
  return true;
}

class MePropLSTMBackward : public torch::autograd::Node {
 public:
  std::string name() const override { return "MePropLSTMBackward"; }

  // The weights' numbers are those of the forward pass; all else is saved as it was given.
  void set(const Inputs& inputs, const variable_list& tape, const Plan& plan, const Case& c) {
    plan_ = plan;
    case_ = c;
    for (int i = 0; i < kInputs; ++i) {
      saved_.emplace_back(i == 1 || i == 2 ? pinned(inputs[i]) : inputs[i], false);
    }
    for (size_t i = 0; i < tape.size(); ++i) {
      saved_.emplace_back(tape[i], false);
      sizes_.emplace_back(tape[i].sizes().vec());
    }
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

 protected:
  variable_list apply(variable_list&& d) override {
    Inputs inputs;
    variable_list tape;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (int i = 0; i < kInputs; ++i) inputs[i] = saved_[i].unpack();
      for (size_t i = kInputs; i < saved_.size(); ++i) tape.push_back(saved_[i].unpack());
    }
    if (!d[0].defined() && !d[1].defined() && !d[2].defined()) return variable_list(kInputs);
    // What was saved may have got other data, or come from a hook.
    bool as_saved = fit(inputs, case_);
    for (size_t i = 0; i < tape.size(); ++i) as_saved = as_saved && ordinary(tape[i]) && tape[i].sizes() == sizes_[i];
    // As Python has them: without gradients nobody asks for, zeros, and with all rows in one dimension.
    const Word rows = case_.steps * case_.batch;
    const bool fast = as_saved && !at::GradMode::is_enabled() && unwatched();
    for (int i = 0; i < 3; ++i) {
      const Word count = i == 0 ? rows : case_.batch;
      if (d[i].defined()) {
        d[i] = d[i].reshape({count, case_.h});
      } else if (fast) {
        d[i] = fresh({count, case_.h});
        std::memset(d[i].mutable_data_ptr(), 0, sizeof(float) * count * case_.h);
      }
    }
    TORCH_CHECK(inputs[0].dim() == 3, "what was saved of a recurrent layer has come back with other dimensions");
    inputs[0] = as_saved ? inputs[0].view({rows, case_.m}) : inputs[0].flatten(0, 1);
    pybind11::gil_scoped_acquire lock;
    const auto all = [](const auto& tensors) {
      pybind11::tuple result(tensors.size());
      for (size_t i = 0; i < tensors.size(); ++i) result[i] = wrapped(tensors[i]);
      return result;
    };
    pybind11::tuple needs(kInputs);
    for (int i = 0; i < kInputs; ++i) needs[i] = pybind11::bool_(task_should_compute_output(i));
    const auto arguments = pybind11::make_tuple(
        all(d), all(inputs), all(tape), case_.steps, case_.batch, plan_.k, case_.unified ? "unified" : "example",
        plan_.ld != 0, as_saved, needs);
    variable_list gradients = gradients_of(layer.python_backward, arguments);
    if (gradients[0].defined()) gradients[0] = gradients[0].view({case_.steps, case_.batch, case_.m});
    for (int i = 5; i < kInputs; ++i) {
      if (gradients[i].defined()) gradients[i] = gradients[i].unsqueeze(0);
    }
    return gradients;
  }

 private:
  std::vector<SavedVariable> saved_;
  std::vector<std::vector<Word>> sizes_;
  Plan plan_;
  Case case_{};
};

constexpr Word kLSTM = 0, kForwardInTime = 0;

struct Made {
  variable_list results, tape;
};

// h', the gates, c' and tanh c, a row for each example of each time step; the gates are already there or still to come.
inline variable_list tape_of(Tensor gates, const Case& c) {
  const Word rows = c.steps * c.batch;
  return {fresh({rows, c.h}), std::move(gates), fresh({rows, c.h}), fresh({rows, c.h})};
}

// Outputs (steps, batch, h), (1, batch, h) twice, and the tape; see `ops.recurrent.fused` and `native.recall`.
inline Made several(const Inputs& inputs, const Case& c, const Plan& plan) {
  const auto& [x, w_ih, w_hh, b_ih, b_hh, h, memory] = inputs;
  const bool biases = b_ih.defined();
  // As torch.nn.LSTM calls it: in one direction (false), of the kind 2, for training.
  auto [y, h_last, c_last, workspace] = at::mkldnn_rnn_layer(
      x, w_ih, w_hh, biases ? b_ih : w_ih, biases ? b_hh : w_hh, h, memory, false, {}, 2, c.h, 1, biases, false, false,
      true);
  const Word rows = c.steps * c.batch;
  auto tape = tape_of(workspace.view(at::kFloat).narrow(0, 0, rows * plan.ld).view({rows, plan.ld}), c);
  call(native.recall, native.openmp, native.recall_body, plan.shares, c.h, c.batch, c.steps, kForwardInTime, plan.ld,
       address(tape[1]), address(y), address(h), address(memory), address(tape[0]), address(tape[2]), address(tape[3]));
  return {{y, h_last, c_last}, tape};
}

// The same for one example; see `ops.recurrent.native`.
inline Made alone(const Inputs& inputs, const Case& c, const Plan& plan) {
  const auto& [x, w_ih, w_hh, b_ih, b_hh, h, memory] = inputs;
  Tensor gate = at::linear(x.view({c.steps, c.m}), w_ih, if_defined(b_ih));
  Tensor y = fresh({c.steps, 1, c.h}), pre = fresh({4 * c.h}), h_last = fresh({1, 1, c.h}), c_last = fresh({1, 1, c.h});
  auto tape = tape_of(std::move(gate), c);
  std::memcpy(h_last.mutable_data_ptr(), h.const_data_ptr(), sizeof(float) * c.h);
  std::memcpy(c_last.mutable_data_ptr(), memory.const_data_ptr(), sizeof(float) * c.h);
  call(native.alone, native.openmp, native.alone_body, plan.shares, kLSTM, c.h, c.steps, kForwardInTime, address(w_hh),
       address(b_hh), address(pre), address(h_last), address(c_last), address(tape[1]), address(tape[2]),
       address(tape[3]), address(tape[0]), address(y));
  return {{y, h_last, c_last}, tape};
}

// lstm(x, h, c, w_ih, w_hh, b_ih, b_hh, k, selection, kernel) -> (y, h, c), or None: not for this node. Both initial
// states are None for zeros, and both biases where there are none.
inline PyObject* lstm(PyObject*, PyObject* const* a, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 10, "lstm takes 10 arguments, not ", count);
  Inputs inputs;
  constexpr int kPlaces[kInputs] = {0, 5, 6, 1, 2, 3, 4};  // of the first arguments among the inputs
  for (int i = 0; i < kInputs; ++i) {
    if (THPVariable_CheckExact(a[i])) {
      inputs[kPlaces[i]] = THPVariable_Unpack(a[i]);
    } else if (a[i] != Py_None) {
      Py_RETURN_NONE;
    }
  }
  auto& [x, w_ih, w_hh, b_ih, b_hh, h, memory] = inputs;
  const auto unified = is_first(a[8], "unified", "example");
  const auto automatic = is_first(a[9], "auto", "native");
  Case c{};
  if (!unified || !automatic || !set_k(a[7], c) || !recorded() || !x.defined() || !w_ih.defined() || !w_hh.defined() ||
      b_ih.defined() != b_hh.defined() || h.defined() != memory.defined() || x.dim() != 3 || w_hh.dim() != 2 ||
      x.numel() == 0) {
    Py_RETURN_NONE;
  }
  c.steps = x.size(0);
  c.batch = x.size(1);
  c.m = x.size(2);
  c.h = w_hh.size(1);
  if (!fit(inputs, c)) Py_RETURN_NONE;
  for (const Tensor& t : inputs) {
    if (torch::autograd::isFwGradDefined(t)) Py_RETURN_NONE;
  }
  c.threads = native.openmp ? at::get_num_threads() : 1;
  c.unified = *unified;
  c.automatic = *automatic;
  const Plan plan = layer.plan_for(c, [&] { return ask(c); });
  if (!plan.ours || (plan.ld && !at::globalContext().userEnabledMkldnn())) Py_RETURN_NONE;
  if (!h.defined()) {
    h = fresh({1, c.batch, c.h});
    std::memset(h.mutable_data_ptr(), 0, sizeof(float) * h.numel());
    memory = h;
  }

  const auto node = node_from<MePropLSTMBackward>(x, w_ih, w_hh, b_ih, b_hh, h, memory);
  Made made;
  {
    pybind11::gil_scoped_release unlocked;
    at::AutoDispatchBelowADInplaceOrView below;
    made = plan.ld ? several(inputs, c, plan) : alone(inputs, c, plan);
  }
  variable_list& results = made.results;
  if (node) {
    torch::autograd::set_history(results, node);
    node->set(inputs, made.tape, plan, c);
  }
  return pybind11::make_tuple(wrapped(results[0]), wrapped(results[1]), wrapped(results[2])).release().ptr();
  END_HANDLE_TH_ERRORS
}

}  // namespace lstm
