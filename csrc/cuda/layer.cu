// CUDA kernels of whole layers: a product on tensor cores, with the layer norm and ReLU of its input done while it is
// read, and what the next layer's norm must know of the output, its moments, while it is written. Backward alike.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/layer.cu -o /tmp/layer.o
//
// A block makes 32 x 32 numbers of a product from all of its inner dimension, which shared memory holds as pairs of
// halves. The minibatches of a chain are small: a block waits for memory most of its time, and multiplies little of it. So
// it has many warps, and each of them has the loads of 256 columns of its rows under way at once.

#include "../layer_ops.h"
#include "halves.h"
#include "launch.h"
#include "reduce.h"
#include "row_norm.h"

namespace lae {
namespace {

constexpr int kTile = kPart, kWarps = 16, kThreads = 32 * kWarps;
constexpr int kRows = kTile / kWarps;  // of a tile, by a warp
constexpr int kLanes = 32 / kRows;     // threads for a row of the tile where it ends, two neighbouring columns each
constexpr int kSlices = kWarps / 2;    // of the inner dimension: two warps multiply half of the tile each
constexpr int kSumStride = kTile + 8;  // what a half of a warp writes lies in banks of its own
constexpr int kMaxInner = 896;         // 227 KiB of shared memory hold that many, of compute capability 9.0
constexpr int kStep = 16;              // of the inner dimension, in one product of the tensor cores
static_assert(kLanes * 2 == kTile);

__host__ __device__ int padded(int inner) {
  return (inner + kStep - 1) / kStep * kStep;
}

// Four neighbouring numbers as two words of high parts, and two of low ones.
template <typename Format>
__device__ void store_four(uint32_t* high, uint32_t* low, const float4& v) {
  const auto low_part = [](uint32_t word, float x, float y) {
    const float2 rounded = Format::unpack(word);
    return Format::pack((x - rounded.x) * Format::kLow, (y - rounded.y) * Format::kLow);
  };
  const uint2 words = {Format::pack(v.x, v.y), Format::pack(v.z, v.w)};
  *reinterpret_cast<uint2*>(high) = words;
  *reinterpret_cast<uint2*>(low) = {low_part(words.x, v.x, v.y), low_part(words.y, v.z, v.w)};
}

// 32 rows of a factor in shared memory, the inner dimension along the rows.
template <typename Format>
struct Rows {
  uint32_t *high, *low;
  int stride;

  // Words from row to row: rows that are read together begin in banks of their own.
  static __host__ __device__ int stride_of(int inner) { return padded(inner) / 2 + 4; }
  static __host__ __device__ int n_words(int inner) { return 2 * kTile * stride_of(inner); }

  __device__ Rows(uint32_t* words, int inner)
      : high(words), low(words + kTile * stride_of(inner)), stride(stride_of(inner)) {}

  // A warp writes its kRows rows, the first of which is `row`: f(i, v) gives v[r], four numbers of each from i on. Zeros up
  // to a whole step.
  template <typename F>
  __device__ void fill(int row, int inner, F f) const {
#pragma unroll 2
    for (int i = threadIdx.x % 32 * 4; i < padded(inner); i += 128) {
      float4 v[kRows] = {};
      if (i < inner) f(i, v);
      for (int r = 0; r < kRows; ++r) {
        const int at = (row + r) * stride + i / 2;
        store_four<Format>(high + at, low + at, v[r]);
      }
    }
  }

  // The left factor [16, 16] of a product of the tensor cores, from `row` and inner number k on.
  static __device__ void load_left(uint32_t (&a)[4], const uint32_t* part, int stride, int row, int k) {
    const int lane = threadIdx.x % 32;
    load_matrices(a, part + (row + lane % 16) * stride + k / 2 + 4 * (lane / 16));
  }
  // Two right factors [8, 16], of the rows [8 j, 8 j + 16).
  __device__ void load_right(uint32_t (&b)[4], const uint32_t* part, int j, int k) const {
    const int lane = threadIdx.x % 32;
    load_matrices(b, part + (8 * (j + lane / 16) + lane % 8) * stride + k / 2 + 4 * (lane / 8 % 2));
  }
};

// 32 columns of a factor [inner, width] in shared memory, as they lie in the matrix: the inner dimension goes down.
template <typename Format>
struct Columns {
  static constexpr int kWords = kTile / 2;  // of a row
  uint32_t *high, *low;

  static __host__ __device__ int n_words(int inner) { return 2 * padded(inner) * kWords; }

  __device__ Columns(uint32_t* words, int inner) : high(words), low(words + padded(inner) * kWords) {}

  // The place of four words of a row. Rows that are read together have them in banks of their own.
  static __device__ int place(int row, int fourth) { return row * kWords + 4 * (fourth ^ (row / 2 % 4)); }

