// p_eagle_cuda._C: loads libp_eagle_ops.so, which registers the CUDA ops, and says how it was built.
// torch must be imported first, because the library resolves its symbols in libtorch.so.

#include <cuda_runtime_api.h>
#include <cutlass/version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/build_info.h"
#include "common/attention_layout.h"
#include "head/tiles.h"
#include "linear/partition.h"
#include "verification/layout.h"

namespace py = pybind11;

namespace {

std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::string cutlass_version() {
  std::string const minor = std::to_string(CUTLASS_MINOR);
  return std::to_string(CUTLASS_MAJOR) + "." + minor + "." + std::to_string(CUTLASS_PATCH);
}

// How a linear layer would be launched; what a planner or a test asks for.
py::dict linear_plan(int rows, int columns, int tile_rows, int num_rows, int weight_bytes,
                     int num_sms) {
  using namespace p_eagle;
  LinearTile const tile = linear_tile(tile_rows, tile_tokens(num_rows), weight_bytes);
  LinearPartition const partition =
      LinearPartition::make((rows + tile_rows - 1) / tile_rows, columns / kBlockColumns,
                            linear_grid(tile, num_sms), num_rows <= tile.tokens);
  std::vector<int> first_units;
  for (int cta = 0; cta <= partition.num_ctas; ++cta) {
    first_units.push_back(partition.first_unit(cta));
  }
  std::vector<int> cta_of_units;
  for (int unit = 0; unit < partition.num_tiles * partition.tile_blocks; ++unit) {
    cta_of_units.push_back(partition.cta_of(unit));
  }
  py::dict plan;
  plan["tokens"] = tile.tokens;
  plan["stages"] = tile.stages;
  plan["stage_bytes"] = tile.stage_bytes();
  plan["threads"] = tile.threads();
  plan["ctas_per_sm"] = tile.ctas_per_sm;
  plan["shared_bytes"] = tile.shared_bytes();
  plan["tile_blocks"] = partition.tile_blocks;
  plan["num_tiles"] = partition.num_tiles;
  plan["first_units"] = first_units;
  plan["cta_of_units"] = cta_of_units;
  return plan;
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
  m.def("linear_workspace_bytes", &p_eagle::linear_workspace_bytes, py::arg("num_sms"),
        "Size of the linear layers' workspace on a device of this many SMs.");
  m.def("lm_head_workspace_bytes", &p_eagle::lm_head_workspace_bytes, py::arg("num_sms"),
        py::arg("num_samples"), py::arg("top_k"),
        "Size of the workspace of lm_head_topk for so many rows, on a device of this many SMs.");
  m.def("verify_workspace_bytes", &p_eagle::verify_workspace_bytes, py::arg("num_rows"),
        py::arg("vocab_size"), "Size of the workspace of verify for so many rows of logits.");
  m.def("linear_plan", &linear_plan, py::arg("rows"), py::arg("columns"), py::arg("tile_rows"),
        py::arg("num_rows"), py::arg("weight_bytes"), py::arg("num_sms"),
        "How the weight [rows, columns] of a linear layer is dealt to CTAs.");
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
