// CUDA kernel of a network's weight gradients: one launch for all layers, on tensor cores. Norm, ReLU and the norm's
// backward pass happen while it reads what the layers' own kernels (layer.cu) gave.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/layer_gradients.cu -o /tmp/layer_gradients.o
//
// A block makes 64 x 64 numbers of a weight's gradient, a sum over all rows of the minibatch; or the sums of 64 columns, for
// bias and norm. The report's decoder has 113 blocks, each on a multiprocessor of its own. What takes time is to read, norm
// and round the factors, not to multiply them: smaller tiles would do that more often. 512 threads have 128 registers each,
// all of them in use: the norm's weights are therefore read anew, from L1, wherever they are needed.

#include "../layer_ops.h"
#include "halves.h"
#include "launch.h"
#include "row_norm.h"

namespace lae {
namespace {

constexpr int kTile = 64, kThreads = 512;
constexpr int kRows = 64;           // of the minibatch, that are multiplied at once
constexpr int kGroups = kTile / 4;  // of four neighbouring columns
constexpr int kMost = 16;           // layers in one launch: they are a kernel argument, whose size is limited
static_assert(kThreads == kRows / 2 * kGroups);  // each loads two rows of a group

constexpr int kStride = kTile + 8;  // words from one pair of rows to the next: a warp's loads meet in no bank
constexpr int kOperand = kRows / 2 * kStride;  // words
constexpr int kBuffer = 4 * kOperand;          // high and low parts of two operands
constexpr int kStep = 16;                      // rows in one product of the tensor cores
constexpr int kShares = kRows / kStep;         // warps that share the rows: four make the tile, 32 x 32 each
static_assert(kThreads / 32 == 4 * kShares && kShares * kTile * kStride <= 2 * kBuffer);

struct Layers {
  int n;
  LayerGradientArgs layers[kMost];
  unsigned first_blocks[kMost + 1];  // of the grid; beyond the last layer the number of all
};

__host__ __device__ unsigned n_tiles(int width) {
  return static_cast<unsigned>((width + kTile - 1) / kTile);
}
// Of a row of tiles: the last block makes the column sums.
__host__ __device__ unsigned n_blocks_across(const LayerGradientArgs& a) {
  return n_tiles(a.k) + 1;
}

// Four columns of a layer's input; beyond its last column the last ones once more, which nobody stores.
template <bool kHasNorm>
struct Input {
  struct Row {
    float4 x;
    float2 statistics;
  };
  const LayerGradientArgs& a;
  int column;

  __device__ Input(const LayerGradientArgs& a, int column) : a(a), column(min(column, a.k - 4)) {}
  __device__ Row load(int row) const {
    return {four(a.x + static_cast<int64_t>(row) * a.k + column),
            kHasNorm ? two(a.x_statistics + 2 * int64_t{row}) : float2{0, 0}};
  }
  __device__ float4 operator()(const Row& r) const {
    if constexpr (!kHasNorm) return r.x;
    const Norm norm = {r.statistics.x, r.statistics.y};
    return each([&](float x, float weight, float bias) { return relu(affine(norm.normalized(x), weight, bias)); }, r.x,
                four(a.x_norm_weight + column), four(a.x_norm_bias + column));
  }
};

// Four columns of the gradient at a linear layer's output.
template <bool kHasNorm>
struct Gradient {
  struct Row {
    float4 grad, y;
    float2 statistics, means;

    __device__ Norm norm() const { return {statistics.x, statistics.y}; }
  };
  const LayerGradientArgs& a;
  int column;

  __device__ Gradient(const LayerGradientArgs& a, int column) : a(a), column(min(column, a.m - 4)) {}
  __device__ Row load(int row) const {
    const int64_t i = static_cast<int64_t>(row) * a.m + column;
    Row r = {four(a.grad + i), {}, {}, {}};
    if (kHasNorm) {
      r.y = four(a.y + i);
      r.statistics = two(a.y_statistics + 2 * int64_t{row});
      r.means = two(a.y_means + 2 * int64_t{row});
    }
    return r;
  }
  __device__ float4 operator()(const Row& r) const {
    if constexpr (!kHasNorm) return r.grad;
    const NormBackward back = {r.norm(), r.means.x, r.means.y};
    return each([&](float grad, float weight, float y) { return back(grad * weight, y); }, r.grad,
                four(a.y_norm_weight + column), r.y);
  }
};

__device__ float4 kept_if(bool is_kept, const float4& v) {
  return is_kept ? v : float4{0, 0, 0, 0};
}

// kRows rows of a factor in shared memory. A word holds a column's numbers in two neighbouring rows, as the tensor cores
// take them, which add along the rows.
struct Operand {
  uint32_t *high, *low;