  // All threads write the columns [column, column + 32), eight of them a row; beyond the matrix zeros.
  __device__ void fill(const float* matrix, int inner, int width, int column) const {
    const int own = threadIdx.x % 8;
#pragma unroll 4
    for (int i = threadIdx.x / 8; i < padded(inner); i += kThreads / 8) {
      float4 v = {0, 0, 0, 0};
      if (i < inner && column + 4 * own < width) v = four(matrix + static_cast<int64_t>(i) * width + column + 4 * own);
      const int at = place(i, own / 2) + own % 2 * 2;
      store_four<Format>(high + at, low + at, v);
    }
  }

  // Two right factors [8, 16], of the columns [8 j, 8 j + 16).
  __device__ void load_right(uint32_t (&b)[4], const uint32_t* part, int j, int k) const {
    const int lane = threadIdx.x % 32;
    load_matrices<true>(b, part + place(k + lane % 16, j + lane / 16));
  }
};

// The product x w^T of two factors: each thread gets two neighbouring numbers of row threadIdx.x / kLanes. A warp
// multiplies half of the tile over its slice of the inner dimension. Tensor cores cut their sums off, so they add no more
// than 16 products of high parts: float32 does the rest. `sums` may be the memory of w.
template <typename Format, typename Right>
__device__ float2 multiply(const Rows<Format>& x, const Right& w, int inner, float* sums) {
  const int warp = threadIdx.x / 32, slice = warp / 2, row = 16 * (warp % 2);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;  // as in halves.h
  float product[4][4] = {}, correction[4][4] = {};
  __syncthreads();
  for (int k = kStep * slice; k < inner; k += kStep * kSlices) {
    uint32_t x_high[4], x_low[4];
    x.load_left(x_high, x.high, x.stride, row, k);
    x.load_left(x_low, x.low, x.stride, row, k);
    for (int j = 0; j < 4; j += 2) {
      uint32_t w_high[4], w_low[4];
      w.load_right(w_high, w.high, j, k);
      w.load_right(w_low, w.low, j, k);
      for (int h = 0; h < 2; ++h) {
        const uint32_t high[2] = {w_high[2 * h], w_high[2 * h + 1]}, low[2] = {w_low[2 * h], w_low[2 * h + 1]};
        Format::multiply(correction[j + h], x_low, high);
        Format::multiply(correction[j + h], x_high, low);
        float step[4] = {};
        Format::multiply(step, x_high, high);
        for (int e = 0; e < 4; ++e) product[j + h][e] += step[e];
      }
    }
  }
  __syncthreads();
  for (int j = 0; j < 4; ++j)
    for (int h = 0; h < 2; ++h) {
      const float *p = product[j] + 2 * h, *c = correction[j] + 2 * h;
      *reinterpret_cast<float2*>(sums + (slice * kTile + row + 8 * h + g) * kSumStride + 8 * j + 2 * t) = {
          p[0] + c[0] / Format::kLow, p[1] + c[1] / Format::kLow};
    }
  __syncthreads();
  float2 v = {0, 0};
  const int own = threadIdx.x / kLanes * kSumStride + threadIdx.x % kLanes * 2;
  for (int s = 0; s < kSlices; ++s) v = v + two(sums + s * kTile * kSumStride + own);
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
    rstd = rsqrtf(squares / static_cast<float>(width) + eps);
  }
  __device__ Norm of_lane(int lane) const { return {of(mean, lane), of(rstd, lane)}; }

  static __device__ float of(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
};

// A thread's place in a tile of 32 rows and 32 columns of a product.
struct Tile {
  int64_t row;     // its own
  int column;      // the first of its own two
  int warp_row;    // the first of its warp, within the tile
  int first_column;

  __device__ explicit Tile(int i)
      : row(static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x / kLanes),
        column(i * kTile + threadIdx.x % kLanes * 2),
        warp_row(threadIdx.x / 32 * kRows),
        first_column(i * kTile) {}

  // Whether the thread is the one of all blocks' that writes what they all know of its row.
  __device__ bool is_first() const { return first_column == 0 && threadIdx.x % kLanes == 0; }
};

// The rows of a matrix [n, width] that a warp reads, from `first` on.
struct WarpRows {
  const float* values;
  int width, count;

  __device__ WarpRows(const float* matrix, int64_t first, int64_t n, int width)
      : values(matrix + first * width), width(width), count(first >= n ? 0 : n - first < kRows ? static_cast<int>(n - first) : kRows) {}

  // Four numbers of each, from i on; of those beyond the matrix zeros.
  __device__ void load(int i, float4 (&v)[kRows]) const {
    for (int r = 0; r < kRows; ++r) v[r] = r < count ? four(values + r * width + i) : float4{0, 0, 0, 0};
  }
};

// The units in which a warp's rows fit into float16, which ends at 65504 and is coarse below 1e-5: a power of two, and 1 / it.
struct Units {
  float of[kRows], inverse[kRows];

