// A product by tcgen05, of M = 128, N = 16 and K = 16, with a mistake for every bit of n[0]: for the
// emulator, only sm_100a has these instructions. in0: A, in1: B, row by row, of bfloat16; out0: D,
// n[1] times the product.
#include <cstdint>

#include "conformance.cuh"

namespace {

enum Mistake : int {
  kNoProxyFence = 1,          // fence.proxy.async is missing
  kNoWaitForProduct = 2,      // tensor memory is read before the commit has arrived
  kNoWaitForLoad = 4,         // registers are read, and memory is freed, without tcgen05.wait::ld
  kNoDeallocation = 8,        // the block leaves with tensor memory
  kLanesOfAnotherWarp = 16,   // a warp reads those that it does not reach
  kNotAllocated = 32,         // columns past those allocated are read
  kOverwriteBeforeWait = 64,  // of A, while it is read
  kAllLanesIssue = 128,       // the product, which one thread should
  kReservedBits = 256,        // in the descriptor of A
  kTooMuchMemory = 512,       // is asked for
  kUnwritten = 1024,          // the first product is added to what nobody has written
};

constexpr int kRows = 128, kColumns = 16, kDepth = 16;
constexpr uint32_t kTensorColumns = 32;
// bfloat16 by bfloat16 into float32, N / 8 and M / 16.
constexpr uint32_t kShape =
    1u << 4 | 1u << 7 | 1u << 10 | (kColumns / 8) << 17 | (kRows / 16) << 24;

struct __align__(1024) Shared {
  uint16_t a[kRows * kDepth];
  uint16_t b[kColumns * kDepth];
  uint64_t ready;
  uint32_t tensor_memory;
};

__device__ uint32_t address_of(void const* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// Rows of 32 bytes, the narrowest swizzle, which exchanges the halves of every second four rows.
__device__ int swizzled(int element) { return element ^ (element / (4 * kDepth) % 2 * 8); }

__device__ uint64_t descriptor(void const* matrix) {
  constexpr uint64_t kSwizzle32B = 6, kVersion = 1, kPatternBytes = 8 * 32;
  return kSwizzle32B << 61 | kVersion << 46 | (kPatternBytes >> 4) << 32 | address_of(matrix) >> 4;
}

__device__ void allocate(Shared& shared, uint32_t columns) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(
                   address_of(&shared.tensor_memory)),
               "r"(columns)
               : "memory");
}

__device__ void multiply(uint32_t d, uint64_t a, uint64_t b, bool accumulates) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %4, 0;\n\t"
      "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, {%5, %5, %5, %5}, p;\n\t}" ::"r"(d),
      "l"(a), "l"(b), "r"(kShape), "r"(int(accumulates)), "r"(0)
      : "memory");
}

}  // namespace

MICRO_KERNEL(one_product) {
  __shared__ Shared shared;
  int const mistakes = args.n[0];
  auto const has = [&](Mistake mistake) { return (mistakes & mistake) != 0; };
  int const thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < kRows * kDepth; i += int(blockDim.x)) {
    shared.a[swizzled(i)] = args.input<uint16_t>(0)[i];
  }
  for (int i = thread; i < kColumns * kDepth; i += int(blockDim.x)) {
    shared.b[swizzled(i)] = args.input<uint16_t>(1)[i];
  }
  if (thread == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address_of(&shared.ready)));
  }
  if (warp == 0) {
    allocate(shared, kTensorColumns);
    if (has(kTooMuchMemory)) {
      allocate(shared, 512);
    }
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
  }
  if (!has(kNoProxyFence)) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  uint32_t const d = shared.tensor_memory;
  if (warp == 0 && (lane == 0 || has(kAllLanesIssue))) {
    uint64_t const a = descriptor(shared.a) | (has(kReservedBits) ? uint64_t(1) << 56 : 0);
    for (int i = 0; i < args.n[1]; ++i) {
      multiply(d, a, descriptor(shared.b), i > 0 || has(kUnwritten));
    }
    if (lane == 0) {
      asm volatile(
          "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
              address_of(&shared.ready))
          : "memory");
    }
    if (has(kOverwriteBeforeWait)) {
      shared.a[0] = 0;
    }
  }
  __syncwarp();
  if (!has(kNoWaitForProduct)) {
    asm volatile(
        "{\n\t.reg .pred p;\nagain:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n\t@!p bra again;\n\t}" ::"r"(
            address_of(&shared.ready))
        : "memory");
  }
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");

  int const place = has(kLanesOfAnotherWarp) ? (warp + 1) % 4 : warp;
  for (int half = 0; half < 2; ++half) {
    uint32_t const from =
        d + (uint32_t(place * 32 + half * 16) << 16) + (has(kNotAllocated) ? kTensorColumns : 0);
    uint32_t words[8];
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x2.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]), "=r"(words[4]),
                   "=r"(words[5]), "=r"(words[6]), "=r"(words[7])
                 : "r"(from));
    if (!has(kNoWaitForLoad)) {
      asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
    }
    for (int i = 0; i < 8; ++i) {
      asm volatile("" : "+r"(words[i]));
      int const row = warp * 32 + half * 16 + lane / 4 + i / 2 % 2 * 8;
      int const column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      args.output<uint32_t>(0)[row * kColumns + column] = words[i];
    }
  }
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
  __syncthreads();
  if (warp == 0 && !has(kNoDeallocation)) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(d),
                 "r"(kTensorColumns));
  }
}
