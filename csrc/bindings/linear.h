// What the ops with a linear layer check and fill in alike.
#pragma once

#include <cstdint>
#include <optional>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "linear/partition.h"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

// Requires [rows, columns] of `type`, or of e4m3 with a scale for each row.
inline LinearWeight check_weight(char const* op, char const* name, Tensor const& weight,
                                 std::optional<Tensor> const& scale, int32_t device,
                                 ScalarType type, int64_t rows, int64_t columns) {
  check_vector_tensor(op, name, weight, device, scale ? ScalarType::Float8_e4m3fn : type,
                      {rows, columns});
  if (scale) {
    check_tensor(op, (std::string(name) + "_scale").c_str(), *scale, device, ScalarType::Float,
                 {rows});
  }
  STD_TORCH_CHECK(columns % kBlockColumns == 0, op, ": the columns of `", name,
                  "` must be a multiple of ", kBlockColumns, ", got ", columns);
  return {.data = weight.const_data_ptr(),
          .scale = scale ? scale->const_data_ptr<float>() : nullptr,
          .rows = int(rows),
          .columns = int(columns)};
}

// Whether rows are to be rounded to e4m3, which weights in other types have no kernel for.
inline bool check_activations(char const* op, bool fp8_activations, char const* weight,
                              std::optional<Tensor> const& weight_scale) {
  STD_TORCH_CHECK(weight_scale || !fp8_activations, op, ": `fp8_activations` needs an FP8 `",
                  weight, "` with its scale");
  return fp8_activations;
}

// The address of a vector that may not be there.
inline void const* check_optional(char const* op, char const* name,
                                  std::optional<Tensor> const& tensor, int32_t device,
                                  ScalarType type, std::initializer_list<int64_t> shape) {
  if (!tensor) {
    return nullptr;
  }
  check_vector_tensor(op, name, *tensor, device, type, shape);
  return tensor->const_data_ptr();
}

inline int64_t num_statistics(int64_t columns) {
  return (columns + kStatisticColumns - 1) / kStatisticColumns;
}

// The rows of one tensor, which check_rows has seen, without a count of those that exist.
inline LinearInput check_input(char const* op, Tensor const& x,
                               std::optional<Tensor> const& norm_weight,
                               std::optional<Tensor> const& sum_squares, double eps) {
  int32_t const device = x.get_device_index();
  int64_t const R = x.size(0);
  int64_t const columns = x.size(1);
  check_vector_tensor(op, "x", x, device, x.scalar_type(), {R, columns});
  if (sum_squares) {
    check_tensor(op, "sum_squares", *sum_squares, device, ScalarType::Float,
                 {num_statistics(columns), R});
  }
  return {.taps = {x.const_data_ptr()},
          .norm_weight =
              check_optional(op, "norm_weight", norm_weight, device, x.scalar_type(), {columns}),
          .sum_squares = sum_squares ? sum_squares->const_data_ptr<float>() : nullptr,
          .num_taps = 1,
          .tap_width = int(columns),
          .max_rows = int(R),
          .eps = float(eps)};
}

inline LinearInput check_input(char const* op, Tensor const& x,
                               std::optional<Tensor> const& norm_weight,
                               std::optional<Tensor> const& sum_squares, Tensor const& num_rows,
                               double eps) {
  LinearInput input = check_input(op, x, norm_weight, sum_squares, eps);
  check_tensor(op, "num_rows", num_rows, x.get_device_index(), ScalarType::Int, {1});
  input.num_rows = num_rows.const_data_ptr<int32_t>();
  return input;
}

inline LinearWorkspace check_workspace(char const* op, Tensor& workspace, int32_t device) {
  check_vector_tensor(op, "workspace", workspace, device, ScalarType::Byte, {workspace.numel()});
  int num_sms = 0;
  check_launch(
      op, cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, cuda_device(device)));
  int64_t const needed = linear_workspace_bytes(num_sms);
  STD_TORCH_CHECK(workspace.numel() >= needed, op, ": `workspace` must hold at least ", needed,
                  " bytes for ", num_sms, " SMs, got ", workspace.numel());
  return {.data = workspace.mutable_data_ptr()};
}

}  // namespace p_eagle
