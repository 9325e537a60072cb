// CUDA kernels of Adam: one launch counts the steps, and one serves 64 parameters. PyTorch's fused kernel gives a block
// 65,536 elements, so that a small network's parameters occupy a few multiprocessors; here a block has 1,024.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/adam.cu -o /tmp/adam.o
//
// The formula, and its roundings, are those of PyTorch's fused kernel.

#include "../adam_ops.h"
#include "launch.h"
#include "quads.h"

namespace lae {
namespace {

constexpr int kThreads = 256, kEach = 4;  // threads in a block, and elements of each
constexpr int kMost = 64;  // parameters in one launch, a power of two: they are a kernel argument, whose size is limited

// The parameters of one launch, as in AdamArgs.
template <typename T>
struct Parameters {
  T* values[kMost];
  const T* grads[kMost];
  T *means[kMost], *squares[kMost];
  int64_t sizes[kMost];
  unsigned first_blocks[kMost];  // of the grid; beyond the last parameter the greatest number
};

struct Steps {
  float* steps[kMost];
  int n;
};

template <typename T>
struct Betas {
  T first, second;
};

// What the number t of a step says: all elements of a parameter share it.
template <typename T>
struct Scales {
  T step_size;  // lr / (1 - beta1^t)
  T root;       // sqrt(1 - beta2^t)
};

// One thread counts a parameter's steps, before the elements move.
template <typename T>
__global__ void __launch_bounds__(kMost) count_steps(Steps a, const float* lr, Betas<T> beta, Scales<T>* scales) {
  const int p = threadIdx.x;
  if (p >= a.n) return;
  const float t = *a.steps[p] + 1.0f;
  *a.steps[p] = t;
  scales[p] = {static_cast<T>(*lr) / (T(1) - std::pow(beta.first, static_cast<T>(t))),
               std::sqrt(T(1) - std::pow(beta.second, static_cast<T>(t)))};
}

template <typename T>
__device__ void move(T& value, T grad, T& mean, T& square, Scales<T> s, Betas<T> beta, T eps) {
  const T grad_square = grad * grad;
  mean = std::fma(beta.first, mean, std::fma(-beta.first, grad, grad));
  square = std::fma(beta.second, square, std::fma(-beta.second, grad_square, grad_square));
  value -= s.step_size * mean / (std::sqrt(square) / s.root + eps);
}

// The last parameter that begins with this block or before.
template <typename T>
__device__ int parameter_of(const Parameters<T>& a, unsigned block) {
  int p = 0;
  for (int half = kMost / 2; half > 0; half /= 2)
    if (block >= a.first_blocks[p + half]) p += half;
  return p;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) move_all(const __grid_constant__ Parameters<T> a, const Scales<T>* scales,
                                                     Betas<T> beta, T eps) {
  const int p = parameter_of(a, blockIdx.x);
  const int64_t begin = (static_cast<int64_t>(blockIdx.x - a.first_blocks[p]) * kThreads + threadIdx.x) * kEach;
  const int64_t left = a.sizes[p] - begin;
  if (left <= 0) return;
  T *values = a.values[p] + begin, *means = a.means[p] + begin, *squares = a.squares[p] + begin;
  const T* grads = a.grads[p] + begin;
  const Scales<T> s = scales[p];
  if (left >= kEach && is_aligned(values) && is_aligned(means) && is_aligned(squares) && is_aligned(grads)) {
    Quad<T> value = *reinterpret_cast<Quad<T>*>(values), mean = *reinterpret_cast<Quad<T>*>(means),
            square = *reinterpret_cast<Quad<T>*>(squares);
    const Quad<T> grad = *reinterpret_cast<const Quad<T>*>(grads);
    for (int k = 0; k < kEach; ++k) move(value.v[k], grad.v[k], mean.v[k], square.v[k], s, beta, eps);
    *reinterpret_cast<Quad<T>*>(values) = value;
    *reinterpret_cast<Quad<T>*>(means) = mean;
    *reinterpret_cast<Quad<T>*>(squares) = square;
  } else {
    for (int k = 0; k < kEach && k < left; ++k) move(values[k], grads[k], means[k], squares[k], s, beta, eps);
  }
}

struct Cuda {
  using Guard = DeviceGuard;

  template <typename T>
  static void adam(const AdamArgs<T>& a) {
    const Betas<T> beta = {static_cast<T>(a.beta1), static_cast<T>(a.beta2)};
    for (size_t begin = 0; begin < a.sizes.size(); begin += kMost) {
      Parameters<T> parameters = {};
      Steps steps = {};
      unsigned blocks = 0;
      for (int p = 0; p < kMost; ++p) {
        parameters.first_blocks[p] = ~0u;
        if (begin + p >= a.sizes.size()) continue;
        const size_t i = begin + p;
        parameters.values[p] = a.params[i];
        parameters.grads[p] = a.grads[i];
        parameters.means[p] = a.exp_avgs[i];
        parameters.squares[p] = a.exp_avg_sqs[i];
        parameters.sizes[p] = a.sizes[i];
        parameters.first_blocks[p] = blocks;
        steps.steps[p] = a.steps[i];
        steps.n = p + 1;
        constexpr int64_t kChunk = int64_t{kThreads} * kEach;
        blocks += static_cast<unsigned>((a.sizes[i] + kChunk - 1) / kChunk);
      }
      Tensor workspace = new_workspace(2 * steps.n);
      auto* scales = static_cast<Scales<T>*>(workspace.data_ptr());
      launch("adam_", {1, kMost}, count_steps<T>, steps, a.lr, beta, scales);
      if (blocks > 0) launch("adam_", {blocks, kThreads}, move_all<T>, parameters, scales, beta, static_cast<T>(a.eps));
    }
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::AdamOps<lae::Cuda>::register_with(library);
}
