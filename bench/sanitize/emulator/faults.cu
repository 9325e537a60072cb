// What the emulated device must report, and a kernel that does all it can and must not be reported: faults NAME runs one.

#include <cooperative_groups.h>

#include <cstdio>
#include <cstring>

#include "../../../csrc/cuda/halves.h"
#include "../../../csrc/cuda/launch.h"
#include "../arrays.h"

namespace lae {
namespace {

constexpr unsigned kAll = 0xFFFFFFFFu, kEven = 0x55555555u;
constexpr int kThreads = 64, kBlocks = 3;

// Barriers.

__global__ void some_wait_for_the_block(int*) {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void two_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();
  }
}
__global__ void a_lane_has_returned(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1);
}
__global__ void a_lane_that_is_not_named(int* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_xor_sync(kEven, 1, 1);
}
__global__ void a_lane_that_does_not_multiply(int*) {
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x != 7) Float16::multiply(c, a, b);
}
__global__ void a_grid_that_is_not_resident(int*) {
  cooperative_groups::this_grid().sync();
}

// Races.

__global__ void between_warps(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
__global__ void between_lanes(int* out) {  // a shuffle orders nothing
  out[threadIdx.x] = __shfl_xor_sync(kAll, 1, 1);
  const int sum = __shfl_xor_sync(kAll, out[threadIdx.x / 32 * 32], 1);
  if (threadIdx.x % 32 == 0) out[threadIdx.x] = sum;
}
__global__ void between_blocks(int* out) {
  out[0] = blockIdx.x;
}
__global__ void before_a_write(int* out) {
  const int last = out[blockIdx.x];
  out[kThreads * (1 + blockIdx.x) + threadIdx.x] = last;
  if (threadIdx.x == 40) out[blockIdx.x] = last + 1;
}
template <bool kBefore, bool kAfter>
__device__ void end_with_fences(int* out) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    out[1 + blockIdx.x] = 1;
    if (kBefore) __threadfence();
    is_last = atomicAdd(out, 1) == kBlocks - 1;
    if (kAfter) __threadfence();
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) out[1] += out[2];
}
__global__ void without_a_fence_before(int* out) {
  end_with_fences<false, true>(out);
}
__global__ void without_a_fence_after(int* out) {
  end_with_fences<true, false>(out);
}
__global__ void a_fence_before_the_writes(int* out) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) __threadfence();
  out[kThreads + kThreads * blockIdx.x + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(out, 1) == kBlocks - 1;
    __threadfence();
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0)
    for (int b = 1; b <= kBlocks; ++b) out[1] += out[kThreads * b + 1];
}

// Memory.

__global__ void beyond_the_end(int* out) {
  out[kThreads * kBlocks + 1 + threadIdx.x] = 1;
}
__global__ void unwritten_memory(int* out) {
  out[0] = out[1];
}
__global__ void unwritten_shared_memory(int* out) {
  out[threadIdx.x] = dynamic_shared<int>()[threadIdx.x];
}
__global__ void beyond_shared_memory(int*) {
  dynamic_shared<int>()[threadIdx.x + 1] = 1;
}
__global__ void misaligned(int* out) {
  *reinterpret_cast<int*>(reinterpret_cast<char*>(out) + 2) = 1;
}
__global__ void memory_of_the_host(int* out) {
  static int on_the_host = 0;
  on_the_host += out[0];
  out[0] = on_the_host;
}

// All that is sound. out: [1 + kBlocks, kThreads], zeros; a ticket, then rows.
__global__ void sound(int* out) {
  __shared__ int values[kThreads];
  __shared__ bool is_last;
  const int i = threadIdx.x + blockDim.x * threadIdx.y, lane = i % 32, n = kThreads;  // blocks are [2, 32]
  int *dynamic = dynamic_shared<int>(), *row = out + n * (1 + blockIdx.y);
  values[i] = i;
  dynamic[n - 1 - i] = i;
  __syncthreads();
  int sum = values[n - 1 - i] + dynamic[i];  // 2 (n - 1 - i)
  __syncthreads();
  if (lane % 2 == 0) {
    sum += __shfl_sync(kEven, i, 30) + __shfl_down_sync(kEven, i, 2) + __shfl_up_sync(kEven, i, 2, 16);
    values[i] = sum;
    __syncwarp(kEven);
    sum = values[i ^ 2] + __popc(__ballot_sync(kEven, lane < 8)) + __any_sync(kEven, lane == 3) + __all_sync(kEven, 1);
  }
  __syncwarp();
  row[i] = __shfl_xor_sync(kAll, sum, 1);
  if (i >= 32) return;  // those that have returned are not waited for
  __syncthreads();
  __threadfence();
  __syncwarp();
  if (lane == 0) __threadfence();
  if (lane == 0) is_last = atomicAdd(out, 1) == kBlocks - 1;
  __syncthreads();
  if (!is_last || lane != 0) return;
  __threadfence();
  for (int b = 1; b < kBlocks; ++b) out[n] += out[n * (1 + b)];
}
int sound_value(int i) {
  const auto even = [](int i) {
    const int lane = i % 32, begin = i - lane, n = kThreads;
    return 2 * (n - 1 - i) + begin + 30 + (lane < 30 ? i + 2 : i) + (lane % 16 >= 2 ? i - 2 : i);
  };
  const int other = i ^ 1, value = other % 2 == 0 ? even(other ^ 2) + 4 + 0 + 1 : 2 * (kThreads - 1 - other);
  return i == 0 ? kBlocks * value : value;
}

struct Fault {
  const char* name;
  void (*kernel)(int*);
};
#define FAULT(name) {#name, name}
constexpr Fault kFaults[] = {
    FAULT(some_wait_for_the_block), FAULT(two_barriers), FAULT(a_lane_has_returned), FAULT(a_lane_that_is_not_named),
    FAULT(a_lane_that_does_not_multiply), FAULT(a_grid_that_is_not_resident), FAULT(between_warps), FAULT(between_lanes),
    FAULT(between_blocks), FAULT(before_a_write), FAULT(without_a_fence_before), FAULT(without_a_fence_after),
    FAULT(a_fence_before_the_writes),
    FAULT(beyond_the_end), FAULT(unwritten_memory), FAULT(unwritten_shared_memory), FAULT(beyond_shared_memory), FAULT(misaligned), FAULT(memory_of_the_host),
};

int run(const char* name) {
  Array<int> out((1 + kBlocks) * kThreads);
  if (std::strcmp(name, "unwritten_memory") != 0) out.upload();
  for (const Fault& fault : kFaults)
    if (std::strcmp(fault.name, name) == 0)
      launch(name, {kBlocks, kThreads, kThreads * sizeof(int)}, fault.kernel, out.device());
  if (std::strcmp(name, "too_many_threads") == 0) launch(name, {1, 2048}, two_barriers, out.device());
  if (std::strcmp(name, "too_much_shared_memory") == 0) launch(name, {1, 32, (227 << 10) + 1}, two_barriers, out.device());
  if (std::strcmp(name, "sound") != 0) return 0;
  const Shape shape = {dim3(1, kBlocks), dim3(2, 32), kThreads * sizeof(int)};
  launch(name, shape, sound, out.device());
  Tally tally;
  out.host[0] = kBlocks;
  for (int b = 0; b < kBlocks; ++b)
    for (int i = 0; i < kThreads; ++i)
      out.host[kThreads * (1 + b) + i] = sound_value(i) / (b > 0 && i == 0 ? kBlocks : 1);
  out.compare(tally, name);
  return tally.report(name);
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  return argc > 1 ? lae::run(argv[1]) : 2;
}
