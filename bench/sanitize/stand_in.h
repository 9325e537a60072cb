// The names of torch that csrc/ uses, for programs without torch: memory comes from cudaMalloc, the stream is the
// default stream, and an error ends the program. build.sh puts this file in the place of every torch header. What no
// launch of a kernel calls is declared only.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <iostream>
#include <memory>
#include <optional>
#include <vector>

#include <cuda_runtime.h>

template <typename... Words>
void end_with(const char* condition, const Words&... words) {
  std::cout << "FAILED: " << condition;
  ((std::cout << ' ' << words), ...);
  std::cout << std::endl;
  std::exit(1);
}

#define STD_TORCH_CHECK(condition, ...) \
  if (!(condition)) end_with(#condition __VA_OPT__(, ) __VA_ARGS__)
#define TORCH_ERROR_CODE_CHECK(call) STD_TORCH_CHECK((call) == 0)
#define TORCH_BOX(function) function
#define STABLE_TORCH_LIBRARY_IMPL(name, key, library) \
  template <typename>                                 \
  void nobody_registers(torch::stable::detail::StableLibrary& library)

inline int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

namespace torch::headeronly {
enum class ScalarType { Float, Double, Long, Bool };
enum class DeviceType { CPU, CUDA };
}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

struct Device {
  Device(headeronly::DeviceType, int) {}
};

class Tensor {
 public:
  explicit Tensor(size_t n_bytes) {
    void* data = nullptr;
    STD_TORCH_CHECK(cudaMalloc(&data, n_bytes) == cudaSuccess);
    data_ = std::shared_ptr<void>(data, cudaFree);
  }
  void* data_ptr() const { return data_.get(); }

  int64_t dim() const;
  int64_t size(int64_t axis) const;
  std::vector<int64_t> sizes() const;
  int64_t numel() const;
  size_t element_size() const;
  ScalarType scalar_type() const;
  bool is_contiguous() const;
  bool is_cuda() const;
  int get_device_index() const;

 private:
  std::shared_ptr<void> data_;
};

inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType, std::nullopt_t, Device) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return Tensor(n * sizeof(double));  // only workspaces of float64 are requested
}
Tensor new_empty(const Tensor&, std::initializer_list<int64_t> shape, std::optional<ScalarType> = std::nullopt);
Tensor empty_like(const Tensor&);

namespace accelerator {
struct DeviceGuard {
  explicit DeviceGuard(int);
};
}  // namespace accelerator

namespace detail {
struct StableLibrary {
  template <typename F>
  void impl(const char* name, F function);
};
}  // namespace detail

}  // namespace torch::stable
