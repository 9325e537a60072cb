// CUDA kernels of whole layers: a product on tensor cores, with the layer norm and ReLU of its input done while it is
// read, and what the next layer's norm must know of the output, its moments, while it is written. Backward alike.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/layer.cu -o /tmp/layer.o
//
// A block makes 32 x 32 numbers of a product from all of its inner dimension, which shared memory holds as pairs of
// halves. The minibatches of a chain are small: a block waits for memory most of its time, and multiplies little of it.

#include "../layer_ops.h"
#include "halves.h"
#include "launch.h"
#include "reduce.h"
#include "row_norm.h"

namespace lae {
namespace {

constexpr int kTile = kPart, kWarps = 8, kThreads = 32 * kWarps;
constexpr int kLanes = kTile / 4;  // threads for a row of the tile, four neighbouring columns each
constexpr int kSumStride = kTile + 4;
constexpr int kMaxInner = 896;  // 227 KiB of shared memory hold that many
constexpr int kStep = 16;  // of the inner dimension, in one product of the tensor cores
static_assert(kThreads == kTile * kLanes);

__host__ __device__ int padded(int inner) {
  return (inner + kStep - 1) / kStep * kStep;
}
// Words from row to row: rows that are read together begin in banks of their own.
__host__ __device__ int stride_of(int inner) {
  return padded(inner) / 2 + 4;
}
size_t shared_bytes(int inner) {
  const size_t operands = size_t{4} * kTile * stride_of(inner), sums = kWarps * kTile * kSumStride;
  return 4 * (operands > sums ? operands : sums);
}

// 32 rows of a factor in shared memory, the inner dimension along the rows.
template <typename Format>
struct Operand {
  uint32_t *high, *low;
  int stride;

  __device__ Operand(uint32_t* words, int inner)
      : high(words), low(words + kTile * stride_of(inner)), stride(stride_of(inner)) {}

  // Two neighbouring numbers of a row, the first at an even place.
  __device__ void put(int row, int i, float x, float y) const {
    const uint32_t word = Format::pack(x, y);
    const float2 rounded = Format::unpack(word);
    high[row * stride + i / 2] = word;
    low[row * stride + i / 2] = Format::pack((x - rounded.x) * Format::kLow, (y - rounded.y) * Format::kLow);
  }
  // Writes a row by kLanes threads: four numbers f(i) from i on, and zeros up to a whole step; only zeros where the row is
  // not inside.
  template <typename F>
  __device__ void fill_row(int row, bool is_inside, int inner, F f) const {
#pragma unroll 4
    for (int i = threadIdx.x % kLanes * 4; i < padded(inner); i += kLanes * 4) {
      float4 v = {0, 0, 0, 0};
      if (is_inside && i < inner) v = f(i);
      put(row, i, v.x, v.y);
      put(row, i + 2, v.z, v.w);
    }
  }
  // Writes the columns [column, column + 32) of a matrix [inner, width] as rows, by all threads; beyond the matrix zeros.
  // Eight neighbours in a warp take pairs of the matrix's rows, and write to as many banks.
  __device__ void fill_columns(const float* matrix, int inner, int width, int column) const {
    const int own = threadIdx.x / 8 % kLanes * 4, pair = threadIdx.x % 8 + threadIdx.x / (8 * kLanes) * 8;
#pragma unroll 4
    for (int i = 2 * pair; i < padded(inner); i += 2 * kThreads / kLanes) {
      float4 even = {0, 0, 0, 0}, odd = even;
      if (i < inner && column + own < width) {
        even = four(matrix + static_cast<int64_t>(i) * width + column + own);
        odd = four(matrix + static_cast<int64_t>(i + 1) * width + column + own);
      }
      put(own, i, even.x, odd.x);
      put(own + 1, i, even.y, odd.y);
      put(own + 2, i, even.z, odd.z);
      put(own + 3, i, even.w, odd.w);
    }
  }
};

// The product x w^T of two operands: each thread gets four neighbouring numbers of row threadIdx.x / kLanes. A warp
// multiplies the whole tile over its share of the inner dimension. Tensor cores cut their sums off, so they add no more
// than 16 products of high parts: float32 does the rest. `sums` may be the operands' memory.
template <typename Format>
__device__ float4 multiply(const Operand<Format>& x, const Operand<Format>& w, int inner, float* sums) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;  // as in halves.h
  float product[2][4][4] = {}, correction[2][4][4] = {};
  __syncthreads();
  for (int k = kStep * warp; k < inner; k += kStep * kWarps) {
    uint32_t x_high[2][4], x_low[2][4];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 4; ++j) {
        const int at = (16 * i + 8 * (j % 2) + g) * x.stride + k / 2 + 4 * (j / 2) + t;
        x_high[i][j] = x.high[at];
        x_low[i][j] = x.low[at];
      }
    for (int j = 0; j < 4; ++j) {
      uint32_t w_high[2], w_low[2];
      for (int h = 0; h < 2; ++h) {
        const int at = (8 * j + g) * w.stride + k / 2 + 4 * h + t;
        w_high[h] = w.high[at];
        w_low[h] = w.low[at];
      }
      for (int i = 0; i < 2; ++i) {
        Format::multiply(correction[i][j], x_low[i], w_high);
        Format::multiply(correction[i][j], x_high[i], w_low);
        float step[4] = {};
        Format::multiply(step, x_high[i], w_high);
        for (int e = 0; e < 4; ++e) product[i][j][e] += step[e];
      }
    }
  }
  __syncthreads();
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int h = 0; h < 2; ++h) {
        const float *p = product[i][j] + 2 * h, *c = correction[i][j] + 2 * h;
        *reinterpret_cast<float2*>(sums + (warp * kTile + 16 * i + 8 * h + g) * kSumStride + 8 * j + 2 * t) = {
            p[0] + c[0] / Format::kLow, p[1] + c[1] / Format::kLow};
      }
  __syncthreads();
  float4 v = {0, 0, 0, 0};
  const int row = threadIdx.x / kLanes, column = threadIdx.x % kLanes * 4;
  for (int w = 0; w < kWarps; ++w)
    v = v + four(sums + (w * kTile + row) * kSumStride + column);
  return v;
}

