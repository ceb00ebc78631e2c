// From what the target has just computed to the input of the drafter's first layer.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bindings/attention_work.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/linear.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

void prepare_inputs(Tensor const& target_tokens, Tensor const& target_positions,
                    Tensor const& query_start, Tensor const& num_rejected,
                    Tensor const& next_tokens, Tensor const& block_table, int64_t K,
                    int64_t mask_token_id, int64_t block_size, int64_t max_position,
                    Tensor& token_ids, Tensor& positions, Tensor& slots, Tensor& source_row,
                    Tensor& row_start, Tensor& seq_lens, Tensor& sample_rows,
                    std::optional<Tensor> const& work, int64_t num_heads, int64_t num_kv_heads,
                    int64_t window) {
  constexpr char const* kOp = "prepare_inputs";

  // `target_tokens` and `num_rejected` define the device and T, B; the rest is checked by them.
  STD_TORCH_CHECK(is_on_device(target_tokens), kOp, ": `target_tokens` must be on ", kDevice);
  STD_TORCH_CHECK(target_tokens.dim() == 1, kOp, ": `target_tokens` must be [T], got ",
                  shape_of(target_tokens));
  STD_TORCH_CHECK(num_rejected.dim() == 1, kOp, ": `num_rejected` must be [B], got ",
                  shape_of(num_rejected));
  int64_t const T = target_tokens.size(0);
  int64_t const B = num_rejected.size(0);
  int32_t const device = target_tokens.get_device_index();
  STD_TORCH_CHECK(B >= 1 || T == 0, kOp, ": `num_rejected` must have a request for the ", T,
                  " target rows");
  STD_TORCH_CHECK(K >= 1, kOp, ": `num_speculative_tokens` must be at least 1, got ", K);
  STD_TORCH_CHECK(mask_token_id >= 0, kOp, ": `mask_token_id` must not be negative, got ",
                  mask_token_id);
  STD_TORCH_CHECK(block_size >= 1, kOp, ": `block_size` must be at least 1, got ", block_size);
  STD_TORCH_CHECK(max_position >= 1, kOp, ": `max_position` must be at least 1, got ",
                  max_position);
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(B == 0 || (T <= kMaxInt && K <= (kMaxInt - T) / B), kOp,
                  ": T + B * K must be below 2**31, got T = ", T, ", B = ", B, ", K = ", K);
  int64_t const R = T + B * (K - 1);

  check_tensor(kOp, "target_tokens", target_tokens, device, ScalarType::Long, {T});
  check_tensor(kOp, "target_positions", target_positions, device, ScalarType::Long, {T});
  check_tensor(kOp, "query_start", query_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "num_rejected", num_rejected, device, ScalarType::Int, {B});
  check_tensor(kOp, "next_tokens", next_tokens, device, ScalarType::Long, {B});
  STD_TORCH_CHECK(block_table.dim() == 2, kOp, ": `block_table` must be [B, max_blocks], got ",
                  shape_of(block_table));
  int64_t const max_blocks = block_table.size(1);
  check_tensor(kOp, "block_table", block_table, device, ScalarType::Int, {B, max_blocks});
  check_tensor(kOp, "token_ids", token_ids, device, ScalarType::Long, {R});
  check_tensor(kOp, "positions", positions, device, ScalarType::Long, {R});
  check_tensor(kOp, "slots", slots, device, ScalarType::Long, {R});
  check_tensor(kOp, "source_row", source_row, device, ScalarType::Int, {R});
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "seq_lens", seq_lens, device, ScalarType::Int, {B});
  check_tensor(kOp, "sample_rows", sample_rows, device, ScalarType::Int, {B * K});
  STD_TORCH_CHECK(work || (num_heads == 0 && num_kv_heads == 0 && window == 0), kOp,
                  ": `num_heads`, `num_kv_heads` and `window` are of a `work` map, got ", num_heads,
                  ", ", num_kv_heads, " and ", window, " without one");
  PlanAttentionParams attention{};
  if (work) {
    int64_t max_keys = 0;
    if (__builtin_mul_overflow(max_blocks, block_size, &max_keys)) {
      max_keys = std::numeric_limits<int64_t>::max();  // which is as much too large
    }
    attention = check_plan(kOp, row_start, seq_lens, positions, num_heads, num_kv_heads, max_keys,
                           window, /*is_tree=*/false, *work);
  }

  DeviceGuard const guard(device);
  PrepareInputsParams const params{
      .target_tokens = target_tokens.const_data_ptr<int64_t>(),
      .target_positions = target_positions.const_data_ptr<int64_t>(),
      .query_start = query_start.const_data_ptr<int32_t>(),
      .num_rejected = num_rejected.const_data_ptr<int32_t>(),
      .next_tokens = next_tokens.const_data_ptr<int64_t>(),
      .block_table = block_table.const_data_ptr<int32_t>(),
      .token_ids = token_ids.mutable_data_ptr<int64_t>(),
      .positions = positions.mutable_data_ptr<int64_t>(),
      .slots = slots.mutable_data_ptr<int64_t>(),
      .source_row = source_row.mutable_data_ptr<int32_t>(),
      .row_start = row_start.mutable_data_ptr<int32_t>(),
      .seq_lens = seq_lens.mutable_data_ptr<int32_t>(),
      .sample_rows = sample_rows.mutable_data_ptr<int32_t>(),
      .mask_token_id = mask_token_id,
      .block_size = block_size,
      .max_position = max_position,
      .max_blocks = max_blocks,
      .num_target_rows = int(T),
      .num_requests = int(B),
      .num_speculative_tokens = int(K),
      .max_rows = int(R),
      .attention = attention,
  };
  check_launch(kOp, launch_prepare_inputs(params, current_stream(kOp, device)));
}

