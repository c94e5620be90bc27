// fused_losses._C: what was built and which instruction set runs. It carries no tensor: the operators are registered
// with torch's dispatcher by csrc/ops when this module is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/capability.h"
#include "ops/gradient_pool.h"
#include "ops/prepared_gradients.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FUSED_LOSSES_VERSION;
  info["compiler"] = __VERSION__;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["torch_built_with"] = FUSED_LOSSES_TORCH_VERSION;
  info["torch_target"] = "2.10";
  info["cpu_capabilities"] = fused_losses::cpu::available_capabilities();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information, the choice of the CPU instruction set, the memory of gradients.";
  fused_losses::cpu::kernels();  // a bad FUSED_LOSSES_CPU_CAPABILITY is reported at import
  module.def("build_info", &build_info, "What this extension was built with.");
  module.def("available_cpu_capabilities", &fused_losses::cpu::available_capabilities,
             "Instruction sets that can run here, from the least to the best.");
  module.def(
      "cpu_capability", [] { return std::string(fused_losses::cpu::kernels().name); }, "The instruction set in use.");
  module.def("set_cpu_capability", &fused_losses::cpu::set_capability, py::arg("name"),
             "Use this instruction set from now on, in every thread; ValueError where it is not available.");
  namespace pool = fused_losses::gradient_pool;
  module.def("set_gradient_pool_limit", &pool::set_limit, py::arg("bytes"),
             "Keep at most so much memory of freed gradients for the next ones; 0 switches the pool off. Inside a "
             "limited_gradient_pool() block, of any thread, it takes effect when the last block ends.");
  module.def("open_gradient_pool_block", &pool::open_block, py::arg("bytes"),
             "The limit is this one until close_gradient_pool_block() is called with what is returned.");
  module.def("close_gradient_pool_block", &pool::close_block, py::arg("block"),
             "Ends a block; one that is not open is left alone.");
  module.def("gradient_pool_limit", &pool::limit, "The most memory of freed gradients that is kept now.");
  module.def("num_prepared_gradients", &fused_losses::PreparedGradients::count,
             "How many gradients wait for the backward of a compiled graph.");
  module.def("gradient_pool_idle_bytes", &pool::idle_bytes, "How much memory of freed gradients is kept now.");
}
