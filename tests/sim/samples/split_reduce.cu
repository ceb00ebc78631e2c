// y[m] = sum over k of a[m, k] x[k], with K split over blocks: a block writes its partial sums, and
// the last one to arrive adds the splits of its tile, always in the same order. It also resets the
// tile's counter, so that the next launch finds it as this one did.

#include "ptx.cuh"

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = 8;  // of a tile

struct Params {
  float const* a;      // [m, k]
  float const* x;      // [k]
  float* partial;      // [tiles, splits, kRows]
  unsigned* counters;  // [tiles]  zeros
  float* y;            // [m]
  int m, k;
};

__global__ void __launch_bounds__(kThreads) split_reduce_kernel(Params const p) {
  __shared__ float warp_sums[kWarps][kRows];
  __shared__ bool is_last;

  int const thread = threadIdx.x;
  int const warp = thread / kWarpSize;
  int const tile = blockIdx.x;
  int const split = blockIdx.y;
  int const num_splits = gridDim.y;
  int const k_per_split = (p.k + num_splits - 1) / num_splits;
  int const k_begin = split * k_per_split;
  int const k_end = min(k_begin + k_per_split, p.k);

  for (int r = 0; r < kRows; ++r) {
    int const row = tile * kRows + r;
    float sum = 0.0f;
    if (row < p.m) {
      for (int i = k_begin + thread; i < k_end; i += kThreads) {
        sum += p.a[int64_t(row) * p.k + i] * p.x[i];
      }
    }
    sum = warp_sum(sum);
    if (thread % kWarpSize == 0) {
      warp_sums[warp][r] = sum;
    }
  }
  __syncthreads();  // warp_sums is complete

  float* const tile_partial = p.partial + int64_t(tile) * num_splits * kRows;
  if (thread < kRows) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      sum += warp_sums[w][thread];
    }
    tile_partial[split * kRows + thread] = sum;
  }

  // The barrier orders the block's stores before thread 0, whose fence passes them on.
  __syncthreads();  // partial is written
  if (thread == 0) {
    __threadfence();  // release
    is_last = atomicAdd(&p.counters[tile], 1u) == unsigned(num_splits) - 1;
    __threadfence();  // acquire
  }
  __syncthreads();  // is_last is known
  if (!is_last) {
    return;
  }

  int const row = tile * kRows + thread;
  if (thread < kRows && row < p.m) {
    float sum = 0.0f;
    for (int s = 0; s < num_splits; ++s) {
      sum += tile_partial[s * kRows + thread];
    }
    p.y[row] = sum;
  }
  if (thread == 0) {
    p.counters[tile] = 0;
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_split_reduce(float const* a, float const* x, float* partial,
                                    unsigned* counters, float* y, int m, int k, int splits) {
  Params const params{a, x, partial, counters, y, m, k};
  dim3 const grid((m + kRows - 1) / kRows, splits);
  split_reduce_kernel<<<grid, kThreads>>>(params);
  return cudaGetLastError();
}
