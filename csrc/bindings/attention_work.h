// What the ops that write or read the work map of a pass's attention check and fill in alike.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "common/attention_layout.h"
#include "ops.h"

namespace p_eagle {

// Checks the map of a pass, and returns the number of thread blocks that it is for.
inline int check_work(char const* op, Tensor const& work, int32_t device,
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

inline void check_window(char const* op, int64_t window) {
  STD_TORCH_CHECK(0 <= window && window <= kAttentionMaxKeys, op, ": `window` must be 0 to ",
                  kAttentionMaxKeys, ", got ", window);
}

// Checks what the map of these requests and rows, which have been checked, is made with.
inline PlanAttentionParams check_plan(char const* op, Tensor const& row_start,
                                      Tensor const& seq_lens, Tensor const& positions,
                                      int64_t num_heads, int64_t num_kv_heads, int64_t max_keys,
                                      int64_t window, bool is_tree, Tensor const& work) {
  STD_TORCH_CHECK(num_kv_heads > 0, op, ": `num_kv_heads` must be above 0, got ", num_kv_heads);
  STD_TORCH_CHECK(num_heads > 0 && num_heads % num_kv_heads == 0, op,
                  ": `num_heads` must be a multiple of num_kv_heads = ", num_kv_heads, ", got ",
                  num_heads);
  check_window(op, window);
  int64_t const R = positions.numel();
  int64_t const B = seq_lens.numel();
  int64_t const group = num_heads / num_kv_heads;
  int const num_blocks = check_work(op, work, positions.get_device_index(),
                                    AttentionWorkLayout{R, B, group}, num_kv_heads, max_keys);
  return {
      .row_start = row_start.const_data_ptr<int32_t>(),
      .seq_lens = seq_lens.const_data_ptr<int32_t>(),
      .positions = positions.const_data_ptr<int64_t>(),
      .work = work.mutable_data_ptr<int32_t>(),
      .num_rows = int(R),
      .num_requests = int(B),
      .group = int(group),
      .num_kv_heads = int(num_kv_heads),
      .max_keys = int(max_keys),
      .window = int(window),
      .num_blocks = num_blocks,
      .is_tree = is_tree,
  };
}

}  // namespace p_eagle
