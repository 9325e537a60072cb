// CUDA kernels between the matrix products of a fully connected network: layer normalization with ReLU, forward and
// backward, its parameters' gradients, and `keep`, which restores rows after a rejected proposal.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/dense.cu -o /tmp/dense.o
//
// One warp serves one row. Sums over rows take two steps: one thread adds a few rows of one column, then `add_up` adds
// those sums. Which numbers are added in which order depends on the shape alone.

#include "../dense_ops.h"
#include "launch.h"
#include "quads.h"
#include "reduce.h"

namespace lae {
namespace {

constexpr int kRows = 4;  // rows that a block takes at a time, one warp each
constexpr int kThreads = 32 * kRows;
constexpr int64_t kMaxBlocks = 256;         // blocks that add rows: `add_up` adds one row of sums from each
constexpr int kColumns = 32, kStrands = 8;  // columns in a block of `add_up`, and threads for each column
constexpr int kCopyThreads = 256;
constexpr int kMaxPairs = 48;  // pairs in one launch of `keep`: the pairs are a kernel argument, whose size is limited

// The sum over i < n of f(i), in float64, by one warp; every lane gets it.
template <typename F>
__device__ double row_sum(int64_t n, F f) {
  double s = 0.0;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) s += static_cast<double>(f(i));
  warp_sum(s);
  return s;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) norm_relu_rows(NormReluArgs<T> a) {
  const double size = static_cast<double>(a.d);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / 32; r < a.n;
       r += static_cast<int64_t>(gridDim.x) * kRows) {
    T *y = a.y + r * a.d, *out = a.out + r * a.d;
    const T mean = static_cast<T>(row_sum(a.d, [&](int64_t i) { return y[i]; }) / size);
    const double variance = row_sum(a.d, [&](int64_t i) { return (y[i] - mean) * (y[i] - mean); }) / size;
    const T rstd = static_cast<T>(1.0 / sqrt(variance + a.eps));
    for (int64_t i = threadIdx.x % 32; i < a.d; i += 32) {
      const T normalized = (y[i] - mean) * rstd, value = normalized * a.weight[i] + a.bias[i];
      y[i] = normalized;
      out[i] = value < T(0) ? T(0) : value;  // a NaN stays a NaN
    }
    if (threadIdx.x % 32 == 0) a.rstd[r] = rstd;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) norm_relu_backward_rows(NormReluBackwardArgs<T> a) {
  const double size = static_cast<double>(a.d);
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / 32; r < a.n;
       r += static_cast<int64_t>(gridDim.x) * kRows) {
    const T *grad = a.grad + r * a.d, *out = a.out + r * a.d, *normalized = a.normalized + r * a.d;
    T* y_grad = a.y_grad + r * a.d;
    double sum = 0.0, product = 0.0;
    for (int64_t i = threadIdx.x % 32; i < a.d; i += 32) {
      const T g = (out[i] <= T(0) ? T(0) : grad[i]) * a.weight[i];
      sum += static_cast<double>(g);
      product += static_cast<double>(g * normalized[i]);
    }
    warp_sum(sum, product);
    const T mean = static_cast<T>(sum / size), slope = static_cast<T>(product / size), rstd = a.rstd[r];
    for (int64_t i = threadIdx.x % 32; i < a.d; i += 32) {
      const T g = (out[i] <= T(0) ? T(0) : grad[i]) * a.weight[i];
      y_grad[i] = rstd * (g - mean - normalized[i] * slope);
    }
  }
}

// sums: [gridDim.x, 3, d], one part for each block. The rows of a block lie together.
template <typename T>
__global__ void __launch_bounds__(kThreads) norm_relu_sums_rows(NormReluSumsArgs<T> a, int64_t rows_per_block, T* sums) {
  const int64_t begin = blockIdx.x * rows_per_block, end = begin + rows_per_block < a.n ? begin + rows_per_block : a.n;
  T* own = sums + blockIdx.x * 3 * a.d;
  for (int64_t c = threadIdx.x; c < a.d; c += kThreads) {
    T weight_sum = T(0), bias_sum = T(0), y_sum = T(0);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r * a.d + c;
      const T g = a.out[i] <= T(0) ? T(0) : a.grad[i];
      weight_sum += g * a.normalized[i];
      bias_sum += g;
      y_sum += a.y_grad[i];
    }
    own[c] = weight_sum;
    own[a.d + c] = bias_sum;
    own[2 * a.d + c] = y_sum;
  }
}

// out [n]: the sums over the rows of parts [n_parts, n].
template <typename T>
__global__ void __launch_bounds__(kColumns* kStrands) add_up(const T* parts, int64_t n_parts, int64_t n, T* out) {
  __shared__ T strands[kStrands][kColumns];
  const int column = threadIdx.x % kColumns, strand = threadIdx.x / kColumns;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  T sum = T(0);
  if (c < n)
    for (int64_t p = strand; p < n_parts; p += kStrands) sum += parts[p * n + c];
  strands[strand][column] = sum;
  __syncthreads();
  if (strand != 0 || c >= n) return;
  for (int s = 1; s < kStrands; ++s) sum += strands[s][column];
  out[c] = sum;
}

