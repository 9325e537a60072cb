// CUDA's names, as far as csrc/cuda and the programs of bench/sanitize use them, for the emulated device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "device.h"

#define __host__
#define __device__
#define __global__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ thread_local  // memory.cpp finds these variables by that

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Constants for a kernel: its thread stays the same. threads.cpp, which does not see them here, changes them.
extern const uint3 threadIdx, blockIdx, blockDim, gridDim;

// ---- for the host ----

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid launch" : error == cudaErrorMemoryAllocation ? "no memory" : "none";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr int kValues[] = {emulator::kMultiprocessors, 9, static_cast<int>(emulator::kMaxDynamicShared)};
  *value = kValues[attribute];
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Kernel, int, size_t) {
  *n = emulator::kBlocksEach;
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  return emulator::allow_shared(reinterpret_cast<const void*>(kernel), bytes) ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMalloc(void** memory, size_t size) {
  *memory = emulator::allocate(size);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) {
  emulator::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  std::memcpy(to, from, size);
  if (kind == cudaMemcpyHostToDevice) emulator::mark_written(to, size);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using Call = std::tuple<void (*)(Parameters...), Parameters...>;
  const Call call(kernel, arguments...);
  const auto body = [](const void* p) {
    std::apply([](auto f, auto... values) { f(values...); }, *static_cast<const Call*>(p));
  };
  bool is_cooperative = false;  // other attributes change nothing here
  for (unsigned i = 0; i < config->numAttrs; ++i)
    is_cooperative |= config->attrs[i].id == cudaLaunchAttributeCooperative && config->attrs[i].val.cooperative;
  const bool is_done = emulator::run({config->gridDim, config->blockDim, config->dynamicSmemBytes, is_cooperative, body,
                                      &call, sizeof call, reinterpret_cast<const void*>(kernel)});
  return is_done ? cudaSuccess : cudaErrorInvalidValue;
}

// ---- for kernels ----

inline float rsqrtf(float x) {
  return 1 / std::sqrt(x);
}

inline void __syncthreads(emulator::Place place = emulator::Place::current()) {
  emulator::wait_for_block(place);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, emulator::Place place = emulator::Place::current()) {
  emulator::wait_for_warp(mask, place);
}
inline void __threadfence(emulator::Place place = emulator::Place::current()) {
  emulator::fence(place);
}

namespace emulator {

inline int lane_id() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}
// The value of lane `target`, or the own one where it lies outside the lanes [begin, begin + width) that exchange values.
template <typename T>
T shuffled(unsigned mask, T value, int target, int begin, int width, Place place) {
  const int own = lane_id();
  shuffle(&value, sizeof value, target < begin || target >= begin + width ? own : target, mask, place);
  return value;
}

}  // namespace emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, emulator::Place place = emulator::Place::current()) {
  const int begin = emulator::lane_id() / width * width;
  return emulator::shuffled(mask, value, begin + lane % width, begin, width, place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, emulator::Place place = emulator::Place::current()) {
  const int own = emulator::lane_id();
  return emulator::shuffled(mask, value, own - by, own / width * width, width, place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, emulator::Place place = emulator::Place::current()) {
  const int own = emulator::lane_id();
  return emulator::shuffled(mask, value, own + by, own / width * width, width, place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, emulator::Place place = emulator::Place::current()) {
  const int own = emulator::lane_id();
  return emulator::shuffled(mask, value, own ^ by, own / width * width, width, place);
}

inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int __popc(unsigned word) {
  return __builtin_popcount(word);
}
inline unsigned __ballot_sync(unsigned mask, int vote, emulator::Place place = emulator::Place::current()) {
  bool votes[32], own = vote != 0;
  emulator::gather(&own, votes, sizeof own, mask, place);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= static_cast<unsigned>(votes[lane]) << lane;
  return result;
}
inline int __any_sync(unsigned mask, int vote, emulator::Place place = emulator::Place::current()) {
  return __ballot_sync(mask, vote, place) != 0;
}
inline int __all_sync(unsigned mask, int vote, emulator::Place place = emulator::Place::current()) {
  return __ballot_sync(mask, vote, place) == mask;
}

namespace emulator {

// Threads take turns at barriers only, so an operation is whole by itself. Its own accesses are no race.
template <typename T, typename F>
__attribute__((noinline, no_sanitize("thread"))) T update(T* address, F f) {
  begin_atomic(address, sizeof(T), __builtin_return_address(0));
  T old;
  std::memcpy(&old, address, sizeof old);
  const T next = f(old);
  std::memcpy(address, &next, sizeof next);
  return old;
}

}  // namespace emulator

template <typename T>
T atomicAdd(T* address, T value) {
  return emulator::update(address, [&](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return emulator::update(address, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicExch(T* address, T value) {
  return emulator::update(address, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  return emulator::update(address, [&](T old) { return old == expected ? value : old; });
}