  __device__ Units(const WarpRows& rows) {
    float largest[kRows] = {};
    for (int i = threadIdx.x % 32 * 4; i < rows.width; i += 128) {
      float4 v[kRows];
      rows.load(i, v);
      for (int r = 0; r < kRows; ++r)
        largest[r] = fmaxf(largest[r], fmaxf(fmaxf(fabsf(v[r].x), fabsf(v[r].y)), fmaxf(fabsf(v[r].z), fabsf(v[r].w))));
    }
    for (int r = 0; r < kRows; ++r) {
      for (int offset = 16; offset > 0; offset /= 2)
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xFFFFFFFFu, largest[r], offset));
      const int exponent = min(static_cast<int>(word_of(largest[r]) >> 23), 253);  // 127 is that of 1
      of[r] = number_of<float>(exponent << 23);
      inverse[r] = number_of<float>((254 - exponent) << 23);
    }
  }
};

// A block that makes several tiles of its rows reads these once.
template <bool kHasNorm>
__global__ void __launch_bounds__(kThreads, 2) forward_tiles(LayerForwardArgs a) {
  const int k = static_cast<int>(a.k), m = static_cast<int>(a.m), n_tiles = (m + kTile - 1) / kTile;
  uint32_t* words = dynamic_shared<uint32_t>();
  const Rows<Float16> x(words, k), w(words + Rows<Float16>::n_words(k), k);
  float unit = 1;  // of the thread's row
  for (int i = static_cast<int>(blockIdx.y); i < n_tiles; i += static_cast<int>(gridDim.y)) {
    const Tile tile(i);
    const bool is_first = i == static_cast<int>(blockIdx.y), has_row = tile.row < a.n, is_inside = has_row && tile.column < m;
    const RowParts moments(kHasNorm && is_first && has_row, a.moments, tile.row, k);  // loads come early, to be needed late
    const float2 bias = two_if(is_inside, a.bias, tile.column);
    if (!is_first) __syncthreads();  // the previous tile's sums have been read
    const WarpRows w_rows(a.weight, tile.first_column + tile.warp_row, m, k);
    w.fill(tile.warp_row, k, [&](int i, float4(&v)[kRows]) { w_rows.load(i, v); });
    const WarpRows x_rows(a.x, tile.row - threadIdx.x % 32 / kLanes, a.n, k);
    if (is_first && kHasNorm) {
      const RowNorm norm(moments, k, a.eps);
      const Norm norms[kRows] = {norm.of_lane(0), norm.of_lane(kLanes)};
      if (has_row && tile.is_first()) *reinterpret_cast<float2*>(a.x_statistics + 2 * tile.row) = {norm.mean, norm.rstd};
      x.fill(tile.warp_row, k, [&](int i, float4(&v)[kRows]) {
        x_rows.load(i, v);
        const float4 weight = four(a.norm_weight + i), bias = four(a.norm_bias + i);
        for (int r = 0; r < kRows; ++r)
          v[r] = each([&](float x, float weight, float bias) { return relu(affine(norms[r].normalized(x), weight, bias)); },
                      v[r], weight, bias);
      });
    } else if (is_first) {
      const Units units(x_rows);
      unit = units.of[threadIdx.x % 32 / kLanes];
      x.fill(tile.warp_row, k, [&](int i, float4(&v)[kRows]) {
        x_rows.load(i, v);
        for (int r = 0; r < kRows; ++r) v[r] = each([&](float x) { return x * units.inverse[r]; }, v[r]);
      });
    }
    const float2 product = multiply(x, w, k, reinterpret_cast<float*>(w.high));
    const float2 v = each([&](float v, float bias) { return v * unit + bias; }, product, bias);

    if (is_inside) *reinterpret_cast<float2*>(a.y + tile.row * m + tile.column) = v;
    float mean = is_inside ? v.x + v.y : 0;
    warp_sum<kLanes>(mean);
    mean /= size_of(i, m);
    const float2 square = each([&](float y) { return (y - mean) * (y - mean); }, v);
    float squares = is_inside ? square.x + square.y : 0;
    warp_sum<kLanes>(squares);
    if (is_inside && threadIdx.x % kLanes == 0)
      reinterpret_cast<float2*>(a.y_moments)[tile.row * n_tiles + i] = {mean, squares};
  }
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
  __device__ NormBackward of_lane(int lane) const {
    return {{RowNorm::of(norm.mean, lane), RowNorm::of(norm.rstd, lane)}, RowNorm::of(mean, lane), RowNorm::of(slope, lane)};
  }
};

