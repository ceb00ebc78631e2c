// A recurrence of three kernels per step, each launched while the one before still runs:
//
//   scaled[r, c] = state[r, c] weight[c]
//   mean[r]      = sum over c of scaled[r, c] average[c]
//   state[r, c]  = scaled[r, c] - mean[r] + bias[c]
//
// Before griddepcontrol.wait a kernel reads only what no kernel writes. The third reads what the first
// wrote, and overwrites what the first read; that is right because the second waited, too.

#include "common/launch.h"
#include "ptx.cuh"

namespace {

constexpr int kColumns = 64;
constexpr int kColumnsPerLane = kColumns / kWarpSize;

struct Params {
  float const* weight;   // [kColumns]
  float const* average;  // [kColumns]
  float const* bias;     // [kColumns]
  int const* num_rows;   // [1]
  float* state;          // [rows, kColumns]
  float* scaled;         // [rows, kColumns]
  float* mean;           // [rows]
};

// A block is a warp, and has a row. Blocks past the last row have nothing to do.
__global__ void scale_kernel(Params const p) {
  int const row = blockIdx.x;
  float weight[kColumnsPerLane];
  for (int i = 0; i < kColumnsPerLane; ++i) {
    weight[i] = p.weight[threadIdx.x + i * kWarpSize];
  }
  p_eagle::wait_for_previous_kernel();  // scale
  p_eagle::let_next_kernel_start();
  if (row >= *p.num_rows) {
    return;
  }
  for (int i = 0; i < kColumnsPerLane; ++i) {
    int const at = row * kColumns + threadIdx.x + i * kWarpSize;
    p.scaled[at] = p.state[at] * weight[i];
  }
}

__global__ void mean_kernel(Params const p) {
  int const row = blockIdx.x;
  float average[kColumnsPerLane];
  for (int i = 0; i < kColumnsPerLane; ++i) {
    average[i] = p.average[threadIdx.x + i * kWarpSize];
  }
  p_eagle::wait_for_previous_kernel();  // mean
  p_eagle::let_next_kernel_start();
  if (row >= *p.num_rows) {
    return;
  }
  float sum = 0.0f;
  for (int i = 0; i < kColumnsPerLane; ++i) {
    sum += p.scaled[row * kColumns + threadIdx.x + i * kWarpSize] * average[i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) {
    p.mean[row] = sum;
  }
}

__global__ void center_kernel(Params const p) {
  int const row = blockIdx.x;
  float bias[kColumnsPerLane];
  for (int i = 0; i < kColumnsPerLane; ++i) {
    bias[i] = p.bias[threadIdx.x + i * kWarpSize];
  }
  p_eagle::wait_for_previous_kernel();  // center
  p_eagle::let_next_kernel_start();
  if (row >= *p.num_rows) {
    return;
  }
  for (int i = 0; i < kColumnsPerLane; ++i) {
    int const at = row * kColumns + threadIdx.x + i * kWarpSize;
    p.state[at] = p.scaled[at] - p.mean[row] + bias[i];
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_pdl_chain(float const* weight, float const* average, float const* bias,
                                 int const* num_rows, float* state, float* scaled, float* mean,
                                 int max_rows, int steps) {
  Params const params{weight, average, bias, num_rows, state, scaled, mean};
  p_eagle::LaunchPlan const plan{.grid = dim3(max_rows), .block = dim3(kWarpSize)};
  cudaError_t status = cudaSuccess;
  for (int step = 0; step < steps && status == cudaSuccess; ++step) {
    for (auto const kernel : {&scale_kernel, &mean_kernel, &center_kernel}) {
      if (status == cudaSuccess) {
        status = p_eagle::launch(kernel, plan, params);
      }
    }
  }
  return status;
}
