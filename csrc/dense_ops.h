// The ops between the matrix products of a fully connected network, as torch calls them. A backend is a struct with
// norm_relu(NormReluArgs<T>), norm_relu_backward(NormReluBackwardArgs<T>), norm_relu_sums(NormReluSumsArgs<T>),
// keep(KeepArgs) and a Guard.
// Schemas and meaning: lae_fast/ops/dense.py.
#pragma once

#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "tensors.h"

namespace lae {

template <typename T>
struct NormReluArgs {
  int64_t n, d;
  T* y;                    // [n, d], in: y; out: y normalized
  const T *weight, *bias;  // [d]
  double eps;
  T* out;                  // [n, d], out
  T* rstd;                 // [n], out
};

template <typename T>
struct NormReluBackwardArgs {
  int64_t n, d;
  const T *grad, *out, *normalized, *rstd;  // [n, d], the gradient of `out`; [n, d], [n, d], [n]
  const T* weight;                          // [d]
  T* y_grad;                                // [n, d], out
};

template <typename T>
struct NormReluSumsArgs {
  int64_t n, d;
  const T *grad, *out, *normalized, *y_grad;  // [n, d] each, as above
  T* sums;                                    // [3, d], out: the gradients of weight and bias, the column sums of y_grad
};

// Pairs of arrays of the same size, each of n_rows rows. Where is_accepted [n_rows] is false, the row of `previous` is
// copied over that of `latest`.
struct KeepArgs {
  std::vector<char*> latest;
  std::vector<const char*> previous;
  std::vector<int64_t> row_bytes;
  int64_t n_rows;
  const bool* is_accepted;
};

template <class Backend>
struct DenseOps {
  static std::tuple<Tensor, Tensor> norm_relu(Tensor y, Tensor weight, Tensor bias, double eps) {
    const Check check("norm_relu", y);
    check.state("y", y);
    const int64_t n = y.size(0), d = y.size(1);
    check.array("weight", weight, y.scalar_type(), {d});
    check.array("bias", bias, y.scalar_type(), {d});
    const typename Backend::Guard guard(y);
    Tensor out = torch::stable::empty_like(y), rstd = torch::stable::new_empty(y, {n});
    for_type(y, [&](auto type) {
      using T = decltype(type);
      Backend::norm_relu(NormReluArgs<T>{n, d, pointer<T>(y), pointer<T>(weight), pointer<T>(bias), eps,
                                         pointer<T>(out), pointer<T>(rstd)});
    });
    return {out, rstd};
  }

  static Tensor norm_relu_backward(Tensor grad, Tensor out, Tensor normalized, Tensor rstd, Tensor weight) {
    const Check check("norm_relu_backward", grad);
    check.state("grad", grad);
    const int64_t n = grad.size(0), d = grad.size(1);
    check.like("out", out);
    check.like("normalized", normalized);
    check.array("rstd", rstd, grad.scalar_type(), {n});
    check.array("weight", weight, grad.scalar_type(), {d});
    const typename Backend::Guard guard(grad);
    Tensor y_grad = torch::stable::empty_like(grad);
    for_type(grad, [&](auto type) {
      using T = decltype(type);
      Backend::norm_relu_backward(NormReluBackwardArgs<T>{n, d, pointer<T>(grad), pointer<T>(out),
                                                          pointer<T>(normalized), pointer<T>(rstd),
                                                          pointer<T>(weight), pointer<T>(y_grad)});
    });
    return y_grad;
  }

  static Tensor norm_relu_sums(Tensor grad, Tensor out, Tensor normalized, Tensor y_grad) {
    const Check check("norm_relu_sums", grad);
    check.state("grad", grad);
    const int64_t n = grad.size(0), d = grad.size(1);
    for (const auto& [name, t] : {std::pair{"out", &out}, {"normalized", &normalized}, {"y_grad", &y_grad}})
      check.like(name, *t);
    const typename Backend::Guard guard(grad);
    Tensor sums = torch::stable::new_empty(grad, {3, d});
    for_type(grad, [&](auto type) {
      using T = decltype(type);
      Backend::norm_relu_sums(NormReluSumsArgs<T>{n, d, pointer<T>(grad), pointer<T>(out), pointer<T>(normalized),
                                                  pointer<T>(y_grad), pointer<T>(sums)});
    });
    return sums;
  }

  static void keep(std::vector<Tensor> latest, std::vector<Tensor> previous, Tensor is_accepted) {
    const Check check("keep", is_accepted);
    STD_TORCH_CHECK(is_accepted.dim() == 1 && is_accepted.size(0) > 0,
                    "lae_fast::keep: is_accepted must be [n] with n >= 1");
    const int64_t n_rows = is_accepted.size(0);
    check.array("is_accepted", is_accepted, ScalarType::Bool, {n_rows});
    STD_TORCH_CHECK(latest.size() == previous.size(), "lae_fast::keep: latest and previous differ in length");
    KeepArgs args{{}, {}, {}, n_rows, pointer<const bool>(is_accepted)};
    for (size_t i = 0; i < latest.size(); ++i) {
      const Tensor &a = latest[i], &b = previous[i];
      const auto to = a.sizes(), from = b.sizes();
      STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && std::equal(to.begin(), to.end(), from.begin(), from.end()),
                      "lae_fast::keep: latest and previous differ in shape or dtype");
      for (const Tensor* t : {&a, &b})
        STD_TORCH_CHECK(t->is_contiguous() && t->is_cuda() == is_accepted.is_cuda() &&
                            t->get_device_index() == is_accepted.get_device_index(),
                        "lae_fast::keep: every tensor must be contiguous, on the device of is_accepted");
      STD_TORCH_CHECK(n_rows == 1 || (a.dim() > 0 && a.size(0) == n_rows),
                      "lae_fast::keep: a tensor has not as many rows as is_accepted");
      if (a.numel() == 0) continue;
      args.latest.push_back(pointer<char>(a));
      args.previous.push_back(pointer<const char>(b));
      args.row_bytes.push_back(a.numel() * a.element_size() / n_rows);
    }
    const typename Backend::Guard guard(is_accepted);
    Backend::keep(args);
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("norm_relu", TORCH_BOX(&DenseOps::norm_relu));
    library.impl("norm_relu_backward", TORCH_BOX(&DenseOps::norm_relu_backward));
    library.impl("norm_relu_sums", TORCH_BOX(&DenseOps::norm_relu_sums));
    library.impl("keep", TORCH_BOX(&DenseOps::keep));
  }
};

}  // namespace lae