// The norms are those of y, after the layer, and of x, before it.
template <bool kHasNorm, bool kHasInputNorm>
__global__ void __launch_bounds__(kThreads, 2) backward_tile(LayerBackwardArgs a) {
  const int k = static_cast<int>(a.k), m = static_cast<int>(a.m);
  uint32_t* words = dynamic_shared<uint32_t>();
  const Rows<Bfloat16> g(words, m);
  const Columns<Bfloat16> w(words + Rows<Bfloat16>::n_words(m), m);
  const Tile tile(static_cast<int>(blockIdx.y));
  const bool has_row = tile.row < a.n, is_inside = has_row && tile.column < k;
  const RowParts moments(kHasNorm && has_row, a.y_moments, tile.row, m), sums(kHasNorm && has_row, a.y_sums, tile.row, m);
  w.fill(a.weight, m, k, tile.first_column);
  const int64_t warp_row = tile.row - threadIdx.x % 32 / kLanes;
  const WarpRows grads(a.grad, warp_row, a.n, m);
  if constexpr (kHasNorm) {
    const RowNormBackward back(moments, sums, m, a.y_eps);
    const NormBackward backs[kRows] = {back.of_lane(0), back.of_lane(kLanes)};
    if (has_row && tile.is_first()) *reinterpret_cast<float2*>(a.y_means + 2 * tile.row) = {back.mean, back.slope};
    const WarpRows y_rows(a.y, warp_row, a.n, m);
    g.fill(tile.warp_row, m, [&](int i, float4(&v)[kRows]) {
      float4 y[kRows];
      grads.load(i, v), y_rows.load(i, y);
      const float4 weight = four(a.y_norm_weight + i);
      for (int r = 0; r < kRows; ++r)
        v[r] = each([&](float grad, float weight, float y) { return backs[r](grad * weight, y); }, v[r], weight, y[r]);
    });
  } else {
    g.fill(tile.warp_row, m, [&](int i, float4(&v)[kRows]) { grads.load(i, v); });
  }
  const bool reads_input = kHasInputNorm && is_inside;
  const RowParts x_moments(kHasInputNorm && has_row, a.x_moments, tile.row, k);
  const float2 x = two_if(reads_input, a.x, tile.row * k + tile.column),
               weight = two_if(reads_input, a.x_norm_weight, tile.column),
               bias = two_if(reads_input, a.x_norm_bias, tile.column);
  float2 v = multiply(g, w, m, reinterpret_cast<float*>(w.high));

  if constexpr (kHasInputNorm) {
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
  if (is_inside) *reinterpret_cast<float2*>(a.x_grad + tile.row * k + tile.column) = v;
}

unsigned tiles_of(int64_t n) {
  return static_cast<unsigned>((n + kTile - 1) / kTile);
}

struct Cuda {
  using Guard = DeviceGuard;
  static constexpr int kMaxInner = lae::kMaxInner;

  // Of a kernel with so many words for each of its factors.
  static Shape shape_of(int64_t rows, unsigned blocks_a_row, int left_words, int right_words) {
    check_tensor_cores();
    constexpr int kSumWords = kSlices * kTile * kSumStride;
    const int words = left_words + (right_words > kSumWords ? right_words : kSumWords);
    return {dim3(tiles_of(rows), blocks_a_row), kThreads, sizeof(uint32_t) * words};
  }

  static void layer_forward(const LayerForwardArgs& a) {
    if (a.n == 0) return;
    const int words = Rows<Float16>::n_words(static_cast<int>(a.k));
    // As many blocks as there is room for, with as many tiles each: what they read of x serves them all.
    Shape shape = shape_of(a.n, tiles_of(a.m), words, words);
    const unsigned blocks = device_attribute(cudaDevAttrMultiProcessorCount) * (shape.shared_bytes > 113 << 10 ? 1 : 2);
    const unsigned tiles = shape.grid.y, most = (tiles * shape.grid.x + blocks - 1) / blocks;
    shape.grid.y = (tiles + most - 1) / most;
    launch("layer_forward", shape, a.moments ? forward_tiles<true> : forward_tiles<false>, a);
  }

  static void layer_backward(const LayerBackwardArgs& a) {
    if (a.n == 0) return;
    const int m = static_cast<int>(a.m);
    const int left = Rows<Bfloat16>::n_words(m), right = Columns<Bfloat16>::n_words(m);
    const auto kernel = a.y ? (a.x ? backward_tile<true, true> : backward_tile<true, false>)
                            : (a.x ? backward_tile<false, true> : backward_tile<false, false>);
    launch("layer_backward", shape_of(a.n, tiles_of(a.k), left, right), kernel, a);
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::LayerOps<lae::Cuda>::register_with(library);
}
