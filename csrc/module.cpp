// p_eagle_cuda._C: loads libp_eagle_ops.so, which registers the CUDA ops, and says how it was built.
// torch must be imported first, because the library resolves its symbols in libtorch.so.

#include <cuda_runtime_api.h>
#include <cutlass/version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/build_info.h"
#include "head/tiles.h"
#include "linear/partition.h"

namespace py = pybind11;

namespace {

std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::string cutlass_version() {
  std::string const minor = std::to_string(CUTLASS_MINOR);
  return std::to_string(CUTLASS_MAJOR) + "." + minor + "." + std::to_string(CUTLASS_PATCH);
}

py::tuple cuda_archs() { return py::tuple(py::str(P_EAGLE_ARCHS).attr("split")(",")); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = P_EAGLE_VERSION;
  m.attr("cuda_archs") = cuda_archs();
  m.attr("cuda_version") = cuda_version();
  m.attr("nvcc_version") = P_EAGLE_NVCC_VERSION;
  m.attr("cutlass_version") = cutlass_version();
  m.def("linear_workspace_bytes", &p_eagle::linear_workspace_bytes, py::arg("num_sms"),
        "Size of the linear layers' workspace on a device of this many SMs.");
  m.def("lm_head_workspace_bytes", &p_eagle::lm_head_workspace_bytes, py::arg("num_sms"),
        py::arg("num_samples"), py::arg("top_k"),
        "Size of the workspace of lm_head_topk for so many rows, on a device of this many SMs.");
  m.def("cuda_ops", &p_eagle::cuda_ops, "Names of the ops that this build implements for CUDA.");
}
