// Attention of the drafter's rows over the paged cache.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "bindings/attention_work.h"
#include "bindings/cache.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

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

  DeviceGuard const guard(device);
  PlanAttentionParams const params = check_plan(kOp, row_start, seq_lens, positions, num_heads,
                                                num_kv_heads, max_keys, window, is_tree, work);
  check_launch(kOp, launch_plan_attention(params, current_stream(kOp, device)));
}

// Checks keys or values of a paged cache [blocks, Nkv, block_size, D] in any strides that leave the
// rows whole and 16-byte aligned.
void check_cache(char const* op, char const* name, Tensor const& cache, int32_t device,
                 ScalarType dtype, std::initializer_list<int64_t> expected) {
  check_strided_tensor(op, name, cache, device, dtype, expected);
  int64_t const bytes = cache.element_size();
  auto const address = reinterpret_cast<uintptr_t>(cache.const_data_ptr());
  STD_TORCH_CHECK(cache.stride(3) == 1, op, ": `", name,
                  "` must be contiguous in its last dimension, got strides ", strides_of(cache));
  STD_TORCH_CHECK(address % 16 == 0 && cache.stride(0) * bytes % 16 == 0 &&
                      cache.stride(1) * bytes % 16 == 0 && cache.stride(2) * bytes % 16 == 0,
                  op, ": `", name, "` must have 16-byte aligned rows, got an address ",
                  address % 16, " bytes past that and strides ", strides_of(cache), " of ", bytes,
                  "-byte elements");
}

