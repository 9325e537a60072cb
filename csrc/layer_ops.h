// A linear layer of a network as one op, with the layer norm and ReLU of its input, as torch calls it; and the gradients of
// all layers' parameters as one. float32 only.
// Schemas and meaning: lae_fast/ops/layer.py.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

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
  float* x_statistics;                    // [n, 2], out: mean and 1 / standard deviation of x; or null
};

// From the gradient at the layer's end to that of its input. A norm and ReLU after the layer is that of y = x weight^T + bias,
// one before it that of x. What a norm's backward pass must know of its gradient, `sums`, is kept for each 32 columns: the
// sums of g and of g times the normalized number, where g is the gradient, after ReLU, times the norm's weight.
struct LayerBackwardArgs {
  int64_t n, k, m;
  const float* grad;                               // [n, m]
  const float *y, *y_moments, *y_norm_weight;      // [n, m], [n, parts of m, 2], [m]; or null: grad is that of y
  const float* y_sums;                             // [n, parts of m, 2], of grad
  float y_eps;
  const float* weight;                             // [m, k]
  const float *x, *x_moments;                      // [n, k], [n, parts of k, 2]; or null: x is the input itself
  const float *x_norm_weight, *x_norm_bias;        // [k]
  float x_eps;
  float* x_grad;                                   // [n, k], out; 0 where the ReLU of x cut off
  float* x_sums;                                   // [n, parts of k, 2], out; or null
  float* y_means;                                  // [n, 2], out: sums of y_sums / m; or null
};

inline void check_width(const char* op, const char* name, int64_t width) {
  STD_TORCH_CHECK(width > 0 && width % 4 == 0, "lae_fast::", op, ": ", name, " must have a multiple of 4 columns");
}
// Loads are of 16 bytes.
inline void check_array(const Check& check, const char* op, const char* name, const Tensor& t,
                        std::initializer_list<int64_t> shape) {
  check.array(name, t, ScalarType::Float, shape);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0, "lae_fast::", op, ": ", name,
                  " must begin at a multiple of 16 bytes");
}
// What belongs to a norm is there as a whole.
inline void check_array(const Check& check, const char* op, const char* name, const std::optional<Tensor>& t,
                        std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(t, "lae_fast::", op, ": ", name, " is missing beside the other tensors of its norm");
  check_array(check, op, name, *t, shape);
}

// The backend is a struct with layer_forward(LayerForwardArgs), layer_backward(LayerBackwardArgs), a constant kMaxInner and a
// Guard.
template <class Backend>
struct LayerOps {
  static void check_inner(const char* op, int64_t width) {
    STD_TORCH_CHECK(width <= Backend::kMaxInner, "lae_fast::", op, ": a product's inner dimension, or a norm's width, is ",
                    width, "; expected at most ", Backend::kMaxInner);
  }

  static std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor weight, Tensor bias, std::optional<Tensor> moments,
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
    if (moments) {
      check_array(check, op, "moments", moments, {n, parts_of(k), 2});
      check_array(check, op, "norm_weight", norm_weight, {k});
      check_array(check, op, "norm_bias", norm_bias, {k});
    }
    const typename Backend::Guard guard(x);
    Tensor y = torch::stable::new_empty(x, {n, m});
    Tensor y_moments = torch::stable::new_empty(x, {n, parts_of(m), 2});
    Tensor x_statistics = torch::stable::new_empty(x, {moments ? n : 0, 2});
    Backend::layer_forward(LayerForwardArgs{n, k, m, pointer<float>(x), pointer<float>(moments),
                                            pointer<float>(norm_weight), pointer<float>(norm_bias),
                                            static_cast<float>(eps), pointer<float>(weight), pointer<float>(bias),
                                            pointer<float>(y), pointer<float>(y_moments),
                                            moments ? pointer<float>(x_statistics) : nullptr});
    return {y, y_moments, x_statistics};
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor weight, std::optional<Tensor> y,
                                                     std::optional<Tensor> y_moments,
                                                     std::optional<Tensor> y_norm_weight, std::optional<Tensor> y_sums,
                                                     double y_eps, std::optional<Tensor> x,
                                                     std::optional<Tensor> x_moments,
                                                     std::optional<Tensor> x_norm_weight,
                                                     std::optional<Tensor> x_norm_bias, double x_eps) {
    constexpr const char* op = "layer_backward";
    const Check check(op, grad);
    STD_TORCH_CHECK(grad.dim() == 2 && weight.dim() == 2, "lae_fast::", op, ": grad must be [n, m], weight [m, k]");
    const int64_t n = grad.size(0), m = grad.size(1), k = weight.size(1);
    check_width(op, "grad", m), check_width(op, "weight", k), check_inner(op, m);
    check_array(check, op, "grad", grad, {n, m});
    check_array(check, op, "weight", weight, {m, k});
    if (y) {
      check_array(check, op, "y", y, {n, m});
      check_array(check, op, "y_moments", y_moments, {n, parts_of(m), 2});
      check_array(check, op, "y_norm_weight", y_norm_weight, {m});
      check_array(check, op, "y_sums", y_sums, {n, parts_of(m), 2});
    }
    if (x) {
      check_inner(op, k);
      check_array(check, op, "x", x, {n, k});
      check_array(check, op, "x_moments", x_moments, {n, parts_of(k), 2});
      check_array(check, op, "x_norm_weight", x_norm_weight, {k});
      check_array(check, op, "x_norm_bias", x_norm_bias, {k});
    }
    const typename Backend::Guard guard(grad);
    Tensor x_grad = torch::stable::new_empty(grad, {n, k});
    Tensor x_sums = torch::stable::new_empty(grad, {n, x ? parts_of(k) : 0, 2});
    Tensor y_means = torch::stable::new_empty(grad, {y ? n : 0, 2});
    Backend::layer_backward(LayerBackwardArgs{
        n, k, m, pointer<float>(grad), pointer<float>(y), pointer<float>(y_moments), pointer<float>(y_norm_weight),
        pointer<float>(y_sums), static_cast<float>(y_eps), pointer<float>(weight), pointer<float>(x),
        pointer<float>(x_moments), pointer<float>(x_norm_weight), pointer<float>(x_norm_bias),
        static_cast<float>(x_eps), pointer<float>(x_grad), x ? pointer<float>(x_sums) : nullptr,
        y ? pointer<float>(y_means) : nullptr});
    return {x_grad, x_sums, y_means};
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("layer_forward", TORCH_BOX(&LayerOps::forward));
    library.impl("layer_backward", TORCH_BOX(&LayerOps::backward));
  }
};

