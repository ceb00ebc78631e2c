// The linear parts of a decoder layer.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "bindings/cache.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/linear.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

void qkv_rope_cache(Tensor const& x, std::optional<Tensor> const& norm_weight,
                    std::optional<Tensor> const& sum_squares, Tensor const& weight,
                    std::optional<Tensor> const& weight_scale, bool fp8_activations,
                    std::optional<Tensor> const& bias, std::optional<Tensor> const& mask_heads,
                    std::optional<Tensor> const& source_row, std::optional<Tensor> const& q_norm,
                    std::optional<Tensor> const& k_norm, Tensor const& rope,
                    Tensor const& positions, Tensor const& slots, Tensor const& num_rows,
                    Tensor const& k_scale, Tensor const& v_scale, double eps, Tensor& q,
                    Tensor& k_cache, Tensor& v_cache, Tensor& workspace) {
  constexpr char const* kOp = "qkv_rope_cache";
  check_rows(kOp, "x", x);
  STD_TORCH_CHECK(q.dim() == 3, kOp, ": `q` must be [R, Nq, D], got ", shape_of(q));
  STD_TORCH_CHECK(k_cache.dim() == 4, kOp, ": `k_cache` must be [blocks, Nkv, block, D], got ",
                  shape_of(k_cache));
  STD_TORCH_CHECK(rope.dim() == 2, kOp, ": `rope` must be [P, D], got ", shape_of(rope));
  int64_t const R = x.size(0);
  int64_t const Hin = x.size(1);
  int64_t const Nq = q.size(1);
  int64_t const D = q.size(2);
  int64_t const blocks = k_cache.size(0);
  int64_t const Nkv = k_cache.size(1);
  int64_t const block_size = k_cache.size(2);
  int64_t const heads = Nq + 2 * Nkv;
  int64_t const P = rope.size(0);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(D == 64 || D == 128, kOp, ": the head size must be 64 or 128, got ", D);
  STD_TORCH_CHECK(q_norm.has_value() == k_norm.has_value(), kOp,
                  ": `q_norm` and `k_norm` must both be given or both be None");
  STD_TORCH_CHECK(mask_heads.has_value() == source_row.has_value(), kOp,
                  ": `mask_heads` and `source_row` must both be given or both be None");
  STD_TORCH_CHECK(P >= 1, kOp, ": `rope` must have a row for a position, got ", shape_of(rope));
  ScalarType const cache_type = k_cache.scalar_type();

  check_tensor(kOp, "rope", rope, device, ScalarType::Float, {P, D});
  check_tensor(kOp, "positions", positions, device, ScalarType::Long, {R});
  check_tensor(kOp, "slots", slots, device, ScalarType::Long, {R});
  check_vector_tensor(kOp, "q", q, device, type, {R, Nq, D});
  LinearInput input = check_input(kOp, x, norm_weight, sum_squares, num_rows, eps);
  input.is_e4m3 = check_activations(kOp, fp8_activations, "weight", weight_scale);
  if (source_row) {
    check_tensor(kOp, "source_row", *source_row, device, ScalarType::Int, {R});
    check_tensor(kOp, "mask_heads", *mask_heads, device, ScalarType::Float, {heads * D});
    input.source_row = source_row->const_data_ptr<int32_t>();
    input.is_in_place = true;
  }
  QkvRopeCacheParams const params{
      .input = input,
      .weight = check_weight(kOp, "weight", weight, weight_scale, device, type, heads * D, Hin),
      .workspace = check_workspace(kOp, workspace, device),
      .bias = check_optional(kOp, "bias", bias, device, type, {heads * D}),
      .mask_heads = mask_heads ? mask_heads->const_data_ptr<float>() : nullptr,
      .q_norm = check_optional(kOp, "q_norm", q_norm, device, type, {D}),
      .k_norm = check_optional(kOp, "k_norm", k_norm, device, type, {D}),
      .rope = rope.const_data_ptr<float>(),
      .positions = positions.const_data_ptr<int64_t>(),
      .slots = slots.const_data_ptr<int64_t>(),
      .q = q.mutable_data_ptr(),
      .k_cache = check_cache(kOp, "k_cache", k_cache, k_scale, "k_scale", device, cache_type,
                             {blocks, Nkv, block_size, D}),
      .v_cache = check_cache(kOp, "v_cache", v_cache, v_scale, "v_scale", device, cache_type,
                             {blocks, Nkv, block_size, D}),
      .cache_type = to_cache_type(kOp, cache_type, type),
      .num_heads = int(Nq),
      .num_kv_heads = int(Nkv),
      .head_dim = int(D),
      .block_size = int(block_size),
      .num_positions = int(P),
  };
  if (R == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_qkv_rope_cache(params, dtype, current_stream(kOp, device)));
}

