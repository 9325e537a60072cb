// Arrays that exist twice, on the host and on the device, and the count of their differences.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include <cuda_runtime.h>

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Programs take the word `quick`: fewer and smaller sizes, for the emulator.
inline bool is_quick(int argc, char** argv) {
  return argc > 1 && std::strcmp(argv[1], "quick") == 0;
}

// What is compared, and how often it differed.
struct Tally {
  char label[200] = "";
  int64_t n_compared = 0, n_wrong = 0;

  template <typename... Values>
  void name(const char* format, Values... values) {
    std::snprintf(label, sizeof label, format, values...);
  }
  void compare(const char* what, int64_t i, double got, double expected, double bound) {
    ++n_compared;
    const bool is_same = got == expected || (std::isnan(got) && std::isnan(expected));
    if (is_same || std::abs(got - expected) <= bound) return;
    if (++n_wrong <= 20)
      std::printf("WRONG: %s: %s[%lld] is %.17g; expected %.17g within %.3g\n", label, what,
                  static_cast<long long>(i), got, expected, bound);
  }
  int report(const char* program) const {
    std::printf("%s: %lld values compared, %lld wrong\n", program, static_cast<long long>(n_compared),
                static_cast<long long>(n_wrong));
    return n_wrong > 0 || n_compared == 0;
  }
};

// n elements. On the device they begin `offset` elements into an allocation, which ends with them: memcheck sees the
// first access beyond. Nothing is written to the device before `upload`: initcheck sees reads of unwritten memory.
template <typename T>
class Array {
 public:
  std::vector<T> host;

  explicit Array(int64_t n, int64_t offset = 0) : host(n), offset_(offset) {
    check(cudaMalloc(&base_, n + offset > 0 ? (n + offset) * sizeof(T) : 1), "cudaMalloc");
  }
  Array(const Array&) = delete;
  ~Array() { cudaFree(base_); }

  T* device() const { return size() ? static_cast<T*>(base_) + offset_ : nullptr; }  // as torch's data_ptr()
  T* at(bool on_device) { return on_device ? device() : host.data(); }
  int64_t size() const { return static_cast<int64_t>(host.size()); }
  void upload() { check(cudaMemcpy(device(), host.data(), size() * sizeof(T), cudaMemcpyHostToDevice), "upload"); }

  // Compares the values on the device with those on the host: |difference| <= bound(i).
  template <typename Bound>
  void compare(Tally& tally, const char* what, Bound bound) const {
    std::vector<T> got(host.size());
    check(cudaMemcpy(got.data(), device(), size() * sizeof(T), cudaMemcpyDeviceToHost), "download");
    for (int64_t i = 0; i < size(); ++i)
      tally.compare(what, i, static_cast<double>(got[i]), static_cast<double>(host[i]), bound(i));
  }
  void compare(Tally& tally, const char* what) const {
    compare(tally, what, [](int64_t) { return 0.0; });
  }

 private:
  int64_t offset_;
  void* base_ = nullptr;
};