void paged_attention(Tensor const& q, Tensor const& k_cache, Tensor const& v_cache,
                     Tensor const& k_scale, Tensor const& v_scale, Tensor const& block_table,
                     Tensor const& row_start, Tensor const& seq_lens, Tensor const& positions,
                     std::optional<Tensor> const& tree_mask, std::optional<Tensor> const& sinks,
                     double softmax_scale, int64_t window, Tensor const& work, Tensor& workspace,
                     Tensor& out) {
  constexpr char const* kOp = "paged_attention";

  // `q`, `k_cache` and `block_table` define the device and the sizes.
  STD_TORCH_CHECK(is_on_device(q), kOp, ": `q` must be on ", kDevice);
  STD_TORCH_CHECK(q.dim() == 3, kOp, ": `q` must be [R, Nq, D], got ", shape_of(q));
  STD_TORCH_CHECK(k_cache.dim() == 4, kOp, ": `k_cache` must be [blocks, Nkv, block_size, D], got ",
                  shape_of(k_cache));
  STD_TORCH_CHECK(block_table.dim() == 2, kOp, ": `block_table` must be [B, max_blocks], got ",
                  shape_of(block_table));
  int64_t const R = q.size(0);
  int64_t const Nq = q.size(1);
  int64_t const D = q.size(2);
  int64_t const blocks = k_cache.size(0);
  int64_t const Nkv = k_cache.size(1);
  int64_t const block_size = k_cache.size(2);
  int64_t const B = block_table.size(0);
  int64_t const max_blocks = block_table.size(1);
  int32_t const device = q.get_device_index();
  ScalarType const type = q.scalar_type();
  ScalarType const cache_type = k_cache.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  CacheType const cache_dtype = to_cache_type(kOp, cache_type, type);
  STD_TORCH_CHECK(D == 64 || D == 128, kOp, ": the head size must be 64 or 128, got ", D);
  STD_TORCH_CHECK(block_size == 16 || block_size == 32 || block_size == 64 || block_size == 128,
                  kOp, ": the block size must be 16, 32, 64 or 128, got ", block_size);
  STD_TORCH_CHECK(Nkv > 0 && Nq % Nkv == 0, kOp, ": Nq must be a multiple of Nkv = ", Nkv, ", got ",
                  Nq);

  check_vector_tensor(kOp, "q", q, device, type, {R, Nq, D});
  check_cache(kOp, "k_cache", k_cache, device, cache_type, {blocks, Nkv, block_size, D});
  check_cache(kOp, "v_cache", v_cache, device, cache_type, {blocks, Nkv, block_size, D});
  check_tensor(kOp, "k_scale", k_scale, device, ScalarType::Float, {1});
  check_tensor(kOp, "v_scale", v_scale, device, ScalarType::Float, {1});
  check_tensor(kOp, "block_table", block_table, device, ScalarType::Int, {B, max_blocks});
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "seq_lens", seq_lens, device, ScalarType::Int, {B});
  check_tensor(kOp, "positions", positions, device, ScalarType::Long, {R});
  if (tree_mask) {
    check_tensor(kOp, "tree_mask", *tree_mask, device, ScalarType::Long, {R});
  }
  if (sinks) {
    check_tensor(kOp, "sinks", *sinks, device, ScalarType::Float, {Nq});
  }
  STD_TORCH_CHECK(softmax_scale > 0, kOp, ": `softmax_scale` must be above 0, got ", softmax_scale);
  check_window(kOp, window);
  AttentionWorkLayout const layout{R, B, Nq / Nkv};
  int const num_blocks = check_work(kOp, work, device, layout, Nkv, max_blocks * block_size);
  STD_TORCH_CHECK(workspace.dim() == 1, kOp, ": `workspace` must be 1-D, got shape ",
                  shape_of(workspace));
  check_vector_tensor(kOp, "workspace", workspace, device, ScalarType::Byte, {workspace.numel()});
  int64_t const needed = AttentionWorkspaceLayout{num_blocks, D}.bytes();
  STD_TORCH_CHECK(workspace.numel() >= needed, kOp, ": `workspace` must have ", needed,
                  " bytes for ", num_blocks, " thread blocks and head size ", D, ", got ",
                  workspace.numel());
  check_vector_tensor(kOp, "out", out, device, type, {R, Nq * D});
  if (R == 0 || B == 0) {
    return;
  }

  DeviceGuard const guard(device);
  PagedAttentionParams const params{
      .q = q.const_data_ptr(),
      .k_cache = k_cache.const_data_ptr(),
      .v_cache = v_cache.const_data_ptr(),
      .k_scale = k_scale.const_data_ptr<float>(),
      .v_scale = v_scale.const_data_ptr<float>(),
      .block_table = block_table.const_data_ptr<int32_t>(),
      .row_start = row_start.const_data_ptr<int32_t>(),
      .positions = positions.const_data_ptr<int64_t>(),
      .tree_mask = tree_mask ? tree_mask->const_data_ptr<int64_t>() : nullptr,
      .sinks = sinks ? sinks->const_data_ptr<float>() : nullptr,
      .work = work.const_data_ptr<int32_t>(),
      .workspace = workspace.mutable_data_ptr(),
      .out = out.mutable_data_ptr(),
      .k_block_stride = k_cache.stride(0),
      .k_head_stride = k_cache.stride(1),
      .k_row_stride = k_cache.stride(2),
      .v_block_stride = v_cache.stride(0),
      .v_head_stride = v_cache.stride(1),
      .v_row_stride = v_cache.stride(2),
      .softmax_scale = float(softmax_scale),
      .window = int(window),
      .num_rows = int(R),
      .num_requests = int(B),
      .num_heads = int(Nq),
      .num_kv_heads = int(Nkv),
      .head_dim = int(D),
      .num_cache_blocks = int(blocks),
      .block_size = int(block_size),
      .max_blocks = int(max_blocks),
      .num_blocks = num_blocks,
  };
  check_launch(kOp,
               launch_paged_attention(params, dtype, cache_dtype, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"plan_attention", TORCH_BOX(&plan_attention)},
    {"paged_attention", TORCH_BOX(&paged_attention)},
};

}  // namespace

std::span<CudaOp const> attention_ops() { return kOps; }

}  // namespace p_eagle
