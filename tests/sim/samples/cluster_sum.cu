// y = x / sum(x) per row. A cluster of blocks shares a row: each sums a slice, and reads the sums of
// the others from their shared memory.

#include "ptx.cuh"

namespace {

constexpr int kThreads = 64;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kClusterBlocks = 4;

__device__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

__device__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// `*variable` of another block of the cluster.
__device__ float load_remote(float const* variable, int rank) {
  uint32_t address;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared_address(variable)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kThreads)
    cluster_sum_kernel(float const* x, float* y, int columns) {
  __shared__ float warp_sums[kWarps];
  __shared__ float block_sum;

  int const thread = threadIdx.x;
  int const row = blockIdx.y;
  int const slice = (columns + kClusterBlocks - 1) / kClusterBlocks;
  int const begin = int(cluster_rank()) * slice;
  int const end = min(begin + slice, columns);
  float const* const x_row = x + int64_t(row) * columns;

  float sum = 0.0f;
  for (int i = begin + thread; i < end; i += kThreads) {
    sum += x_row[i];
  }
  sum = warp_sum(sum);
  if (thread % kWarpSize == 0) {
    warp_sums[thread / kWarpSize] = sum;
  }
  __syncthreads();  // warp_sums is complete
  if (thread == 0) {
    block_sum = warp_sums[0] + warp_sums[1];
  }

  cluster_arrive();
  float* const y_row = y + int64_t(row) * columns;
  cluster_wait();  // all block_sums are written

  float total = 0.0f;
  for (int rank = 0; rank < kClusterBlocks; ++rank) {
    total += load_remote(&block_sum, rank);
  }
  cluster_arrive();  // this block has read
  for (int i = begin + thread; i < end; i += kThreads) {
    y_row[i] = x_row[i] / total;
  }
  cluster_wait();  // the others have, so its shared memory may go
}

}  // namespace

SAMPLE_LAUNCHER launch_cluster_sum(float const* x, float* y, int rows, int columns) {
  cluster_sum_kernel<<<dim3(kClusterBlocks, rows), kThreads>>>(x, y, columns);
  return cudaGetLastError();
}
