// Attention of the drafter's rows over the paged cache.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/registration.h"
#include "common/attention_layout.h"
#include "ops.h"

namespace p_eagle {
namespace {

// Checks the map of a pass, and returns the number of thread blocks that it is for.
int check_work(char const* op, Tensor const& work, int32_t device,
               AttentionWorkLayout const& layout, int64_t num_kv_heads, int64_t max_keys) {
  STD_TORCH_CHECK(work.dim() == 1, op, ": `work` must be 1-D, got shape ", shape_of(work));
  check_vector_tensor(op, "work", work, device, ScalarType::Int, {work.numel()});
  int64_t const num_blocks = layout.num_blocks(work.numel());
  STD_TORCH_CHECK(num_blocks > 0, op, ": `work` must have more than ", layout.size(0),
                  " elements for ", layout.num_rows, " rows of ", layout.num_requests,
                  " requests with ", layout.group, " query heads per KV head, got ", work.numel());
  STD_TORCH_CHECK(0 <= max_keys && max_keys <= kAttentionMaxKeys, op, ": a request may have up to ",
                  kAttentionMaxKeys, " keys, the block table holds ", max_keys);
  int64_t const tiles = std::max<int64_t>(
      (max_keys + kAttentionTileKeys - 1) / kAttentionTileKeys * num_kv_heads, num_kv_heads);
  STD_TORCH_CHECK(layout.max_segments() * tiles < int64_t(1) << 31, op,
                  ": expected less than 2**31 tiles of keys, got up to ", layout.max_segments(),
                  " tiles of rows with ", tiles, " each");
  return int(num_blocks);
}

void check_window(char const* op, int64_t window) {
  STD_TORCH_CHECK(0 <= window && window <= kAttentionMaxKeys, op, ": `window` must be 0 to ",
                  kAttentionMaxKeys, ", got ", window);
}

void plan_attention(Tensor const& row_start, Tensor const& seq_lens, Tensor const& positions,
                    int64_t num_heads, int64_t num_kv_heads, int64_t max_keys, int64_t window,
                    bool is_tree, Tensor& work) {
  constexpr char const* kOp = "plan_attention";

  // `positions` and `seq_lens` define the device and R, B; the rest is checked against them.
  STD_TORCH_CHECK(is_on_device(positions), kOp, ": `positions` must be on ", kDevice);
  STD_TORCH_CHECK(positions.dim() == 1, kOp, ": `positions` must be [R], got ",
                  shape_of(positions));
  STD_TORCH_CHECK(seq_lens.dim() == 1, kOp, ": `seq_lens` must be [B], got ", shape_of(seq_lens));
  int64_t const R = positions.numel();
  int64_t const B = seq_lens.numel();
  int32_t const device = positions.get_device_index();
  check_tensor(kOp, "positions", positions, device, ScalarType::Long, {R});
  check_tensor(kOp, "seq_lens", seq_lens, device, ScalarType::Int, {B});
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  STD_TORCH_CHECK(num_kv_heads > 0, kOp, ": `num_kv_heads` must be above 0, got ", num_kv_heads);
  STD_TORCH_CHECK(num_heads > 0 && num_heads % num_kv_heads == 0, kOp,
                  ": `num_heads` must be a multiple of num_kv_heads = ", num_kv_heads, ", got ",
                  num_heads);
  check_window(kOp, window);
  AttentionWorkLayout const layout{R, B, num_heads / num_kv_heads};
  int const num_blocks = check_work(kOp, work, device, layout, num_kv_heads, max_keys);

  DeviceGuard const guard(device);
  PlanAttentionParams const params{
      .row_start = row_start.const_data_ptr<int32_t>(),
      .seq_lens = seq_lens.const_data_ptr<int32_t>(),
      .positions = positions.const_data_ptr<int64_t>(),
      .work = work.mutable_data_ptr<int32_t>(),
      .num_rows = int(R),
      .num_requests = int(B),
      .num_heads = int(num_heads),
      .num_kv_heads = int(num_kv_heads),
      .max_keys = int(max_keys),
      .window = int(window),
      .num_blocks = num_blocks,
      .is_tree = is_tree,
  };
  check_launch(kOp, launch_plan_attention(params, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"plan_attention", TORCH_BOX(&plan_attention)},
};

}  // namespace

std::span<CudaOp const> attention_ops() { return kOps; }

}  // namespace p_eagle
