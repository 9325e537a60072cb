// What every launch of a CUDA kernel needs.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace lae {

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "lae_fast: ", what, ": ", cudaGetErrorString(error));
}

inline int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "current device");
  return device;
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, current_device()), "device's attributes");
  return value;
}

inline void check_tensor_cores() {
  STD_TORCH_CHECK(device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8,
                  "lae_fast: whole layers need tensor cores for bfloat16, compute capability 8.0 or more");
}

inline cudaStream_t current_stream() {
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(current_device(), &current));
  return static_cast<cudaStream_t>(current);
}

// How many threads a kernel gets, and how much shared memory beside what it declares.
struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool is_cooperative = false;  // all blocks at once: they may wait for each other
};

// Launches `kernel` on the current stream. The arguments become the kernel's parameters by value. A function, not
// <<<>>>: every C++ compiler reads it, and bench/sanitize/emulator runs what it launches.
template <typename... Parameters, typename... Arguments>
void launch(const char* what, const Shape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (shape.shared_bytes > 48 << 10) {  // a kernel has to ask for more
    const size_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    STD_TORCH_CHECK(shape.shared_bytes <= most, "lae_fast: ", what, " of this size takes ", shape.shared_bytes,
                    " bytes of a block's shared memory; this GPU has ", most);
    // The limit is the kernel's and not the launch's: the same for all, as another thread may launch a larger one now.
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)), what);
  }
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = current_stream();
  config.attrs = &cooperative;
  config.numAttrs = shape.is_cooperative ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();  // reported here, and to nobody else
  check_cuda(error, what);
}

// The shared memory that a launch asked for by its shape.
template <typename T>
__device__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return static_cast<T*>(emulator::dynamic_shared_memory());
#endif
}

// Memory on the current device for one launch. It is freed with the tensor, in the order of the stream.
inline torch::stable::Tensor new_workspace(int64_t n_doubles) {
  return torch::stable::empty({n_doubles}, torch::headeronly::ScalarType::Double, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CUDA, current_device()));
}

// Makes a tensor's device current.
struct DeviceGuard {
  torch::stable::accelerator::DeviceGuard device;
  explicit DeviceGuard(const torch::stable::Tensor& t) : device(t.get_device_index()) {}
};

}  // namespace lae
