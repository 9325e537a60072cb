// float32 on tensor cores. They multiply numbers of 16 bits and add in float32: a float32 is therefore two of them, high
// and low parts, and a product is three of theirs,
//     x w = high(x) high(w) + (low(x) high(w) + high(x) low(w)) / kLow,
// without low(x) low(w), which is below the rounding of the sum (Ootomo and Yokota, arXiv 2203.03341). Needs sm_80.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lae {

// The bits of a number, or of two numbers of 16 bits, the first one in the lower half.
template <typename Number>
__device__ __forceinline__ uint32_t word_of(Number number) {
  static_assert(sizeof(Number) == sizeof(uint32_t));
  uint32_t word;
  memcpy(&word, &number, sizeof word);
  return word;
}
template <typename Number>
__device__ __forceinline__ Number number_of(uint32_t word) {
  Number number;
  memcpy(&number, &word, sizeof number);
  return number;
}

// Four matrices [8, 8] of numbers of 16 bits from shared memory, by a whole warp: lane l gives the address of row l % 8 of
// matrix l / 8, 16 bytes, and gets of each matrix, with g = l / 4 and t = l % 4, the word (g, t): columns 2 t and 2 t + 1 of
// row g; transposed, rows 2 t and 2 t + 1 of column g.
template <bool kIsTransposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const uint32_t* row) {
#if !defined(__CUDACC__)
  emulator::load_matrices(words, row, kIsTransposed);
#elif __CUDA_ARCH__ >= 800
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kIsTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(address) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(address) : "memory");
#endif
}

#if !defined(__CUDACC__)
#define LAE_MULTIPLY(type) emulator::multiply_halves(type, c, a, b)
#elif __CUDA_ARCH__ < 800  // compiled, and never launched
#define LAE_MULTIPLY(type) __trap()
#else
#define LAE_MULTIPLY(type)                                                                                          \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                               \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                               \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

// What a format offers: pack and unpack; kLow, which makes low parts as large as high ones where the format's range is
// small; and the product of a warp, c [16, 8] += a [16, 16] b [8, 16]^T. Of these a lane holds, with g = lane / 4 and
// t = lane % 4 and two neighbouring columns in a word,
//     a[i]  row g + 8 (i % 2), columns 2 t + 8 (i / 2)
//     b[i]  row g, columns 2 t + 8 i
//     c[i]  row g + 8 (i / 2), column 2 t + i % 2

// float16: 22 bits in two parts, as good as float32's 24 within its sums. Numbers beyond 65504 become infinite.
struct Float16 {
  static constexpr float kLow = 2048.0f;
  static __device__ __forceinline__ uint32_t pack(float x, float y) { return word_of(__floats2half2_rn(x, y)); }
  static __device__ __forceinline__ float2 unpack(uint32_t word) { return __half22float2(number_of<__half2>(word)); }
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    LAE_MULTIPLY("f16");
  }
};

// bfloat16: 16 bits in two parts, and float32's range.
struct Bfloat16 {
  static constexpr float kLow = 1.0f;
  static __device__ __forceinline__ uint32_t pack(float x, float y) { return word_of(__floats2bfloat162_rn(x, y)); }
  static __device__ __forceinline__ float2 unpack(uint32_t word) {
    return __bfloat1622float2(number_of<__nv_bfloat162>(word));
  }
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    LAE_MULTIPLY("bf16");
  }
};

#undef LAE_MULTIPLY

}  // namespace lae
