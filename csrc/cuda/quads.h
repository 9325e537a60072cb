// Four consecutive elements: what a thread owns, and one load or store moves.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace lae {

template <typename T>
struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) Quad {
  T v[4];
};

__host__ __device__ inline bool is_aligned(const void* p) {  // for loads of 16 bytes
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Elements i .. i + 3 of a row of n; `is_wide` promises n % 4 == 0 and aligned rows.
template <typename T>
__device__ Quad<T> load(const T* row, int64_t i, int64_t n, bool is_wide) {
  if (is_wide) return *reinterpret_cast<const Quad<T>*>(row + i);
  Quad<T> q = {};
  for (int k = 0; k < 4; ++k)
    if (i + k < n) q.v[k] = row[i + k];
  return q;
}
template <typename T>
__device__ void store(T* row, int64_t i, int64_t n, bool is_wide, const Quad<T>& q) {
  if (is_wide) {
    *reinterpret_cast<Quad<T>*>(row + i) = q;
    return;
  }
  for (int k = 0; k < 4; ++k)
    if (i + k < n) row[i + k] = q.v[k];
}

template <typename T>
__device__ Quad<T> select(bool condition, const Quad<T>& yes, const Quad<T>& no) {  // in registers
  Quad<T> q;
  for (int k = 0; k < 4; ++k) q.v[k] = condition ? yes.v[k] : no.v[k];
  return q;
}

template <typename T>
__device__ bool is_finite(const Quad<T>& q) {
  bool result = true;
  for (int k = 0; k < 4; ++k) result = result && std::isfinite(q.v[k]);
  return result;
}

// Whether all rows of n_elements, which begin at these addresses, can be loaded by four.
template <typename T, typename... Rest>
bool all_wide(int64_t n_elements, const T* p, const Rest*... rest) {
  const bool is_wide = n_elements % 4 == 0 && is_aligned(p);
  if constexpr (sizeof...(rest) == 0)
    return is_wide;
  else
    return is_wide && all_wide(n_elements, rest...);
}

}  // namespace lae
