// The rows that go on in the last layer.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "bindings/attention_work.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

void prune_rows(Tensor const& x, Tensor const& positions, Tensor const& row_start,
                Tensor const& sample_rows, Tensor const& seq_lens, Tensor& out,
                Tensor& pruned_positions, Tensor& pruned_row_start, Tensor& pruned_sample_rows,
                std::optional<Tensor> const& work, int64_t num_heads, int64_t num_kv_heads,
                int64_t max_keys, int64_t window) {
  constexpr char const* kOp = "prune_rows";

  // `x`, `seq_lens` and `sample_rows` define the device and R, H, B, N; the rest is checked by them.
  STD_TORCH_CHECK(is_on_device(x), kOp, ": `x` must be on ", kDevice);
  STD_TORCH_CHECK(x.dim() == 2, kOp, ": `x` must be [R, H], got ", shape_of(x));
  STD_TORCH_CHECK(seq_lens.dim() == 1, kOp, ": `seq_lens` must be [B], got ", shape_of(seq_lens));
  STD_TORCH_CHECK(sample_rows.dim() == 1, kOp, ": `sample_rows` must be [B * K], got ",
                  shape_of(sample_rows));
  int64_t const R = x.size(0);
  int64_t const H = x.size(1);
  int64_t const B = seq_lens.size(0);
  int64_t const N = sample_rows.size(0);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  to_dtype(kOp, type);
  STD_TORCH_CHECK(B >= 1 && N >= 1 && N % B == 0, kOp,
                  ": `sample_rows` must have as many elements for each request, at least 1, got ",
                  N, " for ", B, " requests");

  check_tensor(kOp, "x", x, device, type, {R, H});
  check_tensor(kOp, "positions", positions, device, ScalarType::Long, {R});
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "sample_rows", sample_rows, device, ScalarType::Int, {N});
  check_tensor(kOp, "seq_lens", seq_lens, device, ScalarType::Int, {B});
  check_tensor(kOp, "out", out, device, type, {N, H});
  check_tensor(kOp, "pruned_positions", pruned_positions, device, ScalarType::Long, {N});
  check_tensor(kOp, "pruned_row_start", pruned_row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "pruned_sample_rows", pruned_sample_rows, device, ScalarType::Int, {N});
  STD_TORCH_CHECK(work || (num_heads == 0 && num_kv_heads == 0 && max_keys == 0 && window == 0),
                  kOp,
                  ": `num_heads`, `num_kv_heads`, `max_keys` and `window` are of a `work` map, "
                  "got ",
                  num_heads, ", ", num_kv_heads, ", ", max_keys, " and ", window, " without one");
  PlanAttentionParams attention{};
  if (work) {
    attention = check_plan(kOp, pruned_row_start, seq_lens, pruned_positions, num_heads,
                           num_kv_heads, max_keys, window, /*is_tree=*/false, *work);
  }

  DeviceGuard const guard(device);
  PruneRowsParams const params{
      .x = x.const_data_ptr(),
      .positions = positions.const_data_ptr<int64_t>(),
      .row_start = row_start.const_data_ptr<int32_t>(),
      .sample_rows = sample_rows.const_data_ptr<int32_t>(),
      .out = out.mutable_data_ptr(),
      .pruned_positions = pruned_positions.mutable_data_ptr<int64_t>(),
      .pruned_row_start = pruned_row_start.mutable_data_ptr<int32_t>(),
      .pruned_sample_rows = pruned_sample_rows.mutable_data_ptr<int32_t>(),
      .num_rows = int(R),
      .num_requests = int(B),
      .num_kept = int(N / B),
      .row_bytes = int(H * x.element_size()),
      .attention = attention,
  };
  check_launch(kOp, launch_prune_rows(params, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"prune_rows", TORCH_BOX(&prune_rows)},
};

}  // namespace

std::span<CudaOp const> pruning_ops() { return kOps; }

}  // namespace p_eagle