// How many of a row's `width` columns a part has; 0 beyond the last part.
__device__ float size_of(int part, int width) {
  const int left = width - part * kPart;
  return static_cast<float>(left < 0 ? 0 : left < kPart ? left : kPart);
}

// What kLanes threads share of a row's parts: loaded early, needed late.
struct RowParts {
  float2 own[kMaxInner / kPart / kLanes + 1] = {};

  __device__ RowParts(bool is_inside, const float* array, int64_t row, int width) {
    const int n_parts = (width + kPart - 1) / kPart;
    const float2* parts = reinterpret_cast<const float2*>(array) + row * n_parts;
    for_own([&](int part, float2& values) {
      if (is_inside && part < n_parts) values = parts[part];
    });
  }
  template <typename F>
  __device__ void for_own(F f) {
#pragma unroll
    for (int i = 0; i < kMaxInner / kPart / kLanes + 1; ++i) f(threadIdx.x % kLanes + i * kLanes, own[i]);
  }
};

// A row's statistics from the moments of its parts (Chan, Golub, LeVeque 1983).
struct RowNorm : Norm {
  __device__ RowNorm(RowParts moments, int width, float eps) {
    moments.for_own([&](int part, float2& values) { mean += size_of(part, width) * values.x; });
    warp_sum<kLanes>(mean);
    mean /= static_cast<float>(width);
    float squares = 0;
    moments.for_own([&](int part, float2& values) {
      const float distance = values.x - mean;
      squares += values.y + size_of(part, width) * (distance * distance);
    });
    warp_sum<kLanes>(squares);
    rstd = 1 / sqrtf(squares / static_cast<float>(width) + eps);
  }
};

// What each block of a kernel works at: 32 rows and 32 columns of its product.
struct Tile {
  int64_t row;  // a thread's
  int row_of_tile;
  int column, first_column;  // the first of the thread's four, of the tile

  __device__ Tile()
      : row(static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x / kLanes),
        row_of_tile(threadIdx.x / kLanes),
        column(blockIdx.y * kTile + threadIdx.x % kLanes * 4),
        first_column(blockIdx.y * kTile) {}

  // Whether the thread is the one of all blocks' that writes what they all know of its row.
  __device__ bool is_first() const { return blockIdx.y == 0 && threadIdx.x % kLanes == 0; }
};

// Loads come early, so that their time is that of others, too.
__global__ void __launch_bounds__(kThreads) forward_tile(LayerForwardArgs a) {
  const int k = static_cast<int>(a.k), m = static_cast<int>(a.m);
  uint32_t* words = dynamic_shared<uint32_t>();
  const Operand<Float16> x(words, k), w(words + 2 * kTile * x.stride, k);
  const Tile tile;
  const bool has_row = tile.row < a.n, is_inside = has_row && tile.column < m;
  const float *x_row = a.x + tile.row * k,
              *w_row = a.weight + static_cast<int64_t>(tile.first_column + tile.row_of_tile) * k;
  const RowParts moments(has_row && a.moments, a.moments, tile.row, k);
  const float4 bias = four_if(is_inside, a.bias, tile.column);
  w.fill_row(tile.row_of_tile, tile.first_column + tile.row_of_tile < m, k, [&](int i) { return four(w_row + i); });
  if (a.moments) {
    const RowNorm norm(moments, k, a.eps);
    if (has_row && tile.is_first()) reinterpret_cast<float2*>(a.x_statistics)[tile.row] = {norm.mean, norm.rstd};
    x.fill_row(tile.row_of_tile, has_row, k, [&](int i) {
      return each([&](float x, float weight, float bias) { return relu(affine(norm.normalized(x), weight, bias)); },
                  four(x_row + i), four(a.norm_weight + i), four(a.norm_bias + i));
    });
  } else {
    x.fill_row(tile.row_of_tile, has_row, k, [&](int i) { return four(x_row + i); });
  }
  const float4 v = multiply(x, w, k, reinterpret_cast<float*>(words)) + bias;

  if (is_inside) *reinterpret_cast<float4*>(a.y + tile.row * m + tile.column) = v;
  float mean = is_inside ? (v.x + v.y) + (v.z + v.w) : 0;
  warp_sum<kLanes>(mean);
  mean /= size_of(blockIdx.y, m);
  const float4 square = each([&](float y) { return (y - mean) * (y - mean); }, v);
  float squares = is_inside ? (square.x + square.y) + (square.z + square.w) : 0;
  warp_sum<kLanes>(squares);
  if (is_inside && threadIdx.x % kLanes == 0)
    reinterpret_cast<float2*>(a.y_moments)[tile.row * gridDim.y + blockIdx.y] = {mean, squares};
}