// The kernel argument of one launch of `keep`: pairs of arrays, as in KeepArgs.
struct Pairs {
  char* latest[kMaxPairs];
  const char* previous[kMaxPairs];
  int64_t row_bytes[kMaxPairs];
  int64_t n_rows;
  const bool* is_accepted;
};

// Copies the units [n_rows, row_units] of all rejected rows, `stride` units apart, beginning with `first`.
template <typename Unit>
__device__ void copy_rejected(Unit* to, const Unit* from, int64_t row_units, int64_t n_rows, const bool* is_accepted,
                              int64_t first, int64_t stride) {
  for (int64_t i = first; i < n_rows * row_units; i += stride)
    if (!is_accepted[n_rows == 1 ? 0 : i / row_units]) to[i] = from[i];
}

// One row of blocks copies one pair; a thread copies 16 bytes at once if both arrays and their rows are aligned.
__global__ void __launch_bounds__(kCopyThreads) keep_pairs(Pairs pairs) {
  if (pairs.n_rows == 1 && *pairs.is_accepted) return;
  char* to = pairs.latest[blockIdx.y];
  const char* from = pairs.previous[blockIdx.y];
  const int64_t row = pairs.row_bytes[blockIdx.y];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kCopyThreads;
  if (is_aligned(to) && is_aligned(from) && row % 16 == 0)
    copy_rejected(reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4*>(from), row / 16, pairs.n_rows,
                  pairs.is_accepted, first, stride);
  else
    copy_rejected(to, from, row, pairs.n_rows, pairs.is_accepted, first, stride);
}

// Blocks for n rows, one warp each.
unsigned row_blocks(int64_t n) {
  const int64_t blocks = (n + kRows - 1) / kRows, most = int64_t{1} << 20;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

struct Cuda {
  using Guard = DeviceGuard;

  template <typename T>
  static void norm_relu(const NormReluArgs<T>& a) {
    if (a.n == 0 || a.d == 0) return;
    launch("norm_relu", {row_blocks(a.n), kThreads}, norm_relu_rows<T>, a);
  }

  template <typename T>
  static void norm_relu_backward(const NormReluBackwardArgs<T>& a) {
    if (a.n == 0 || a.d == 0) return;
    launch("norm_relu_backward", {row_blocks(a.n), kThreads}, norm_relu_backward_rows<T>, a);
  }

  template <typename T>
  static void norm_relu_sums(const NormReluSumsArgs<T>& a) {
    if (a.d == 0) return;
    const int64_t groups = (a.n + kRows - 1) / kRows;  // groups of kRows rows
    const int64_t groups_per_block = (groups + kMaxBlocks - 1) / kMaxBlocks;
    const int64_t blocks = groups == 0 ? 0 : (groups + groups_per_block - 1) / groups_per_block;
    Tensor workspace = new_workspace(blocks < 2 ? 0 : (blocks * 3 * a.d * sizeof(T) + 7) / 8);
    T* sums = blocks == 1 ? a.sums : static_cast<T*>(workspace.data_ptr());
    if (blocks > 0)
      launch("norm_relu_sums", {static_cast<unsigned>(blocks), kThreads}, norm_relu_sums_rows<T>, a,
             groups_per_block * kRows, sums);
    if (blocks == 1) return;
    const int64_t columns = (3 * a.d + kColumns - 1) / kColumns;
    launch("norm_relu_sums", {static_cast<unsigned>(columns), kColumns * kStrands}, add_up<T>, sums, blocks, 3 * a.d,
           a.sums);
  }

  static void keep(const KeepArgs& a) {
    for (size_t begin = 0; begin < a.latest.size(); begin += kMaxPairs) {
      const size_t n = a.latest.size() - begin < kMaxPairs ? a.latest.size() - begin : kMaxPairs;
      Pairs pairs = {};
      pairs.n_rows = a.n_rows;
      pairs.is_accepted = a.is_accepted;
      int64_t longest = 0;
      for (size_t i = 0; i < n; ++i) {
        pairs.latest[i] = a.latest[begin + i];
        pairs.previous[i] = a.previous[begin + i];
        pairs.row_bytes[i] = a.row_bytes[begin + i];
        longest = longest < pairs.row_bytes[i] ? pairs.row_bytes[i] : longest;
      }
      const int64_t blocks = (a.n_rows * longest + 16 * kCopyThreads - 1) / (16 * kCopyThreads);
      const dim3 grid(static_cast<unsigned>(blocks < 64 ? blocks : 64), static_cast<unsigned>(n));
      launch("keep", {grid, kCopyThreads}, keep_pairs, pairs);
    }
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::DenseOps<lae::Cuda>::register_with(library);
}
