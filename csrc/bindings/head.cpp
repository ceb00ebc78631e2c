// From the residual stream to drafted tokens.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/linear.h"
#include "bindings/registration.h"
#include "head/tiles.h"
#include "ops.h"

namespace p_eagle {
namespace {

template <class T>
T const* optional_data(char const* op, char const* name, std::optional<Tensor> const& tensor,
                       int32_t device, ScalarType type, int64_t size) {
  if (!tensor) {
    return nullptr;
  }
  check_tensor(op, name, *tensor, device, type, {size});
  return tensor->const_data_ptr<T>();
}

void* check_head_workspace(char const* op, Tensor& workspace, int32_t device, int64_t num_samples,
                           int64_t top_k) {
  check_vector_tensor(op, "workspace", workspace, device, ScalarType::Byte, {workspace.numel()});
  int num_sms = 0;
  check_launch(
      op, cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, cuda_device(device)));
  int64_t const needed = lm_head_workspace_bytes(num_sms, int(num_samples), int(top_k));
  STD_TORCH_CHECK(workspace.numel() >= needed, op, ": `workspace` must hold at least ", needed,
                  " bytes for ", num_samples, " rows, top_k ", top_k, " and ", num_sms,
                  " SMs, got ", workspace.numel());
  return workspace.mutable_data_ptr();
}

void lm_head_topk(Tensor const& x, std::optional<Tensor> const& sum_squares,
                  Tensor const& sample_rows, Tensor const& norm_weight, Tensor const& weight,
                  std::optional<Tensor> const& weight_scale,
                  std::optional<Tensor> const& vocab_subset,
                  std::optional<Tensor> const& draft_to_target,
                  std::optional<Tensor> const& noise_keys,
                  std::optional<Tensor> const& noise_positions,
                  std::optional<Tensor> const& temperature, double eps, Tensor& ids, Tensor& logits,
                  Tensor& lse, Tensor& workspace) {
  constexpr char const* kOp = "lm_head_topk";
  check_rows(kOp, "x", x);
  STD_TORCH_CHECK(weight.dim() == 2, kOp, ": `weight` must be 2-D, got ", shape_of(weight));
  STD_TORCH_CHECK(ids.dim() == 2, kOp, ": `ids` must be [N, k], got ", shape_of(ids));
  int64_t const H = x.size(1);
  int64_t const V = weight.size(0);
  int64_t const N = ids.size(0);
  int64_t const k = ids.size(1);
  int32_t const device = x.get_device_index();
  DType const dtype = to_dtype(kOp, x.scalar_type());
  constexpr int64_t kMaxSamples = int64_t(kMaxHeadTokens) * kMaxHeadTokenTiles;
  STD_TORCH_CHECK(N <= kMaxSamples, kOp, ": at most ", kMaxSamples, " rows are sampled, got ", N);

  int64_t const S = vocab_subset ? vocab_subset->numel() : V;
  auto const* const subset =
      optional_data<int32_t>(kOp, "vocab_subset", vocab_subset, device, ScalarType::Int, S);
  STD_TORCH_CHECK(S <= V, kOp, ": `vocab_subset` must have at most ", V, " ids, got ", S);
  int64_t const limit = std::min(int64_t(kMaxTopK), S);
  STD_TORCH_CHECK(k >= 1 && k <= limit, kOp, ": top_k must be 1 to ", limit, ", got ", k);
  STD_TORCH_CHECK(noise_keys.has_value() == temperature.has_value() &&
                      noise_positions.has_value() == temperature.has_value(),
                  kOp,
                  ": `noise_keys`, `noise_positions` and `temperature` must all be given or all be "
                  "None");

  check_tensor(kOp, "sample_rows", sample_rows, device, ScalarType::Int, {N});
  check_tensor(kOp, "ids", ids, device, ScalarType::Long, {N, k});
  check_tensor(kOp, "logits", logits, device, ScalarType::Float, {N, k});
  check_tensor(kOp, "lse", lse, device, ScalarType::Float, {N});
  LinearInput input = check_input(kOp, x, norm_weight, sum_squares, eps);
  input.source_row = sample_rows.const_data_ptr<int32_t>();
  LmHeadTopkParams const params{
      .input = input,
      .weight = check_weight(kOp, "weight", weight, weight_scale, device, x.scalar_type(), V, H),
      .vocab_subset = subset,
      .draft_to_target = optional_data<int64_t>(kOp, "draft_to_target", draft_to_target, device,
                                                ScalarType::Long, V),
      .noise_keys =
          optional_data<int64_t>(kOp, "noise_keys", noise_keys, device, ScalarType::Long, N),
      .noise_positions = optional_data<int64_t>(kOp, "noise_positions", noise_positions, device,
                                                ScalarType::Long, N),
      .temperature =
          optional_data<float>(kOp, "temperature", temperature, device, ScalarType::Float, N),
      .ids = ids.mutable_data_ptr<int64_t>(),
      .logits = logits.mutable_data_ptr<float>(),
      .lse = lse.mutable_data_ptr<float>(),
      .workspace = check_head_workspace(kOp, workspace, device, N, k),
      .num_samples = int(N),
      .num_candidates = int(S),
      .top_k = int(k),
  };
  if (N == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_lm_head_topk(params, dtype, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {{"lm_head_topk", TORCH_BOX(&lm_head_topk)}};

}  // namespace

std::span<CudaOp const> head_ops() { return kOps; }

}  // namespace p_eagle