  __device__ explicit Operand(uint32_t* words) : high(words), low(words + kOperand) {}

  __device__ void put(int pair, int column, const float4& even, const float4& odd) const {
    uint32_t high_words[4], low_words[4];
    const float x[4] = {even.x, even.y, even.z, even.w}, y[4] = {odd.x, odd.y, odd.z, odd.w};
    for (int i = 0; i < 4; ++i) {
      high_words[i] = Bfloat16::pack(x[i], y[i]);
      const float2 rounded = Bfloat16::unpack(high_words[i]);
      low_words[i] = Bfloat16::pack(x[i] - rounded.x, y[i] - rounded.y);
    }
    const int at = pair * kStride + column;
    *reinterpret_cast<uint4*>(high + at) = {high_words[0], high_words[1], high_words[2], high_words[3]};
    *reinterpret_cast<uint4*>(low + at) = {low_words[0], low_words[1], low_words[2], low_words[3]};
  }
};

// Adds the product g^T x of kStep rows to 32 x 32 numbers of a warp's. Tensor cores cut their sums off, so float32 adds up
// the steps.
__device__ void add_product(float (&sum)[2][4][4], const Operand& g, const Operand& x, int pair, int row, int column) {
  const int lane = threadIdx.x % 32 / 4, t = threadIdx.x % 4;  // g and t in halves.h
  uint32_t g_high[2][4], g_low[2][4];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j) {
      const int at = (pair + 4 * (j / 2) + t) * kStride + row + 16 * i + 8 * (j % 2) + lane;
      g_high[i][j] = g.high[at];
      g_low[i][j] = g.low[at];
    }
  for (int j = 0; j < 4; ++j) {
    uint32_t x_high[2], x_low[2];
    for (int h = 0; h < 2; ++h) {
      const int at = (pair + 4 * h + t) * kStride + column + 8 * j + lane;
      x_high[h] = x.high[at];
      x_low[h] = x.low[at];
    }
    for (int i = 0; i < 2; ++i) {
      float step[4] = {};
      Bfloat16::multiply(step, g_low[i], x_high);
      Bfloat16::multiply(step, g_high[i], x_low);
      Bfloat16::multiply(step, g_high[i], x_high);
      for (int e = 0; e < 4; ++e) sum[i][j][e] += step[e];
    }
  }
}

// The numbers [first_row, + kTile) x [first_column, + kTile) of a weight's gradient. Two buffers: while some warps multiply
// what is in one, others fill the other one; and what comes next is on its way from memory.
template <bool kHasInputNorm, bool kHasNorm>
__device__ void make_tile(const LayerGradientArgs& a, int n, int first_row, int first_column) {
  uint32_t* words = dynamic_shared<uint32_t>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Of what it loads: a warp takes 32 neighbouring columns of four pairs of rows.
  const int pair = warp / 2 * 4 + lane / 8, own = warp % 2 * 32 + lane % 8 * 4;
  const Gradient<kHasNorm> gradient(a, first_row + own);
  const Input<kHasInputNorm> input(a, first_column + own);
  typename Gradient<kHasNorm>::Row even_grad, odd_grad;
  typename Input<kHasInputNorm>::Row even_x, odd_x;
  const auto load = [&](int first) {  // beyond the last row that one once more
    const int even = min(first + 2 * pair, n - 1), odd = min(first + 2 * pair + 1, n - 1);
    even_grad = gradient.load(even), odd_grad = gradient.load(odd);
    even_x = input.load(even), odd_x = input.load(odd);
  };
  // Of what it multiplies: one of four parts of the tile, over one of kShares parts of the rows.
  const int share = warp / 4, row = warp / 2 % 2 * 32, column = warp % 2 * 32;
  const bool is_needed = first_row + row < a.m && first_column + column < a.k;
  const int n_own = is_needed ? n - share * kStep : 0;  // it takes part while `first` is below
  float sum[2][4][4] = {};
  if (n > 0) load(0);
  for (int first = 0; first < n; first += kRows) {
    uint32_t* buffer = words + first / kRows % 2 * kBuffer;
    const Operand g(buffer), x(buffer + 2 * kOperand);
    x.put(pair, own, input(even_x), input(odd_x));
    const int n_left = n - first - 2 * pair;
    g.put(pair, own, kept_if(n_left > 0, gradient(even_grad)), kept_if(n_left > 1, gradient(odd_grad)));
    if (first + kRows < n) load(first + kRows);
    __syncthreads();
    if (first < n_own) add_product(sum, g, x, share * kStep / 2, row, column);
  }
  __syncthreads();
  float* sums = reinterpret_cast<float*>(words);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int h = 0; h < 2; ++h) {
        const int at = (share * kTile + row + 16 * i + 8 * h + g) * kStride + column + 8 * j + 2 * t;
        *reinterpret_cast<float2*>(sums + at) = {sum[i][j][2 * h], sum[i][j][2 * h + 1]};
      }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kGroups; i += kThreads) {
    const int r = i / kGroups, c = i % kGroups * 4;
    if (first_row + r >= a.m || first_column + c >= a.k) continue;
    float4 v = four(sums + r * kStride + c);
    for (int s = 1; s < kShares; ++s) v = v + four(sums + (s * kTile + r) * kStride + c);
    *reinterpret_cast<float4*>(a.weight_grad + static_cast<int64_t>(first_row + r) * a.k + first_column + c) = v;
  }
}

