// p_eagle_cuda._C: loads libp_eagle_ops.so, which registers the CUDA ops, and says how it was built.
// torch must be imported first, because the library resolves its symbols in libtorch.so.

#include <cuda_runtime_api.h>
#include <cutlass/version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/build_info.h"
#include "common/attention_layout.h"

namespace py = pybind11;

namespace {

std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::string cutlass_version() {
  std::string const minor = std::to_string(CUTLASS_MINOR);
  return std::to_string(CUTLASS_MAJOR) + "." + minor + "." + std::to_string(CUTLASS_PATCH);
}

int64_t attention_max_segments(int64_t num_rows, int64_t num_requests, int64_t group) {
  return p_eagle::AttentionWorkLayout{num_rows, num_requests, group}.max_segments();
}

int64_t attention_work_size(int64_t num_rows, int64_t num_requests, int64_t group,
                            int64_t num_blocks) {
  return p_eagle::AttentionWorkLayout{num_rows, num_requests, group}.size(num_blocks);
}

int64_t attention_workspace_bytes(int64_t num_blocks, int64_t head_dim) {
  return p_eagle::AttentionWorkspaceLayout{num_blocks, head_dim}.bytes();
}

py::tuple cuda_archs() { return py::tuple(py::str(P_EAGLE_ARCHS).attr("split")(",")); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = P_EAGLE_VERSION;
  m.attr("cuda_archs") = cuda_archs();
  m.attr("cuda_version") = cuda_version();
  m.attr("nvcc_version") = P_EAGLE_NVCC_VERSION;
  m.attr("cutlass_version") = cutlass_version();
  m.def("cuda_ops", &p_eagle::cuda_ops, "Names of the ops that this build implements for CUDA.");
  m.def("attention_blocks_per_sm", &p_eagle::attention_blocks_per_sm, py::arg("head_dim"),
        py::arg("shared_bytes_per_sm"), "Thread blocks of the attention kernel that an SM holds.");
  m.def("attention_max_segments", &attention_max_segments, py::arg("num_rows"),
        py::arg("num_requests"), py::arg("group"), "Segments that a work map has room for.");
  m.def("attention_work_size", &attention_work_size, py::arg("num_rows"), py::arg("num_requests"),
        py::arg("group"), py::arg("num_blocks"), "Elements of a work map.");
  m.def("attention_workspace_bytes", &attention_workspace_bytes, py::arg("num_blocks"),
        py::arg("head_dim"), "Bytes of the attention kernel's workspace.");
}
