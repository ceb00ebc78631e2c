// One wgmma, m64n8k16 of bfloat16, with a mistake for every bit of n[0].
#include <cstdint>

#include "conformance.cuh"

namespace {

enum Mistake : int {
  kNoFence = 1,              // wgmma.fence is missing
  kNoProxyFence = 2,         // fence.proxy.async is missing
  kNoWait = 4,               // the threads exit with the group in flight
  kOverwriteBeforeWait = 8,  // of A, while it is read
  kBaseOffset = 16,          // in the descriptor of B
  kReservedBits = 32,        // in the descriptor of A
  kNoPatternStart = 64,      // A does not begin where a swizzle pattern does
  kOutOfBounds = 128,        // the stride of B's descriptor leads out of shared memory
  kOneWarpMissing = 256,     // the warpgroup's last warp does not take part
  kLanesDiffer = 512,        // in the descriptor of A
  kWaitForFewer = 1024,      // the wait before A is overwritten lets one group remain
};

// Rows of 16 elements, 32 bytes: the narrowest swizzle.
struct __align__(1024) Shared {
  uint32_t a[64 * 8];
  uint32_t b[8 * 8];
};

__device__ uint64_t descriptor(void const* matrix) {
  constexpr uint64_t kSwizzle32B = 3;
  constexpr uint64_t kPatternBytes = 8 * 32;
  auto const start = uint64_t(__cvta_generic_to_shared(matrix)) & 0x3ffff;
  return kSwizzle32B << 62 | (kPatternBytes >> 4) << 32 | start >> 4;
}

}  // namespace

MICRO_KERNEL(one_wgmma) {
  __shared__ Shared shared;
  int const mistakes = args.n[0];
  auto const has = [&](Mistake mistake) { return (mistakes & mistake) != 0; };
  for (int i = int(threadIdx.x); i < 64 * 8; i += int(blockDim.x)) {
    shared.a[i] = 0x3f803f80;  // 1, 1
  }
  if (threadIdx.x < 64) {
    shared.b[threadIdx.x] = 0x40004000;  // 2, 2
  }
  if (!has(kNoProxyFence)) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (has(kOneWarpMissing)) {
    if (threadIdx.x >= 96) {
      return;
    }
    __syncthreads();  // by the threads that are left, so after the others' exit
  }

  uint64_t a = descriptor(shared.a), b = descriptor(shared.b);
  a += has(kNoPatternStart) ? 2 : 0;
  a |= has(kReservedBits) ? uint64_t(1) << 52 : 0;
  a += has(kLanesDiffer) && threadIdx.x % 32 == 7 ? 16 : 0;
  b |= has(kBaseOffset) ? uint64_t(1) << 49 : 0;
  a |= has(kOutOfBounds) ? uint64_t(0x2000) << 32 : 0;
  if (has(kWaitForFewer)) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");  // the one that is complete
  }
  float d[4] = {1, 1, 1, 1};
  if (!has(kNoFence)) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b)
      : "memory");
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  if (has(kWaitForFewer)) {
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  }
  if (has(kOverwriteBeforeWait) || has(kWaitForFewer)) {
    shared.a[threadIdx.x / 32 * 128 + threadIdx.x % 32] = 0;  // each warp rows of its own
  }
  if (has(kNoWait)) {
    return;
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])::"memory");
  for (int i = 0; i < 4; ++i) {
    args.output<float>(0)[4 * threadIdx.x + i] = d[i];
  }
}
