// The order of wgmmas: groups, and what a wait of one warp says about the other three. All elements
// of a matrix are the same, so that layouts do not matter.
#include <cstdint>

#include "conformance.cuh"

namespace {

constexpr int kGroups = 3;
constexpr int kWordsOfA = 64 * 16 / 2;  // of bfloat16
constexpr int kWordsOfB = 8 * 16 / 2;
constexpr float kOfB = 2;

struct __align__(1024) Shared {
  uint32_t a[kGroups][kWordsOfA];
  uint32_t b[kWordsOfB];
};

__device__ uint32_t pair_of(float value) {
  uint32_t const bf16 = __float_as_uint(value) >> 16;
  return bf16 << 16 | bf16;
}

// A of group i is full of i + 1.
__device__ void fill(Shared& shared) {
  for (int group = 0; group < kGroups; ++group) {
    for (int i = int(threadIdx.x); i < kWordsOfA; i += int(blockDim.x)) {
      shared.a[group][i] = pair_of(float(group + 1));
    }
  }
  for (int i = int(threadIdx.x); i < kWordsOfB; i += int(blockDim.x)) {
    shared.b[i] = pair_of(kOfB);
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

// Rows of 32 bytes in the 32-byte swizzle.
__device__ uint64_t descriptor(void const* matrix) {
  constexpr uint64_t kSwizzle32B = 3;
  constexpr uint64_t kPatternBytes = 8 * 32;
  auto const start = uint64_t(__cvta_generic_to_shared(matrix)) & 0x3ffff;
  return kSwizzle32B << 62 | (kPatternBytes >> 4) << 32 | start >> 4;
}

__device__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// d = scale_d d + a b
__device__ void multiply(float (&d)[4], void const* a, void const* b, int scale_d) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, "
      "0; }"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(descriptor(a)), "l"(descriptor(b)), "r"(scale_d)
      : "memory");
}

template <int kPending>
__device__ void wait(float (&d)[4]) {
  asm volatile("wgmma.wait_group.sync.aligned %4;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "n"(kPending)
               : "memory");
}

__device__ void store(float const (&d)[4], float* out) {
  for (int i = 0; i < 4; ++i) {
    out[4 * threadIdx.x + i] = d[i];
  }
}

}  // namespace

// Each wait says that all groups but so many are done, oldest first.
MICRO_KERNEL(wait_in_order) {
  __shared__ Shared shared;
  fill(shared);
  float d[kGroups][4] = {};
  fence();
  for (int group = 0; group < kGroups; ++group) {
    multiply(d[group], shared.a[group], shared.b, 0);
    commit();
  }
  auto* out = args.output<float>(0);
  int const stride = 4 * int(blockDim.x);
  wait<2>(d[0]);
  store(d[0], out);
  wait<1>(d[1]);
  store(d[1], out + stride);
  wait<0>(d[2]);
  store(d[2], out + 2 * stride);
}

// Products into the same registers, in one group and in several.
MICRO_KERNEL(same_accumulators) {
  __shared__ Shared shared;
  fill(shared);
  float d[4] = {100, 100, 100, 100};
  fence();
  multiply(d, shared.a[2], shared.b, 0);
  multiply(d, shared.a[0], shared.b, 1);
  commit();
  multiply(d, shared.a[1], shared.b, 1);
  commit();
  wait<0>(d);
  store(d, args.output<float>(0));
}

// When one warp has waited, no warp of the warpgroup reads the operands any more.
MICRO_KERNEL(one_warp_reuses_memory) {
  __shared__ Shared shared;
  fill(shared);
  float d[4];
  fence();
  multiply(d, shared.a[0], shared.b, 0);
  commit();
  if (threadIdx.x / 32 == unsigned(args.n[0])) {
    wait<0>(d);
    for (int i = int(threadIdx.x % 32); i < kWordsOfA; i += 32) {
      shared.a[0][i] = 0;
    }
    for (int i = int(threadIdx.x % 32); i < kWordsOfB; i += 32) {
      shared.b[i] = 0;
    }
  } else {
    wait<0>(d);
  }
  store(d, args.output<float>(0));
}
