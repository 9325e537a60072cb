// What this build was made of, for lae_fast.info. This module does not need torch, so it can be read before any kernel
// library is loaded.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_lae_fast_build, m) {
  m.attr("schema_version") = LAE_FAST_SCHEMA_VERSION;
  m.attr("torch_target") = LAE_FAST_TORCH_TARGET;
  m.attr("torch_headers") = LAE_FAST_TORCH_HEADERS;
  m.attr("cuda_version") = LAE_FAST_CUDA_VERSION;
  m.attr("cuda_architectures") = LAE_FAST_CUDA_ARCHITECTURES;
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#elif defined(__GNUC__)
  m.attr("compiler") = "gcc " __VERSION__;
#else
  m.attr("compiler") = "unknown";
#endif
}
