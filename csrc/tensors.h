// From torch's tensors to plain pointers of the right type.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace lae {

template <typename T>
T* pointer(const torch::stable::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <typename T>
T* pointer(const std::optional<torch::stable::Tensor>& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

// Calls f(float{}) or f(double{}), whichever type the tensor has.
template <typename F>
void for_type(const torch::stable::Tensor& t, F f) {
  if (t.scalar_type() == torch::headeronly::ScalarType::Float)
    f(float{});
  else
    f(double{});
}

// The guard of the CPU, where no device has to be made current.
struct NoGuard {
  explicit NoGuard(const torch::stable::Tensor&) {}
};

}  // namespace lae
