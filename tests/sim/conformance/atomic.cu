// Atomic operations: what they leave in memory, and what each lane gets back.
#include "conformance.cuh"

namespace {

__device__ unsigned shared_address(void const* pointer) {
  return unsigned(__cvta_generic_to_shared(pointer));
}

}  // namespace

// One word per operation, which all lanes work on; order does not matter to these.
MICRO_KERNEL(commutative) {
  int const x = args.input<int>(0)[threadIdx.x];
  auto* out = args.output<int>(0);
  asm volatile("red.global.add.s32 [%0], %1;" ::"l"(out + 0), "r"(x));
  asm volatile("red.global.min.s32 [%0], %1;" ::"l"(out + 1), "r"(x));
  asm volatile("red.global.max.s32 [%0], %1;" ::"l"(out + 2), "r"(x));
  asm volatile("red.global.min.u32 [%0], %1;" ::"l"(out + 3), "r"(x));
  asm volatile("red.global.max.u32 [%0], %1;" ::"l"(out + 4), "r"(x));
  asm volatile("red.global.and.b32 [%0], %1;" ::"l"(out + 5), "r"(x));
  asm volatile("red.global.or.b32 [%0], %1;" ::"l"(out + 6), "r"(x));
  asm volatile("red.global.xor.b32 [%0], %1;" ::"l"(out + 7), "r"(x));
}

MICRO_KERNEL(commutative_64) {
  long long const x = args.input<long long>(0)[threadIdx.x];
  auto* out = args.output<long long>(0);
  asm volatile("red.global.add.u64 [%0], %1;" ::"l"(out + 0), "l"(x));
  asm volatile("red.global.min.s64 [%0], %1;" ::"l"(out + 1), "l"(x));
  asm volatile("red.global.max.u64 [%0], %1;" ::"l"(out + 2), "l"(x));
  asm volatile("red.global.xor.b64 [%0], %1;" ::"l"(out + 3), "l"(x));
}

// Sums of integers small enough to be exact in every format.
MICRO_KERNEL(float_add) {
  int const x = args.input<int>(0)[threadIdx.x];
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(args.output<float>(0)), "f"(float(x)));
  asm volatile("red.global.add.f64 [%0], %1;" ::"l"(args.output<double>(1)), "d"(double(x)));
  // The integer's bfloat16 and half, twice in a word: 3.0 is 0x4040 and 0x4200.
  asm volatile("red.global.add.noftz.bf16x2 [%0], %1;" ::"l"(args.output<int>(2)), "r"(0x40404040));
  asm volatile("red.global.add.noftz.f16x2 [%0], %1;" ::"l"(args.output<int>(3)), "r"(0x42004200));
}

// Subnormal numbers: global memory flushes them, shared memory does not, also by a generic address.
MICRO_KERNEL(subnormal_add) {
  __shared__ float sums[2];
  auto* out = args.output<float>(0);
  if (threadIdx.x < 2) {
    sums[threadIdx.x] = 0;
  }
  __syncthreads();
  float const tiny = __int_as_float(args.n[0]);
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(out), "f"(tiny));
  asm volatile("red.shared.add.f32 [%0], %1;" ::"r"(shared_address(sums)), "f"(tiny));
  asm volatile("red.add.f32 [%0], %1;" ::"l"(sums + 1), "f"(tiny));
  __syncthreads();
  if (threadIdx.x < 2) {
    out[1 + threadIdx.x] = sums[threadIdx.x];
  }
}

// Each lane gets a different ticket.
MICRO_KERNEL(tickets) {
  int ticket, shared_ticket;
  __shared__ int counter;
  if (threadIdx.x == 0) {
    counter = 100;
  }
  __syncthreads();
  asm volatile("atom.global.add.u32 %0, [%1], 1;" : "=r"(ticket) : "l"(args.output<int>(0)));
  asm volatile("atom.shared.inc.u32 %0, [%1], 102;"
               : "=r"(shared_ticket)
               : "r"(shared_address(&counter)));
  args.output<int>(1)[threadIdx.x] = ticket;
  args.output<int>(2)[threadIdx.x] = shared_ticket;
}

// One lane at a time, so that the values that come back are known.
MICRO_KERNEL(returned_values) {
  auto* word = args.output<int>(0) + threadIdx.x;
  auto* out = args.output<int>(1) + 6 * threadIdx.x;
  asm volatile("atom.global.exch.b32 %0, [%1], 40;" : "=r"(out[0]) : "l"(word));
  asm volatile("atom.global.cas.b32 %0, [%1], 40, 41;" : "=r"(out[1]) : "l"(word));
  asm volatile("atom.global.cas.b32 %0, [%1], 40, 99;" : "=r"(out[2]) : "l"(word));
  asm volatile("atom.global.dec.u32 %0, [%1], 50;" : "=r"(out[3]) : "l"(word));
  asm volatile("atom.global.inc.u32 %0, [%1], 40;" : "=r"(out[4]) : "l"(word));
  asm volatile("atom.global.dec.u32 %0, [%1], 50;" : "=r"(out[5]) : "l"(word));
}

MICRO_KERNEL(vector_add) {
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(args.output<float>(0)), "f"(1.0f),
               "f"(2.0f));
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(args.output<float>(1)),
               "f"(1.0f), "f"(2.0f), "f"(4.0f), "f"(8.0f));
}

// A lock that every warp of every block takes once.
MICRO_KERNEL(spin_lock) {
  auto* lock = args.output<int>(0);
  auto* total = args.output<int>(1);
  if (threadIdx.x % 32 == 0) {
    int taken = 1;
    while (taken != 0) {
      asm volatile("atom.acquire.gpu.global.cas.b32 %0, [%1], 0, 1;"
                   : "=r"(taken)
                   : "l"(lock)
                   : "memory");
    }
    *total += 1;
    asm volatile("st.release.gpu.global.b32 [%0], 0;" ::"l"(lock) : "memory");
  }
}
