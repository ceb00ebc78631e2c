// What is done to rows around a matrix product of torch's.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/cache.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/linear.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

constexpr int64_t kMaxHeadDim = 256;

// The address of a tensor that may not be there, at any alignment.
void const* check_optional_tensor(char const* op, char const* name,
                                  std::optional<Tensor> const& tensor, int32_t device,
                                  ScalarType type, std::initializer_list<int64_t> shape) {
  if (!tensor) {
    return nullptr;
  }
  check_tensor(op, name, *tensor, device, type, shape);
  return tensor->const_data_ptr();
}

void gather_taps(std::vector<Tensor> const& taps, Tensor const& source_row, Tensor const& num_rows,
                 std::optional<Tensor> const& input_norm, std::optional<Tensor> const& fc_norms,
                 double eps, Tensor& out) {
  constexpr char const* kOp = "gather_taps";
  int64_t const n = int64_t(taps.size());
  STD_TORCH_CHECK(1 <= n && n <= kMaxTaps, kOp, ": `taps` must hold 1 to ", kMaxTaps, ", got ", n);
  STD_TORCH_CHECK(is_on_device(taps[0]), kOp, ": `taps[0]` must be on ", kDevice);
  STD_TORCH_CHECK(taps[0].dim() == 2, kOp, ": `taps[0]` must be [T, Ht], got ", shape_of(taps[0]));
  STD_TORCH_CHECK(source_row.dim() == 1, kOp, ": `source_row` must be [R], got ",
                  shape_of(source_row));
  int64_t const T = taps[0].size(0);
  int64_t const Ht = taps[0].size(1);
  int64_t const R = source_row.size(0);
  int32_t const device = taps[0].get_device_index();
  ScalarType const type = taps[0].scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(!input_norm || !fc_norms, kOp,
                  ": at most one of `input_norm` and `fc_norms` may be given, got both");

  check_tensor(kOp, "source_row", source_row, device, ScalarType::Int, {R});
  check_tensor(kOp, "num_rows", num_rows, device, ScalarType::Int, {1});
  void const* const norm =
      check_optional_tensor(kOp, "input_norm", input_norm, device, type, {n * Ht});
  void const* const norms = check_optional_tensor(kOp, "fc_norms", fc_norms, device, type, {n, Ht});
  check_tensor(kOp, "out", out, device, type, {R, n * Ht});
  NormRowsParams params{.input = {.source_row = source_row.const_data_ptr<int32_t>(),
                                  .num_rows = num_rows.const_data_ptr<int32_t>(),
                                  .norm_weight = norm ? norm : norms,
                                  .num_taps = int(n),
                                  .tap_width = int(Ht),
                                  .max_rows = int(R),
                                  .eps = float(eps),
                                  .norms_each_tap = fc_norms.has_value()},
                        .out = out.mutable_data_ptr()};
  for (int64_t i = 0; i < n; ++i) {
    std::string const name = "taps[" + std::to_string(i) + "]";
    check_tensor(kOp, name.c_str(), taps[i], device, type, {T, Ht});
    params.input.taps[i] = taps[i].const_data_ptr();
  }
  if (out.numel() == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_norm_rows(params, dtype, current_stream(kOp, device)));
}

void norm_rows(Tensor const& x, Tensor const& norm_weight, std::optional<Tensor> const& sum_squares,
               Tensor const& num_rows, double eps, Tensor& out) {
  constexpr char const* kOp = "norm_rows";
  check_rows(kOp, "x", x);
  int64_t const R = x.size(0);
  int64_t const C = x.size(1);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  DType const dtype = to_dtype(kOp, type);

  check_tensor(kOp, "x", x, device, type, {R, C});
  check_tensor(kOp, "norm_weight", norm_weight, device, type, {C});
  if (sum_squares) {
    check_tensor(kOp, "sum_squares", *sum_squares, device, ScalarType::Float,
                 {num_statistics(C), R});
  }
  check_tensor(kOp, "num_rows", num_rows, device, ScalarType::Int, {1});
  check_tensor(kOp, "out", out, device, type, {R, C});
  NormRowsParams const params{
      .input = {.taps = {x.const_data_ptr()},
                .num_rows = num_rows.const_data_ptr<int32_t>(),
                .norm_weight = norm_weight.const_data_ptr(),
                .sum_squares = sum_squares ? sum_squares->const_data_ptr<float>() : nullptr,
                .num_taps = 1,
                .tap_width = int(C),
                .max_rows = int(R),
                .eps = float(eps)},
      .out = out.mutable_data_ptr()};
  if (out.numel() == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_norm_rows(params, dtype, current_stream(kOp, device)));
}

