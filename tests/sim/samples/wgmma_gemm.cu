// c = a b^T, bfloat16 in, float32 out: a producer warp brings swizzled tiles by TMA, a warpgroup
// multiplies them with wgmma straight from shared memory, and gives a stage back once the wgmmas that
// read it are complete, one step behind.

#include "ptx.cuh"
#include "tensor_map.h"

namespace {

constexpr int kTileM = 64;
constexpr int kTileN = 16;
constexpr int kTileK = 64;
constexpr int kStages = 2;
constexpr int kConsumerWarps = 4;
constexpr int kConsumers = kConsumerWarps * kWarpSize;
constexpr int kThreads = kConsumers + kWarpSize;  // the last warp is the producer
constexpr int kRowBytes = kTileK * 2;             // as wide as the swizzle
constexpr int kStageBytes = (kTileM + kTileN) * kRowBytes;

struct __align__(1024) Shared {
  uint8_t a[kStages][kTileM * kRowBytes];
  uint8_t b[kStages][kTileN * kRowBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// Of a tile whose rows are 128 bytes along k, in the 128-byte swizzle: 8 rows make a group.
__device__ uint64_t matrix_descriptor(uint8_t const* tile) {
  constexpr uint64_t kSwizzle128B = 1;
  constexpr uint64_t kGroupBytes = 8 * kRowBytes;
  return kSwizzle128B << 62 | (kGroupBytes >> 4) << 32 | uint64_t(1) << 16 |
         (shared_address(tile) & 0x3ffff) >> 4;
}

__device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all groups but the newest `kPending`; names the registers that they write.
template <int kPending>
__device__ void wgmma_wait(float (&c)[8]) {
  asm volatile("wgmma.wait_group.sync.aligned %8;"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
                 "+f"(c[7])
               : "n"(kPending)
               : "memory");
}

// c[64x16] += a[64x16] b[16x16]^T
__device__ void wgmma_m64n16k16(float (&c)[8], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7])
      : "l"(a), "l"(b));
}

__device__ void produce(Shared& shared, CUtensorMap const& a_map, CUtensorMap const& b_map,
                        int num_steps) {
  for (int step = 0; step < num_steps; ++step) {
    int const stage = step % kStages;
    mbarrier_wait(&shared.empty[stage], step / kStages % 2 ^ 1);  // passes in the first round
    mbarrier_arrive_expect_tx(&shared.full[stage], kStageBytes);
    tensor_load_2d(shared.a[stage], &a_map, step * kTileK, blockIdx.x * kTileM,
                   &shared.full[stage]);
    tensor_load_2d(shared.b[stage], &b_map, step * kTileK, blockIdx.y * kTileN,
                   &shared.full[stage]);
  }
}

__device__ void consume(Shared& shared, int num_steps, float (&accum)[8]) {
  for (int step = 0; step < num_steps; ++step) {
    int const stage = step % kStages;
    mbarrier_wait(&shared.full[stage], step / kStages % 2);
    uint64_t const a = matrix_descriptor(shared.a[stage]);
    uint64_t const b = matrix_descriptor(shared.b[stage]);
    wgmma_fence();
    for (int k = 0; k < kTileK / 16; ++k) {
      constexpr int kAdvance = 16 * 2 >> 4;  // 16 elements, in the descriptor's unit
      wgmma_m64n16k16(accum, a + k * kAdvance, b + k * kAdvance);
    }
    wgmma_commit();
    wgmma_wait<1>(accum);  // the step before is complete
    if (step > 0 && threadIdx.x % kWarpSize == 0) {
      mbarrier_arrive(&shared.empty[(step - 1) % kStages]);
    }
  }
  wgmma_wait<0>(accum);  // all steps are
}

__global__ void __launch_bounds__(kThreads)
    wgmma_gemm_kernel(__grid_constant__ CUtensorMap const a_map,
                      __grid_constant__ CUtensorMap const b_map, float* c, int m, int n, int k) {
  extern __shared__ __align__(1024) char raw_shared[];
  Shared& shared = *reinterpret_cast<Shared*>(raw_shared);

  int const lane = threadIdx.x % kWarpSize;
  int const warp = threadIdx.x / kWarpSize;
  int const num_steps = (k + kTileK - 1) / kTileK;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.full[stage], 1);
      mbarrier_init(&shared.empty[stage], kConsumerWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();  // the mbarriers exist

  if (warp == kConsumerWarps) {
    if (lane == 0) {
      produce(shared, a_map, b_map, num_steps);
    }
    return;
  }
  float accum[8] = {};
  consume(shared, num_steps, accum);
  for (int i = 0; i < 8; ++i) {
    int const row = blockIdx.x * kTileM + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    int const column = blockIdx.y * kTileN + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < m && column < n) {
      c[int64_t(row) * n + column] = accum[i];
    }
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_wgmma_gemm(uint16_t const* a, uint16_t const* b, float* c, int m, int n,
                                  int k) {
  CUtensorMap a_map, b_map;
  if (encode_matrix(a_map, a, m, k, kTileM, kTileK, CU_TENSOR_MAP_SWIZZLE_128B) != CUDA_SUCCESS ||
      encode_matrix(b_map, b, n, k, kTileN, kTileK, CU_TENSOR_MAP_SWIZZLE_128B) != CUDA_SUCCESS) {
    return cudaErrorInvalidValue;
  }
  dim3 const grid((m + kTileM - 1) / kTileM, (n + kTileN - 1) / kTileN);
  wgmma_gemm_kernel<<<grid, kThreads, sizeof(Shared)>>>(a_map, b_map, c, m, n, k);
  return cudaGetLastError();
}