void embed_norm_concat(Tensor const& token_ids, Tensor const& source_row, Tensor const& num_rows,
                       Tensor const& embedding, Tensor const& hidden, Tensor const& mask_hidden,
                       Tensor const& embed_weight, Tensor const& hidden_weight, double eps,
                       bool norm_before_residual, Tensor& out, Tensor& residual) {
  constexpr char const* kOp = "embed_norm_concat";

  // `hidden` and `embedding` define the device and R, H, V; the rest is checked against them.
  STD_TORCH_CHECK(is_on_device(hidden), kOp, ": `hidden` must be on ", kDevice);
  STD_TORCH_CHECK(hidden.dim() == 2, kOp, ": `hidden` must be [R, H], got ", shape_of(hidden));
  STD_TORCH_CHECK(embedding.dim() == 2, kOp, ": `embedding` must be [V, H], got ",
                  shape_of(embedding));
  int64_t const R = hidden.size(0);
  int64_t const H = hidden.size(1);
  int64_t const V = embedding.size(0);
  int32_t const device = hidden.get_device_index();
  ScalarType const type = hidden.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(H % 8 == 0 && H <= 8192, kOp, ": H must be a multiple of 8, <= 8192, got ", H);

  check_tensor(kOp, "token_ids", token_ids, device, ScalarType::Long, {R});
  check_tensor(kOp, "source_row", source_row, device, ScalarType::Int, {R});
  check_tensor(kOp, "num_rows", num_rows, device, ScalarType::Int, {1});
  check_vector_tensor(kOp, "embedding", embedding, device, type, {V, H});
  check_vector_tensor(kOp, "hidden", hidden, device, type, {R, H});
  check_vector_tensor(kOp, "mask_hidden", mask_hidden, device, type, {H});
  check_vector_tensor(kOp, "embed_weight", embed_weight, device, type, {H});
  check_vector_tensor(kOp, "hidden_weight", hidden_weight, device, type, {H});
  check_vector_tensor(kOp, "out", out, device, type, {R, 2 * H});
  check_vector_tensor(kOp, "residual", residual, device, type, {R, H});
  if (R == 0) {
    return;
  }

  DeviceGuard const guard(device);
  EmbedNormConcatParams const params{
      .token_ids = token_ids.const_data_ptr<int64_t>(),
      .source_row = source_row.const_data_ptr<int32_t>(),
      .num_rows = num_rows.const_data_ptr<int32_t>(),
      .embedding = embedding.const_data_ptr(),
      .hidden = hidden.const_data_ptr(),
      .mask_hidden = mask_hidden.const_data_ptr(),
      .embed_weight = embed_weight.const_data_ptr(),
      .hidden_weight = hidden_weight.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .residual = residual.mutable_data_ptr(),
      .max_rows = int(R),
      .hidden_size = int(H),
      .vocab_size = int(V),
      .eps = float(eps),
      .norm_before_residual = norm_before_residual,
  };
  check_launch(kOp, launch_embed_norm_concat(params, dtype, current_stream(kOp, device)));
}