void gate_rows(Tensor const& gate_up, Tensor const& num_rows, Tensor& out) {
  constexpr char const* kOp = "gate_rows";
  check_rows(kOp, "gate_up", gate_up);
  int64_t const R = gate_up.size(0);
  int64_t const I = gate_up.size(1) / 2;
  int32_t const device = gate_up.get_device_index();
  ScalarType const type = gate_up.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(gate_up.size(1) % 2 == 0, kOp,
                  ": `gate_up` must have an even number of columns, got ", gate_up.size(1));

  check_tensor(kOp, "gate_up", gate_up, device, type, {R, 2 * I});
  check_tensor(kOp, "num_rows", num_rows, device, ScalarType::Int, {1});
  check_tensor(kOp, "out", out, device, type, {R, I});
  GateRowsParams const params{.gate_up = gate_up.const_data_ptr(),
                              .num_rows = num_rows.const_data_ptr<int32_t>(),
                              .out = out.mutable_data_ptr(),
                              .max_rows = int(R),
                              .width = int(I)};
  if (out.numel() == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_gate_rows(params, dtype, current_stream(kOp, device)));
}

void rope_cache(Tensor const& heads, std::optional<Tensor> const& q_norm,
                std::optional<Tensor> const& k_norm, Tensor const& rope, Tensor const& positions,
                Tensor const& slots, Tensor const& num_rows, Tensor const& k_scale,
                Tensor const& v_scale, double eps, Tensor& q, Tensor& k_cache, Tensor& v_cache) {
  constexpr char const* kOp = "rope_cache";
  check_rows(kOp, "heads", heads);
  STD_TORCH_CHECK(q.dim() == 3, kOp, ": `q` must be [R, Nq, D], got ", shape_of(q));
  STD_TORCH_CHECK(k_cache.dim() == 4, kOp, ": `k_cache` must be [blocks, Nkv, block, D], got ",
                  shape_of(k_cache));
  STD_TORCH_CHECK(rope.dim() == 2, kOp, ": `rope` must be [P, D], got ", shape_of(rope));
  int64_t const R = heads.size(0);
  int64_t const Nq = q.size(1);
  int64_t const D = q.size(2);
  int64_t const blocks = k_cache.size(0);
  int64_t const Nkv = k_cache.size(1);
  int64_t const block_size = k_cache.size(2);
  int64_t const P = rope.size(0);
  int32_t const device = heads.get_device_index();
  ScalarType const type = heads.scalar_type();
  DType const dtype = to_dtype(kOp, type);
  STD_TORCH_CHECK(2 <= D && D <= kMaxHeadDim && D % 2 == 0, kOp,
                  ": the head size must be even and at most ", kMaxHeadDim, ", got ", D);
  STD_TORCH_CHECK(q_norm.has_value() == k_norm.has_value(), kOp,
                  ": `q_norm` and `k_norm` must both be given or both be None");
  STD_TORCH_CHECK(P >= 1, kOp, ": `rope` must have a row for a position, got ", shape_of(rope));
  ScalarType const cache_type = k_cache.scalar_type();

  check_tensor(kOp, "heads", heads, device, type, {R, (Nq + 2 * Nkv) * D});
  check_tensor(kOp, "rope", rope, device, ScalarType::Float, {P, D});
  check_tensor(kOp, "positions", positions, device, ScalarType::Long, {R});
  check_tensor(kOp, "slots", slots, device, ScalarType::Long, {R});
  check_tensor(kOp, "num_rows", num_rows, device, ScalarType::Int, {1});
  check_tensor(kOp, "q", q, device, type, {R, Nq, D});
  RopeCacheParams const params{
      .heads = heads.const_data_ptr(),
      .q_norm = check_optional_tensor(kOp, "q_norm", q_norm, device, type, {D}),
      .k_norm = check_optional_tensor(kOp, "k_norm", k_norm, device, type, {D}),
      .rope = rope.const_data_ptr<float>(),
      .positions = positions.const_data_ptr<int64_t>(),
      .slots = slots.const_data_ptr<int64_t>(),
      .num_rows = num_rows.const_data_ptr<int32_t>(),
      .q = q.mutable_data_ptr(),
      .k_cache = check_cache(kOp, "k_cache", k_cache, k_scale, "k_scale", device, cache_type,
                             {blocks, Nkv, block_size, D}),
      .v_cache = check_cache(kOp, "v_cache", v_cache, v_scale, "v_scale", device, cache_type,
                             {blocks, Nkv, block_size, D}),
      .cache_type = to_cache_type(kOp, cache_type, type),
      .max_rows = int(R),
      .num_heads = int(Nq),
      .num_kv_heads = int(Nkv),
      .head_dim = int(D),
      .block_size = int(block_size),
      .num_positions = int(P),
      .eps = float(eps),
  };
  if (heads.numel() == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_rope_cache(params, dtype, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"gather_taps", TORCH_BOX(&gather_taps)},
    {"norm_rows", TORCH_BOX(&norm_rows)},
    {"gate_rows", TORCH_BOX(&gate_rows)},
    {"rope_cache", TORCH_BOX(&rope_cache)},
};

}  // namespace

std::span<CudaOp const> row_ops() { return kOps; }

}  // namespace p_eagle
