// A linear layer of a network as one op, with the layer norm and ReLU of its input, as torch calls it. A backend is a
// struct with layer_forward(LayerForwardArgs), a constant kMaxInner and a Guard. float32 only.
// Schemas and meaning: lae_fast/ops/layer.py.
#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "tensors.h"

namespace lae {

// A row's moments are kept for each 32 columns: their mean, and the sum of the squared distances from it.
constexpr int kPart = 32;
inline int64_t parts_of(int64_t width) {
  return (width + kPart - 1) / kPart;
}

struct LayerForwardArgs {
  int64_t n, k, m;
  const float* x;                         // [n, k]: what the previous layer gave, before its norm and ReLU
  const float* moments;                   // [n, parts of k, 2] of x; null: x is the input itself
  const float *norm_weight, *norm_bias;   // [k], or null
  float eps;
  const float *weight, *bias;             // [m, k], [m]
  float* y;                               // [n, m], out
  float* y_moments;                       // [n, parts of m, 2], out
};

template <class Backend>
struct LayerOps {
  static void check_width(const char* op, const char* name, int64_t width) {
    STD_TORCH_CHECK(width > 0 && width % 4 == 0, "lae_fast::", op, ": ", name, " must have a multiple of 4 columns");
  }
  static void check_inner(const char* op, int64_t width) {
    STD_TORCH_CHECK(width <= Backend::kMaxInner, "lae_fast::", op, ": the product's inner dimension is ", width,
                    ", of which a block holds ", Backend::kMaxInner);
  }
  // Loads are of 16 bytes.
  static void check_array(const Check& check, const char* op, const char* name, const Tensor& t,
                          std::initializer_list<int64_t> shape) {
    check.array(name, t, ScalarType::Float, shape);
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0, "lae_fast::", op, ": ", name,
                    " must begin at a multiple of 16 bytes");
  }
  // The norm and ReLU after a tensor [n, width].
  static void check_norm(const Check& check, const char* op, int64_t n, int64_t width, const Tensor& moments,
                         const std::optional<Tensor>& weight, const std::optional<Tensor>& bias) {
    STD_TORCH_CHECK(weight && bias, "lae_fast::", op, ": moments without the weight and bias of a norm");
    check_array(check, op, "moments", moments, {n, parts_of(width), 2});
    check_array(check, op, "norm_weight", *weight, {width});
    check_array(check, op, "norm_bias", *bias, {width});
  }

  static std::tuple<Tensor, Tensor> forward(Tensor x, Tensor weight, Tensor bias, std::optional<Tensor> moments,
                                            std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                                            double eps) {
    constexpr const char* op = "layer_forward";
    const Check check(op, x);
    STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2, "lae_fast::", op, ": x must be [n, k], weight [m, k]");
    const int64_t n = x.size(0), k = x.size(1), m = weight.size(0);
    check_width(op, "x", k), check_width(op, "y", m), check_inner(op, k);
    check_array(check, op, "x", x, {n, k});
    check_array(check, op, "weight", weight, {m, k});
    check_array(check, op, "bias", bias, {m});
    if (moments) check_norm(check, op, n, k, *moments, norm_weight, norm_bias);
    const typename Backend::Guard guard(x);
    Tensor y = torch::stable::new_empty(x, {n, m});
    Tensor y_moments = torch::stable::new_empty(x, {n, parts_of(m), 2});
    Backend::layer_forward(LayerForwardArgs{n, k, m, pointer<float>(x), pointer<float>(moments),
                                            pointer<float>(norm_weight), pointer<float>(norm_bias),
                                            static_cast<float>(eps), pointer<float>(weight), pointer<float>(bias),
                                            pointer<float>(y), pointer<float>(y_moments)});
    return {y, y_moments};
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("layer_forward", TORCH_BOX(&LayerOps::forward));
  }
};

}  // namespace lae
