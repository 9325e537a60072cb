// Sums over a team: the threads that share a row or a chain. The size of the team alone decides which numbers are added in
// which order.
#pragma once

namespace lae {

// Replaces each of `sums` by its sum over kLanes neighbouring lanes of a warp, a power of two. Every lane gets it.
template <int kLanes = 32, typename... Number>
__device__ void warp_sum(Number&... sums) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    ((sums += __shfl_xor_sync(0xFFFFFFFFu, sums, offset, kLanes)), ...);
}

// The same over a team of kTeam threads: a power of two up to 32, or all threads of the block. All threads of the block
// must call it. Where a team is larger than a warp only its readers get the sums: nobody else adds up the warps.
template <int kTeam, typename... Double>
__device__ void team_sum(bool is_reader, Double&... sums) {
  warp_sum<kTeam < 32 ? kTeam : 32>(sums...);
  if constexpr (kTeam > 32) {
    constexpr int kWarps = kTeam / 32;
    __shared__ double warps[kWarps][sizeof...(sums)];
    __syncthreads();  // the previous sums have been read
    int k = 0;
    if (threadIdx.x % 32 == 0) ((warps[threadIdx.x / 32][k++] = sums), ...);
    __syncthreads();
    if (!is_reader) return;
    k = 0;
    ((sums = warps[0][k++]), ...);
    for (int w = 1; w < kWarps; ++w) {
      k = 0;
      ((sums += warps[w][k++]), ...);
    }
  }
}

}  // namespace lae
