// From what the target has just computed to the input of the drafter's first layer.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/linear.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

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
                  std::optional<Tensor> const& input_norm, std::optional<Tensor> const& fc_norms,
                  double eps, Tensor& out, Tensor& workspace) {
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
                    .norms_each_tap = fc_norms.has_value()};
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
    {"project_taps", TORCH_BOX(&project_taps)},
    {"embed_norm_concat", TORCH_BOX(&embed_norm_concat)},
};

}  // namespace

std::span<CudaOp const> input_ops() { return kOps; }

}  // namespace p_eagle
