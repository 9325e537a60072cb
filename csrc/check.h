// Argument checks of the compiled ops. lae_fast/ops/ validates for people; these few checks keep a raw torch.ops call
// from touching memory that it does not own.
#pragma once

#include <algorithm>
#include <initializer_list>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace lae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Checks the arguments of one op; every message names the op and the argument. All arguments must be on the device of
// `reference`; those that `like` checks must have its type and shape, too.
class Check {
 public:
  Check(const char* op, const Tensor& reference) : op_(op), reference_(reference) {}

  // A chain state: float32 or float64 [C, D].
  void state(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(t.dim() == 2, "lae_fast::", op_, ": ", name, " must be [C, D]");
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double,
                    "lae_fast::", op_, ": ", name, " must be float32 or float64");
    array(name, t, t.scalar_type(), {t.size(0), t.size(1)});
  }
  void like(const char* name, const Tensor& t) const {
    array(name, t, reference_.scalar_type(), {reference_.size(0), reference_.size(1)});
  }
  void array(const char* name, const Tensor& t, ScalarType type, std::initializer_list<int64_t> shape) const {
    const auto sizes = t.sizes();
    STD_TORCH_CHECK(t.scalar_type() == type, "lae_fast::", op_, ": ", name, " has the wrong dtype");
    STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), "lae_fast::", op_,
                    ": ", name, " has the wrong shape");
    STD_TORCH_CHECK(t.is_contiguous(), "lae_fast::", op_, ": ", name, " must be contiguous");
    STD_TORCH_CHECK(t.is_cuda() == reference_.is_cuda() &&
                        t.get_device_index() == reference_.get_device_index(),
                    "lae_fast::", op_, ": ", name, " is on another device");
  }
  // One step size for each chain, or one for all: returns how many there are.
  int64_t step_sizes(const char* name, const Tensor& t) const {
    const int64_t n = t.numel() == 1 ? 1 : reference_.size(0);
    array(name, t, ScalarType::Double, {n});
    return n;
  }

 private:
  const char* op_;
  const Tensor& reference_;
};

}  // namespace lae