void linear_residual(Tensor const& x, Tensor const& weight,
                     std::optional<Tensor> const& weight_scale, bool fp8_activations,
                     std::optional<Tensor> const& bias, Tensor const& num_rows, Tensor& residual,
                     Tensor& sum_squares, Tensor& workspace) {
  constexpr char const* kOp = "linear_residual";
  check_rows(kOp, "x", x);
  STD_TORCH_CHECK(weight.dim() == 2, kOp, ": `weight` must be 2-D, got ", shape_of(weight));
  int64_t const R = x.size(0);
  int64_t const H = weight.size(0);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(H % 8 == 0, kOp, ": H must be a multiple of 8, got ", H);

  check_vector_tensor(kOp, "residual", residual, device, type, {R, H});
  check_tensor(kOp, "sum_squares", sum_squares, device, ScalarType::Float, {num_statistics(H), R});
  LinearInput input = check_input(kOp, x, std::nullopt, std::nullopt, num_rows, 0.0);
  input.is_e4m3 = check_activations(kOp, fp8_activations, "weight", weight_scale);
  LinearResidualParams const params{
      .input = input,
      .weight = check_weight(kOp, "weight", weight, weight_scale, device, type, H, x.size(1)),
      .workspace = check_workspace(kOp, workspace, device),
      .bias = check_optional(kOp, "bias", bias, device, type, {H}),
      .residual = residual.mutable_data_ptr(),
      .sum_squares = sum_squares.mutable_data_ptr<float>(),
  };
  if (R == 0 || H == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_linear_residual(params, dtype, current_stream(kOp, device)));
}

void norm_swiglu(Tensor const& x, Tensor const& norm_weight,
                 std::optional<Tensor> const& sum_squares, Tensor const& gate_up,
                 std::optional<Tensor> const& gate_up_scale, bool fp8_activations,
                 Tensor const& num_rows, double eps, Tensor& out, Tensor& workspace) {
  constexpr char const* kOp = "norm_swiglu";
  check_rows(kOp, "x", x);
  STD_TORCH_CHECK(gate_up.dim() == 2, kOp, ": `gate_up` must be 2-D, got ", shape_of(gate_up));
  int64_t const R = x.size(0);
  int64_t const rows = gate_up.size(0);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(rows % 2 == 0, kOp, ": `gate_up` must have an even number of rows, got ", rows);

  check_vector_tensor(kOp, "out", out, device, type, {R, rows / 2});
  LinearInput input = check_input(kOp, x, norm_weight, sum_squares, num_rows, eps);
  input.is_e4m3 = check_activations(kOp, fp8_activations, "gate_up", gate_up_scale);
  NormSwigluParams const params{
      .input = input,
      .weight = check_weight(kOp, "gate_up", gate_up, gate_up_scale, device, type, rows, x.size(1)),
      .workspace = check_workspace(kOp, workspace, device),
      .out = out.mutable_data_ptr(),
  };
  if (R == 0 || rows == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_norm_swiglu(params, dtype, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"qkv_rope_cache", TORCH_BOX(&qkv_rope_cache)},
    {"linear_residual", TORCH_BOX(&linear_residual)},
    {"norm_swiglu", TORCH_BOX(&norm_swiglu)},
};

}  // namespace

std::span<CudaOp const> layer_ops() { return kOps; }

}  // namespace p_eagle
