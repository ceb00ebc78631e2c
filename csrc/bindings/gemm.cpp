// Matrix products of many rows, which collectives of CUTLASS's run.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/linear.h"
#include "bindings/registration.h"
#include "ops.h"

namespace p_eagle {
namespace {

// What the ops of this file check alike; `out` and what goes with it is not filled in.
GemmParams check_gemm(char const* op, Tensor const& x, char const* weight_name,
                      Tensor const& weight, Tensor const& num_rows, Tensor& workspace) {
  check_rows(op, "x", x);
  STD_TORCH_CHECK(weight.dim() == 2, op, ": `", weight_name, "` must be 2-D, got ",
                  shape_of(weight));
  int64_t const R = x.size(0);
  int64_t const C = x.size(1);
  int64_t const N = weight.size(0);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  to_dtype(op, type);
  check_vector_tensor(op, "x", x, device, type, {R, C});
  check_vector_tensor(op, weight_name, weight, device, type, {N, C});
  STD_TORCH_CHECK(C % 8 == 0, op, ": the columns of `", weight_name,
                  "` must be a multiple of 8, got ", C);
  STD_TORCH_CHECK(N % 16 == 0, op, ": the rows of `", weight_name,
                  "` must be a multiple of 16, got ", N);
  check_tensor(op, "num_rows", num_rows, device, ScalarType::Int, {1});
  return {.x = x.const_data_ptr(),
          .num_rows = num_rows.const_data_ptr<int32_t>(),
          .weight = {.data = weight.const_data_ptr(), .rows = int(N), .columns = int(C)},
          .workspace = check_workspace(op, workspace, device),
          .max_rows = int(R)};
}

using Launch = cudaError_t(GemmParams const&, DType, cudaStream_t);

void run(char const* op, Launch* launch, GemmParams const& params, Tensor const& x) {
  if (params.max_rows == 0 || params.weight.rows == 0) {
    return;
  }
  STD_TORCH_CHECK(params.weight.columns > 0, op, ": `x` must have columns, got ", shape_of(x));
  int32_t const device = x.get_device_index();
  DeviceGuard const guard(device);
  cudaError_t const status =
      launch(params, to_dtype(op, x.scalar_type()), current_stream(op, device));
  STD_TORCH_CHECK(
      status != cudaErrorNotSupported, op,
      ": runs on compute capability 9.0 where the library is built for 90a, and on 10.0 "
      "where it is for 100a; this one is built for ",
      P_EAGLE_ARCHS, ", and runs on ", device_name(device));
  check_launch(op, status);
}

void gemm(Tensor const& x, Tensor const& weight, std::optional<Tensor> const& bias,
          Tensor const& num_rows, Tensor& out, Tensor& workspace) {
  constexpr char const* kOp = "gemm";
  GemmParams params = check_gemm(kOp, x, "weight", weight, num_rows, workspace);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  params.bias = check_optional(kOp, "bias", bias, device, type, {weight.size(0)});
  check_vector_tensor(kOp, "out", out, device, type, {x.size(0), weight.size(0)});
  params.out = out.mutable_data_ptr();
  run(kOp, &launch_gemm, params, x);
}

void gemm_residual(Tensor const& x, Tensor const& weight, std::optional<Tensor> const& bias,
                   Tensor const& num_rows, Tensor& residual, Tensor& sum_squares,
                   Tensor& workspace) {
  constexpr char const* kOp = "gemm_residual";
  GemmParams params = check_gemm(kOp, x, "weight", weight, num_rows, workspace);
  int64_t const R = x.size(0);
  int64_t const H = weight.size(0);
  int32_t const device = x.get_device_index();
  ScalarType const type = x.scalar_type();
  params.bias = check_optional(kOp, "bias", bias, device, type, {H});
  check_vector_tensor(kOp, "residual", residual, device, type, {R, H});
  check_tensor(kOp, "sum_squares", sum_squares, device, ScalarType::Float, {num_statistics(H), R});
  params.out = residual.mutable_data_ptr();
  params.sum_squares = sum_squares.mutable_data_ptr<float>();
  params.accumulates = true;
  run(kOp, &launch_gemm, params, x);
}

void gemm_swiglu(Tensor const& x, Tensor const& gate_up, Tensor const& num_rows, Tensor& out,
                 Tensor& workspace) {
  constexpr char const* kOp = "gemm_swiglu";
  GemmParams params = check_gemm(kOp, x, "gate_up", gate_up, num_rows, workspace);
  check_vector_tensor(kOp, "out", out, x.get_device_index(), x.scalar_type(),
                      {x.size(0), gate_up.size(0) / 2});
  params.out = out.mutable_data_ptr();
  run(kOp, &launch_gemm_swiglu, params, x);
}

constexpr CudaOp kOps[] = {
    {"gemm", TORCH_BOX(&gemm)},
    {"gemm_residual", TORCH_BOX(&gemm_residual)},
    {"gemm_swiglu", TORCH_BOX(&gemm_swiglu)},
};

}  // namespace

std::span<CudaOp const> gemm_ops() { return kOps; }

}  // namespace p_eagle
