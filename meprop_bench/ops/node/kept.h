// The memory of a dense weight gradient, kept from step to step: `meprop_bench/ops/kernels/kept.py` says what for, and
// when it is taken again; the same rules in C++.

#pragma once

#include <c10/core/TensorImpl.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "node.h"

namespace kept {

using at::Tensor;
using node::fresh;
using node::Word;

// The gradient of one weight that was handed out last.
class Record {
 public:
  // A gradient that is being computed: dw (n, m), and `written` and `seed` of `Target` in Python. Where the record is busy or
  // somebody has its memory, dw is fresh and nothing is known of its rows.
  class Loan {
   public:
    Loan() = default;

    Loan(Record* record, Word n, Word m) : record_(record) {
      if (record) lock_ = std::unique_lock<std::mutex>(record->mutex_, std::try_to_lock);
      if (lock_.owns_lock()) dw = record->taken(n, m);
      if (!dw.defined()) {
        record_ = nullptr;
        dw = fresh({n, m});
        return;
      }
      written = reinterpret_cast<Word>(record->written_.const_data_ptr());
      seed = record->seed_;
    }

    // Hand it out: all rows are computed.
    Tensor done() && {
      if (record_) record_->give(dw);
      return std::move(dw);
    }

    Tensor dw;
    Word written = 0, seed = 0;

   private:
    Record* record_ = nullptr;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  std::mutex mutex_;  // only ever tried: who does not get it takes fresh memory, also after a fork
  Tensor last_;       // an alias: it shares the storage and the count of changes
  const void* place_ = nullptr;
  uint32_t version_ = 0, seen_ = 0;  // the count of changes when it was handed out, and when it was last not free
  Tensor written_;
  bool found_ = false;  // whether zeros turned out to be none
  int missed_ = 0;
  Word seed_ = 0;

  static c10::StorageImpl* storage_of(const Tensor& t) {
    return t.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  }

  // Whether the storage has the memory that it was made with, and no less of it.
  bool in_place(c10::StorageImpl* storage, Word n, Word m) const {
    const auto& data = storage->_mutable_data_ptr_no_checks();
    return data.get() == place_ && data.get_context() == place_ &&
           storage->sym_nbytes() == c10::SymInt(static_cast<Word>(sizeof(float)) * n * m);
  }

  // Nobody else has it, nor may get it by a weak reference.
  static bool unused(c10::StorageImpl* storage) {
    auto pointer = c10::intrusive_ptr<c10::StorageImpl>::reclaim(storage);  // to look, not to own
    const bool alone = pointer.use_count() == 1 && pointer.weak_use_count() == 1;
    pointer.release();
    std::atomic_thread_fence(std::memory_order_acquire);  // what others did to it before they left is seen
    return alone;
  }

  // A gradient to be computed; undefined where it has to be fresh.
  Tensor taken(Word n, Word m) {
    c10::StorageImpl* storage = nullptr;
    bool trusted = false;
    if (last_.defined()) {
      storage = storage_of(last_);
      const uint32_t version = last_.unsafeGetTensorImpl()->version_counter().current_version();
      if (last_.size(0) != n || last_.size(1) != m || !in_place(storage, n, m)) {
        storage = nullptr;
      } else if (!unused(storage)) {
        // An accumulating gradient changes from one to the next; what does not may be held for long.
        missed_ = version == seen_ ? missed_ + 1 : 0;
        seen_ = version;
        if (missed_ < 2) return {};
        storage = nullptr;
      }
      trusted = storage && version == version_ && !found_;
    }
    missed_ = 0;
    Tensor dw = storage ? over(n, m) : fresh({n, m});
    last_.reset();
    if (!written_.defined() || written_.numel() != n + 1) written_ = fresh({n + 1}, at::kByte);
    auto* flags = static_cast<uint8_t*>(written_.mutable_data_ptr());
    if (!trusted) std::memset(flags, 1, n);
    flags[n] = 0;
    ++seed_;
    return dw;
  }

  // A new tensor in the memory of the last one, with its own count of changes.
  Tensor over(Word n, Word m) const {
    auto dw = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(last_.unsafeGetTensorImpl()->unsafe_storage()), last_.key_set(), last_.dtype());
    dw.unsafeGetTensorImpl()->set_sizes_contiguous({n, m});
    return dw;
  }

  void give(const Tensor& dw) {
    const auto* impl = dw.unsafeGetTensorImpl();
    found_ = found_ || static_cast<const uint8_t*>(written_.const_data_ptr())[written_.numel() - 1];
    last_ = Tensor(impl->shallow_copy_and_detach(impl->version_counter(), /*allow_tensor_metadata_change=*/false));
    place_ = storage_of(dw)->_mutable_data_ptr_no_checks().get();
    version_ = seen_ = impl->version_counter().current_version();
  }
};

// The records of all weights that have one, under the interpreter's lock; a weight's goes when Python's object does.
struct Entry {
  std::shared_ptr<Record> record;
  PyObject* weight;  // a weak reference
};

inline auto& records() {
  static auto& all = *new std::unordered_map<const void*, Entry>;  // never destroyed: it outlives the interpreter
  return all;
}

// The weight that had this address is gone; `self` is the address.
inline PyObject* forget(PyObject* self, PyObject* gone) {
  const auto found = records().find(PyLong_AsVoidPtr(self));
  if (found != records().end() && found->second.weight == gone) {
    const Entry entry = std::move(found->second);
    records().erase(found);
    Py_DECREF(entry.weight);
  }
  Py_RETURN_NONE;
}

inline PyMethodDef forgetting = {"forget", forget, METH_O, nullptr};

// The record of a weight, by Python's object of it; nothing where that takes no weak references.
inline std::shared_ptr<Record> record_of(PyObject* weight) {
  const auto found = records().find(weight);
  if (found != records().end()) return found->second.record;
  const auto key = pybind11::reinterpret_steal<pybind11::object>(PyLong_FromVoidPtr(weight));
  const auto callback = pybind11::reinterpret_steal<pybind11::object>(
      key ? PyCFunction_New(&forgetting, key.ptr()) : nullptr);
  PyObject* reference = callback ? PyWeakref_NewRef(weight, callback.ptr()) : nullptr;
  if (!reference) {
    PyErr_Clear();
    return nullptr;
  }
  return records().emplace(weight, Entry{std::make_shared<Record>(), reference}).first->second.record;
}

}  // namespace kept