// What makes the gradients of a layer y = a weight^T + bias.
struct LayerGradientArgs {
  int k, m;
  const float* x;             // [n, k]: the input a, or what the previous layer gave, before its norm and ReLU
  const float* x_statistics;  // [n, 2]: mean and 1 / standard deviation of x; null: a = x
  const float *x_norm_weight, *x_norm_bias;  // [k]
  const float* grad;          // [n, m]: the gradient of the norm that follows, after the ReLU's derivative; or that of y
  const float *y, *y_statistics;             // [n, m], [n, 2]; null: no norm follows
  const float *y_norm_weight, *y_means;      // [m]; [n, 2]: the means of grad y_norm_weight, and of that times y normalized
  float *weight_grad, *bias_grad;            // [m, k], [m], out
  float *y_norm_weight_grad, *y_norm_bias_grad;  // [m], out; or null
};

struct LayerGradientsArgs {
  int64_t n;
  std::vector<LayerGradientArgs> layers;
};

// The gradients of all layers of a network. The backend has layer_gradients(LayerGradientsArgs) and a Guard.
template <class Backend>
struct LayerGradientsOps {
  static std::vector<Tensor> layer_gradients(std::vector<Tensor> inputs, std::vector<Tensor> statistics,
                                             std::vector<Tensor> norm_weights, std::vector<Tensor> norm_biases,
                                             std::vector<Tensor> grads, std::vector<Tensor> means) {
    constexpr const char* op = "layer_gradients";
    const size_t n_layers = inputs.size(), n_norms = n_layers - 1;
    STD_TORCH_CHECK(n_layers > 0 && grads.size() == n_layers && statistics.size() == n_norms &&
                        norm_weights.size() == n_norms && norm_biases.size() == n_norms && means.size() == n_norms,
                    "lae_fast::", op, ": the lists do not fit in length");
    const Check check(op, inputs[0]);
    STD_TORCH_CHECK(inputs[0].dim() == 2, "lae_fast::", op, ": inputs must be [n, k]");
    const int64_t n = inputs[0].size(0);
    STD_TORCH_CHECK(n < 1 << 30, "lae_fast::", op, ": ", n, " rows; expected less than 2^30");
    for (size_t i = 0; i < n_layers; ++i) {
      STD_TORCH_CHECK(inputs[i].dim() == 2 && grads[i].dim() == 2, "lae_fast::", op, ": inputs and grads must be matrices");
      const int64_t k = inputs[i].size(1), m = grads[i].size(1);
      check_width(op, "inputs", k), check_width(op, "grads", m);
      check_array(check, op, "inputs", inputs[i], {n, k});
      check_array(check, op, "grads", grads[i], {n, m});
      if (i == n_norms) continue;
      check_array(check, op, "inputs", inputs[i + 1], {n, m});
      check_array(check, op, "statistics", statistics[i], {n, 2});
      check_array(check, op, "norm_weights", norm_weights[i], {m});
      check_array(check, op, "norm_biases", norm_biases[i], {m});
      check_array(check, op, "means", means[i], {n, 2});
    }
    const typename Backend::Guard guard(inputs[0]);
    std::vector<Tensor> result;
    const auto next = [&](std::initializer_list<int64_t> shape) {
      result.push_back(torch::stable::new_empty(inputs[0], shape));
      return pointer<float>(result.back());
    };
    LayerGradientsArgs args{n, {}};
    for (size_t i = 0; i < n_layers; ++i) {
      const int64_t k = inputs[i].size(1), m = grads[i].size(1);
      LayerGradientArgs a{static_cast<int>(k), static_cast<int>(m), pointer<float>(inputs[i])};
      a.grad = pointer<float>(grads[i]);
      if (i > 0) {
        a.x_statistics = pointer<float>(statistics[i - 1]);
        a.x_norm_weight = pointer<float>(norm_weights[i - 1]);
        a.x_norm_bias = pointer<float>(norm_biases[i - 1]);
      }
      a.weight_grad = next({m, k});
      a.bias_grad = next({m});
      if (i < n_norms) {
        a.y = pointer<float>(inputs[i + 1]);
        a.y_statistics = pointer<float>(statistics[i]);
        a.y_norm_weight = pointer<float>(norm_weights[i]);
        a.y_means = pointer<float>(means[i]);
        a.y_norm_weight_grad = next({m});
        a.y_norm_bias_grad = next({m});
      }
      args.layers.push_back(a);
    }
    Backend::layer_gradients(args);
    return result;
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("layer_gradients", TORCH_BOX(&LayerGradientsOps::layer_gradients));
  }
};

}  // namespace lae
