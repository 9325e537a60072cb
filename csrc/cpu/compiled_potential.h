// A potential that torch's AOTInductor has compiled into a shared library. Its functions are looked up by their names, which
// torch/csrc/inductor/aoti_runtime/interface.h declares and keeps stable.
#pragma once

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace lae {

class CompiledPotential {
 public:
  using Tensor = torch::stable::Tensor;

  // The library at this path, loaded by the first call and then kept.
  static CompiledPotential& of(const std::string& path) {
    static std::mutex mutex;
    static std::map<std::string, CompiledPotential> loaded;
    const std::lock_guard lock(mutex);
    const auto found = loaded.find(path);
    return found != loaded.end() ? found->second : loaded.emplace(path, CompiledPotential(path)).first->second;
  }

  // V [C] and grad V [C, D] at rows [C, D]. Many threads may call at once; they wait for each other.
  std::pair<Tensor, Tensor> operator()(const Tensor& rows, const std::vector<Tensor>& constants) {
    std::vector<AtenTensorHandle> inputs(1 + constants.size());  // the library takes them away
    aoti_torch_new_tensor_handle(rows.get(), &inputs[0]);
    for (size_t i = 0; i < constants.size(); ++i) aoti_torch_new_tensor_handle(constants[i].get(), &inputs[i + 1]);
    AtenTensorHandle outputs[2];
    STD_TORCH_CHECK(run_(model_, inputs.data(), inputs.size(), outputs, 2, nullptr, nullptr) == 0,
                    "lae_fast::walk: the compiled potential failed");
    return {Tensor(outputs[0]), Tensor(outputs[1])};
  }

 private:
  using Create = int32_t (*)(void**, size_t, const char*, const char*);
  using Run = int32_t (*)(void*, AtenTensorHandle*, size_t, AtenTensorHandle*, size_t, void*, void*);

  explicit CompiledPotential(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    STD_TORCH_CHECK(library, "lae_fast::walk: ", path, " does not load");
    const auto create = reinterpret_cast<Create>(dlsym(library, "AOTInductorModelContainerCreateWithDevice"));
    run_ = reinterpret_cast<Run>(dlsym(library, "AOTInductorModelContainerRun"));
    STD_TORCH_CHECK(create && run_ && create(&model_, 1, "cpu", nullptr) == 0, "lae_fast::walk: ", path,
                    " is no compiled potential");
  }

  void* model_ = nullptr;
  Run run_ = nullptr;
};

}  // namespace lae
