// The names of torch that csrc/ uses on a CPU, for a program without torch: a tensor is a block of exactly its size on the
// heap, none for a tensor without elements, as in torch; parallel_for starts threads anew; and what is registered is kept
// by name. cpu.sh puts this file in the place of every torch header.
#pragma once

#include <algorithm>
#include <any>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define STD_TORCH_CHECK(condition, ...) \
  if (!(condition)) throw std::invalid_argument(#condition)
#define TORCH_BOX(function) function
#define STABLE_TORCH_LIBRARY_IMPL(name, key, library)                        \
  static void register_ops(torch::stable::detail::StableLibrary& library);   \
  static const bool kIsRegistered = [] {                                     \
    torch::stable::detail::StableLibrary library;                            \
    register_ops(library);                                                   \
    return true;                                                             \
  }();                                                                       \
  static void register_ops(torch::stable::detail::StableLibrary& library)

// What `walk` takes to call a compiled potential, of which there is none here.
using AtenTensorHandle = void*;
inline void aoti_torch_new_tensor_handle(AtenTensorHandle, AtenTensorHandle*) {}

namespace torch::headeronly {
enum class ScalarType { Float, Double, Long, Bool };
}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;
using Shape = std::vector<int64_t>;

class Tensor {
 public:
  Tensor(Shape shape, ScalarType type) : shape_(std::move(shape)), type_(type) {
    if (numel() > 0) data_ = std::shared_ptr<char[]>(new char[numel() * element_size()]);
  }
  explicit Tensor(AtenTensorHandle) : type_(ScalarType::Float) {}
  AtenTensorHandle get() const { return nullptr; }
  void* data_ptr() const { return data_.get(); }
  int64_t dim() const { return static_cast<int64_t>(shape_.size()); }
  int64_t size(int64_t axis) const { return shape_.at(axis); }
  const Shape& sizes() const { return shape_; }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t size : shape_) n *= size;
    return n;
  }
  size_t element_size() const { return type_ == ScalarType::Bool ? 1 : type_ == ScalarType::Float ? 4 : 8; }
  ScalarType scalar_type() const { return type_; }
  bool is_contiguous() const { return true; }
  bool is_cuda() const { return false; }
  int get_device_index() const { return -1; }

 private:
  Shape shape_;
  ScalarType type_;
  std::shared_ptr<char[]> data_;
};

inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape,
                        std::optional<ScalarType> type = std::nullopt) {
  return Tensor(shape, type.value_or(like.scalar_type()));
}
inline Tensor empty_like(const Tensor& like) { return Tensor(like.sizes(), like.scalar_type()); }

inline int n_threads = 1;

// As torch: chunks of at least `grain`, one for each thread, the first on the thread that calls.
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  if (begin >= end) return;
  const int64_t share = (end - begin + n_threads - 1) / n_threads, chunk = std::max<int64_t>({share, grain, 1});
  std::vector<std::jthread> threads;
  for (int64_t first = begin + chunk; first < end; first += chunk)
    threads.emplace_back([&f, first, last = std::min(first + chunk, end)] { f(first, last); });
  f(begin, std::min(begin + chunk, end));
}

namespace detail {
struct StableLibrary {
  static std::map<std::string, std::any>& ops() {
    static std::map<std::string, std::any> registered;
    return registered;
  }
  template <typename F>
  void impl(const char* name, F function) {
    ops()[name] = function;
  }
};
}  // namespace detail

}  // namespace torch::stable
