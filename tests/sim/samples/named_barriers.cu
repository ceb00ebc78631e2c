// Two producer warps hand tiles to two consumer warps through a double buffer and named barriers. A
// consumer warp permutes its 32 values twice through shared memory of its own, then the lower half of
// its lanes takes their sum and the upper half their maximum. For tile t, consumer warp w, lane l:
//
//   v[l]         = x[t, 63 - 32 w - next(next(l))], next(l) = (5 l + 3) mod 32
//   out[t, w, l] = sum of v[0..15] for l < 16, max of v[16..31] else

#include "ptx.cuh"

namespace {

constexpr int kTile = 64;  // values, one per producer and one per consumer thread
constexpr int kThreads = 2 * kTile;
constexpr int kSlots = 2;
// Of the 16 named barriers, 0 is that of __syncthreads().
constexpr int kFull = 1;                // + slot
constexpr int kEmpty = kFull + kSlots;  // + slot

__device__ void barrier_sync(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}
__device__ void barrier_arrive(int barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

struct Shared {
  float slots[kSlots][kTile];
  float staging[kTile / kWarpSize][kWarpSize];
};

__device__ void produce(Shared& shared, float const* x, int tiles) {
  int const thread = threadIdx.x;
  for (int t = 0; t < tiles; ++t) {
    int const slot = t % kSlots;
    if (t >= kSlots) {
      barrier_sync(kEmpty + slot);  // the consumers have read it
    }
    shared.slots[slot][thread] = x[t * kTile + thread];
    barrier_arrive(kFull + slot);
  }
}

// Sum over lanes 0-15, maximum over lanes 16-31.
__device__ float reduce_halves(float value, int lane) {
  constexpr int kHalf = kWarpSize / 2;
  if (lane < kHalf) {
    for (int offset = kHalf / 2; offset > 0; offset /= 2) {
      value += __shfl_xor_sync(0x0000ffffu, value, offset);
    }
  } else {
    for (int offset = kHalf / 2; offset > 0; offset /= 2) {
      value = fmaxf(value, __shfl_xor_sync(0xffff0000u, value, offset));
    }
  }
  return value;
}

__device__ void consume(Shared& shared, float* out, int tiles) {
  int const thread = threadIdx.x - kTile;
  int const lane = thread % kWarpSize;
  float* const staging = shared.staging[thread / kWarpSize];
  for (int t = 0; t < tiles; ++t) {
    int const slot = t % kSlots;
    barrier_sync(kFull + slot);
    float value = shared.slots[slot][kTile - 1 - thread];
    if (t + kSlots < tiles) {
      barrier_arrive(kEmpty + slot);
    }
    for (int round = 0; round < 2; ++round) {
      staging[lane] = value;
      __syncwarp();  // staging is written
      value = staging[(5 * lane + 3) % kWarpSize];
      __syncwarp();  // staging has been read
    }
    out[t * kTile + thread] = reduce_halves(value, lane);
  }
}

__global__ void __launch_bounds__(kThreads)
    named_barriers_kernel(float const* x, float* out, int tiles) {
  __shared__ Shared shared;
  if (threadIdx.x < kTile) {
    produce(shared, x, tiles);
  } else {
    consume(shared, out, tiles);
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_named_barriers(float const* x, float* out, int tiles) {
  named_barriers_kernel<<<1, kThreads>>>(x, out, tiles);
  return cudaGetLastError();
}
