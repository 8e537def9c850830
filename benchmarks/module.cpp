// ExecuTorch's Module for `benchmarks.loaded`, since the Python bindings take no options of a backend.
//
// The executorch 1.4.0 package has the library but not module.h: declared here are the three calls
// that are made, for which the library's are linked. An object is larger here than there, and none
// is ever destroyed.
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/event_tracer.h>
#include <executorch/runtime/core/memory_allocator.h>
#include <executorch/runtime/core/result.h>
#include <executorch/runtime/executor/program.h>

#include <memory>
#include <string>
#include <vector>

namespace executorch::extension::module {
class Module {
 public:
  enum class LoadMode { File, Mmap };
  Module(
      const std::string& file,
      LoadMode mode,
      std::unique_ptr<runtime::EventTracer> tracer,
      std::unique_ptr<runtime::MemoryAllocator> memory,
      std::unique_ptr<runtime::MemoryAllocator> temporary,
      bool share_memory_arenas);
  runtime::Error load(
      const runtime::LoadBackendOptionsMap& options, runtime::Program::Verification verification);
  runtime::Result<std::vector<runtime::EValue>> execute(
      const std::string& method, const std::vector<runtime::EValue>& inputs);

 private:
  alignas(16) char content[8192];
};
}  // namespace executorch::extension::module

using namespace executorch;
using extension::module::Module;

// Opens a file; options stay as long as the process, as methods need them.
extern "C" Module* open_module(const char* file, bool weights_cache) {
  auto* module = new Module(file, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, false);
  auto* xnnpack = new runtime::BackendOptions<1>();
  auto* options = new runtime::LoadBackendOptionsMap();
  if (xnnpack->set_option("weight_cache_enabled", weights_cache) != runtime::Error::Ok ||
      options->set_options("XnnpackBackend", xnnpack->view()) != runtime::Error::Ok ||
      module->load(*options, runtime::Program::Verification::Minimal) != runtime::Error::Ok) {
    return nullptr;
  }
  return module;
}

// One image [1, 3, side, side] through a method: the first logit into `logit`, 0 where it went well.
extern "C" int run_method(
    Module* module, const char* method, float* image, int side, float* logit) {
  auto input = extension::from_blob(image, {1, 3, side, side});
  auto answer = module->execute(method, {runtime::EValue(*input)});
  if (!answer.ok()) {
    return static_cast<int>(answer.error());
  }
  *logit = answer->at(0).toTensor().const_data_ptr<float>()[0];
  return 0;
}
