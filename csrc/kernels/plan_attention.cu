// The work map of a pass's attention, common/attention_work.cuh, as a kernel of its own.
//
// Mapping: one block; a thread per request, then per segment, then per block of the attention.
// Latency is all that counts: a batch has a few hundred segments, and the layers wait for them.

#include "common/attention_work.cuh"
#include "common/launch.h"
#include "ops.h"

namespace p_eagle {
namespace {

constexpr int kThreads = 256;

using Planner = AttentionPlanner<kThreads>;

__global__ void __launch_bounds__(kThreads)
    plan_attention_kernel(__grid_constant__ PlanAttentionParams const params) {
  __shared__ typename Planner::SharedStorage shared;

  wait_for_previous_kernel();
  let_next_kernel_start();
  Planner::plan(params, shared, threadIdx.x);
}

}  // namespace

cudaError_t launch_plan_attention(PlanAttentionParams const& params, cudaStream_t stream) {
  LaunchPlan const plan{.grid = dim3(1), .block = dim3(kThreads), .stream = stream};
  return launch(&plan_attention_kernel, plan, params);
}

}  // namespace p_eagle