void project_taps(std::vector<Tensor> const& taps, Tensor const& source_row, Tensor const& num_rows,
                  Tensor const& weight, std::optional<Tensor> const& weight_scale,
                  bool fp8_activations, std::optional<Tensor> const& input_norm,
                  std::optional<Tensor> const& fc_norms, double eps, Tensor& out,
                  Tensor& workspace) {
  constexpr char const* kOp = "project_taps";
  int64_t const n = int64_t(taps.size());
  STD_TORCH_CHECK(1 <= n && n <= kMaxTaps, kOp, ": `taps` must hold 1 to ", kMaxTaps, ", got ", n);
  STD_TORCH_CHECK(is_on_device(taps[0]), kOp, ": `taps[0]` must be on ", kDevice);
  STD_TORCH_CHECK(taps[0].dim() == 2, kOp, ": `taps[0]` must be [T, Ht], got ", shape_of(taps[0]));
  STD_TORCH_CHECK(weight.dim() == 2, kOp, ": `weight` must be 2-D, got ", shape_of(weight));
  STD_TORCH_CHECK(source_row.dim() == 1, kOp, ": `source_row` must be [R], got ",
                  shape_of(source_row));
  int64_t const T = taps[0].size(0);
  int64_t const Ht = taps[0].size(1);
  int64_t const R = source_row.size(0);
  int64_t const H = weight.size(0);
  int32_t const device = taps[0].get_device_index();
  ScalarType const type = taps[0].scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(Ht % kBlockColumns == 0, kOp, ": the width of a tap must be a multiple of ",
                  kBlockColumns, ", got ", Ht);
  STD_TORCH_CHECK(H % 8 == 0, kOp, ": H must be a multiple of 8, got ", H);
  STD_TORCH_CHECK(!input_norm || !fc_norms, kOp,
                  ": at most one of `input_norm` and `fc_norms` may be given, got both");

  check_tensor(kOp, "source_row", source_row, device, ScalarType::Int, {R});
  check_tensor(kOp, "num_rows", num_rows, device, ScalarType::Int, {1});
  LinearInput input{.source_row = source_row.const_data_ptr<int32_t>(),
                    .num_rows = num_rows.const_data_ptr<int32_t>(),
                    .num_taps = int(n),
                    .tap_width = int(Ht),
                    .max_rows = int(R),
                    .eps = float(eps),
                    .norms_each_tap = fc_norms.has_value(),
                    .is_e4m3 = check_activations(kOp, fp8_activations, "weight", weight_scale)};
  for (int64_t i = 0; i < n; ++i) {
    std::string const name = "taps[" + std::to_string(i) + "]";
    check_vector_tensor(kOp, name.c_str(), taps[i], device, type, {T, Ht});
    input.taps[i] = taps[i].const_data_ptr();
  }
  void const* const norm = check_optional(kOp, "input_norm", input_norm, device, type, {n * Ht});
  void const* const norms = check_optional(kOp, "fc_norms", fc_norms, device, type, {n, Ht});
  input.norm_weight = norm ? norm : norms;
  check_vector_tensor(kOp, "out", out, device, type, {R, H});
  ProjectTapsParams const params{
      .input = input,
      .weight = check_weight(kOp, "weight", weight, weight_scale, device, type, H, n * Ht),
      .workspace = check_workspace(kOp, workspace, device),
      .out = out.mutable_data_ptr(),
  };
  if (R == 0 || H == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_project_taps(params, dtype, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"prepare_inputs", TORCH_BOX(&prepare_inputs)},
    {"project_taps", TORCH_BOX(&project_taps)},
    {"embed_norm_concat", TORCH_BOX(&embed_norm_concat)},
};

}  // namespace

std::span<CudaOp const> input_ops() { return kOps; }

}  // namespace p_eagle