// The sums over all rows that give the gradients of bias and norm, for the columns [first, first + kTile). A thread adds
// every 32nd row of four columns.
template <bool kHasNorm>
__device__ void make_sums(const LayerGradientArgs& a, int n, int first) {
  constexpr int kKinds = 3, kTeams = kThreads / kGroups;
  float* sums = dynamic_shared<float>();  // [kKinds, kTeams, kTile]
  const int team = threadIdx.x / kGroups, own = threadIdx.x % kGroups * 4;
  const Gradient<kHasNorm> gradient(a, first + own);
  float4 of_kind[kKinds] = {};  // of the gradient at the layer; of grad times the normalized number; of grad
#pragma unroll 4
  for (int row = team; row < n; row += kTeams) {
    const typename Gradient<kHasNorm>::Row r = gradient.load(row);
    const float4 normalized = each([&](float y) { return r.norm().normalized(y); }, r.y);
    of_kind[0] = of_kind[0] + gradient(r);
    of_kind[1] = of_kind[1] + each([](float grad, float normalized) { return grad * normalized; }, r.grad, normalized);
    of_kind[2] = of_kind[2] + r.grad;
  }
  for (int kind = 0; kind < kKinds; ++kind)
    *reinterpret_cast<float4*>(sums + (kind * kTeams + team) * kTile + own) = of_kind[kind];
  __syncthreads();
  const int kind = threadIdx.x / kTile, column = threadIdx.x % kTile;
  if (kind >= (kHasNorm ? kKinds : 1) || first + column >= a.m) return;
  float sum = 0;
  for (int t = 0; t < kTeams; ++t) sum += sums[(kind * kTeams + t) * kTile + column];
  (kind == 0 ? a.bias_grad : kind == 1 ? a.y_norm_weight_grad : a.y_norm_bias_grad)[first + column] = sum;
}

__global__ void __launch_bounds__(kThreads) all_layers(const __grid_constant__ Layers all) {
  int i = 0;
  while (blockIdx.x >= all.first_blocks[i + 1]) ++i;
  const LayerGradientArgs& a = all.layers[i];
  const unsigned block = blockIdx.x - all.first_blocks[i], across = n_blocks_across(a), column = block % across;
  const int first_row = static_cast<int>(block / across) * kTile;
  const int first_column = static_cast<int>(column) * kTile;
  const bool x_has_norm = a.x_norm_weight, y_has_norm = a.y_norm_weight;  // not by what has n rows: of none it is null
  if (column + 1 == across)
    y_has_norm ? make_sums<true>(a, all.n, first_row) : make_sums<false>(a, all.n, first_row);
  else if (x_has_norm && y_has_norm)
    make_tile<true, true>(a, all.n, first_row, first_column);
  else if (x_has_norm)
    make_tile<true, false>(a, all.n, first_row, first_column);
  else if (y_has_norm)
    make_tile<false, true>(a, all.n, first_row, first_column);
  else
    make_tile<false, false>(a, all.n, first_row, first_column);
}

struct Cuda {
  using Guard = DeviceGuard;

  static void layer_gradients(const LayerGradientsArgs& a) {
    check_tensor_cores();
    for (size_t begin = 0; begin < a.layers.size(); begin += kMost) {
      Layers all = {static_cast<int>(a.n), {}, {}};
      unsigned n_blocks = 0;
      for (int i = 0; i < kMost; ++i) {
        if (begin + i < a.layers.size()) {
          all.layers[i] = a.layers[begin + i];
          n_blocks += n_tiles(all.layers[i].m) * n_blocks_across(all.layers[i]);
        }
        all.first_blocks[i + 1] = n_blocks;
      }
      launch("layer_gradients", {n_blocks, kThreads, sizeof(uint32_t) * 2 * kBuffer}, all_layers, all);
    }
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::LayerGradientsOps<lae::Cuda>::register_with(library);
}
