// Adam as torch calls it, for GPUs alone: on a CPU PyTorch's own fused Adam serves. A backend is a struct with
// adam(AdamArgs<T>) and a Guard. Schema and meaning: lae_fast/ops/adam.py.
#pragma once

#include <vector>

#include <torch/csrc/stable/library.h>

#include "check.h"
#include "tensors.h"

namespace lae {

// One element of each vector for a parameter.
template <typename T>
struct AdamArgs {
  std::vector<T*> params;  // in, out
  std::vector<const T*> grads;
  std::vector<T*> exp_avgs, exp_avg_sqs;  // in, out
  std::vector<float*> steps;              // [] each, in: how many were taken; out: this one, too
  std::vector<int64_t> sizes;
  const float* lr;  // []
  double beta1, beta2, eps;
};

template <class Backend>
struct AdamOps {
  static void adam_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
                    std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> steps, Tensor lr, double beta1, double beta2,
                    double eps) {
    const Check check("adam_", lr);
    check.array("lr", lr, ScalarType::Float, {});
    const size_t n = params.size();
    STD_TORCH_CHECK(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n && steps.size() == n,
                    "lae_fast::adam_: the lists differ in length");
    if (n == 0) return;
    const ScalarType type = params[0].scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "lae_fast::adam_: params must be float32 or float64");
    for (size_t i = 0; i < n; ++i) {
      for (const auto& [name, list] : {std::pair{"params", &params}, {"grads", &grads}, {"exp_avgs", &exp_avgs},
                                       {"exp_avg_sqs", &exp_avg_sqs}}) {
        const Tensor& t = (*list)[i];
        const auto sizes = t.sizes(), expected = params[i].sizes();
        STD_TORCH_CHECK(t.scalar_type() == type && std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()),
                        "lae_fast::adam_: ", name, " differ from params in shape or dtype");
        STD_TORCH_CHECK(t.is_contiguous() && t.is_cuda() == lr.is_cuda() &&
                            t.get_device_index() == lr.get_device_index(),
                        "lae_fast::adam_: ", name, " must be contiguous, on the device of lr");
      }
      check.array("steps", steps[i], ScalarType::Float, {});
    }
    const typename Backend::Guard guard(lr);
    for_type(params[0], [&](auto element) {
      using T = decltype(element);
      AdamArgs<T> args{{}, {}, {}, {}, {}, {}, pointer<const float>(lr), beta1, beta2, eps};
      for (size_t i = 0; i < n; ++i) {
        args.params.push_back(pointer<T>(params[i]));
        args.grads.push_back(pointer<const T>(grads[i]));
        args.exp_avgs.push_back(pointer<T>(exp_avgs[i]));
        args.exp_avg_sqs.push_back(pointer<T>(exp_avg_sqs[i]));
        args.steps.push_back(pointer<float>(steps[i]));
        args.sizes.push_back(params[i].numel());
      }
      Backend::adam(args);
    });
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("adam_", TORCH_BOX(&AdamOps::adam_));
  }
};

}  // namespace lae