// The same, and the row's means of the gradient from the sums of its parts.
struct RowNormBackward : NormBackward {
  __device__ RowNormBackward(const RowParts& moments, RowParts sums, int width, float eps)
      : NormBackward{RowNorm(moments, width, eps)} {
    sums.for_own([&](int, float2& values) {
      mean += values.x;
      slope += values.y;
    });
    warp_sum<kLanes>(mean, slope);
    mean /= static_cast<float>(width);
    slope /= static_cast<float>(width);
  }
};

__global__ void __launch_bounds__(kThreads) backward_tile(LayerBackwardArgs a) {
  const int k = static_cast<int>(a.k), m = static_cast<int>(a.m);
  uint32_t* words = dynamic_shared<uint32_t>();
  const Operand<Bfloat16> g(words, m), w(words + 2 * kTile * g.stride, m);
  const Tile tile;
  const bool has_row = tile.row < a.n, is_inside = has_row && tile.column < k, has_input_norm = is_inside && a.x;
  const float* grad_row = a.grad + tile.row * m;
  const RowParts moments(has_row && a.y, a.y_moments, tile.row, m), sums(has_row && a.y, a.y_sums, tile.row, m);
  w.fill_columns(a.weight, m, k, tile.first_column);
  if (a.y) {
    const RowNormBackward back(moments, sums, m, a.y_eps);
    if (has_row && tile.is_first()) reinterpret_cast<float2*>(a.y_means)[tile.row] = {back.mean, back.slope};
    const float* y_row = a.y + tile.row * m;
    g.fill_row(tile.row_of_tile, has_row, m, [&](int i) {
      return each([&](float grad, float weight, float y) { return back(grad * weight, y); }, four(grad_row + i),
                  four(a.y_norm_weight + i), four(y_row + i));
    });
  } else {
    g.fill_row(tile.row_of_tile, has_row, m, [&](int i) { return four(grad_row + i); });
  }
  const RowParts x_moments(has_row && a.x, a.x_moments, tile.row, k);
  const float4 x = four_if(has_input_norm, a.x, tile.row * k + tile.column),
               weight = four_if(has_input_norm, a.x_norm_weight, tile.column),
               bias = four_if(has_input_norm, a.x_norm_bias, tile.column);
  float4 v = multiply(g, w, m, reinterpret_cast<float*>(words));

  if (a.x) {
    const RowNorm norm(x_moments, k, a.x_eps);
    float sum = 0, product = 0;
    const auto through = [&](float gradient, float x, float weight, float bias) {
      const float normalized = norm.normalized(x);
      const float kept = affine(normalized, weight, bias) <= 0 ? 0 : gradient;
      sum += kept * weight;
      product += kept * weight * normalized;
      return kept;
    };
    v = each(through, v, x, weight, bias);
    warp_sum<kLanes>(sum, product);
    if (is_inside && threadIdx.x % kLanes == 0)
      reinterpret_cast<float2*>(a.x_sums)[tile.row * gridDim.y + blockIdx.y] = {sum, product};
  }
  if (is_inside) *reinterpret_cast<float4*>(a.x_grad + tile.row * k + tile.column) = v;
}

struct Cuda {
  using Guard = DeviceGuard;
  static constexpr int kMaxInner = lae::kMaxInner;

  static Shape shape_of(int64_t rows, int64_t columns, int64_t inner) {
    check_tensor_cores();
    const auto tiles = [](int64_t n) { return static_cast<unsigned>((n + kTile - 1) / kTile); };
    return {dim3(tiles(rows), tiles(columns)), kThreads, shared_bytes(static_cast<int>(inner))};
  }

  static void layer_forward(const LayerForwardArgs& a) {
    if (a.n > 0) launch("layer_forward", shape_of(a.n, a.m, a.k), forward_tile, a);
  }

  static void layer_backward(const LayerBackwardArgs& a) {
    if (a.n > 0) launch("layer_backward", shape_of(a.n, a.k, a.m), backward_tile, a);
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::LayerOps<lae::Cuda>::register_with(library);
}
