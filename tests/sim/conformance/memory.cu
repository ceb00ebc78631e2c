// Loads, stores and addresses: every width, vectors, sign extension, state spaces.
#include "conformance.cuh"

namespace {

__constant__ int constant_table[4] = {11, -22, 33, -44};
__device__ int device_counter = 5;

__device__ unsigned shared_address(void const* pointer) {
  return unsigned(__cvta_generic_to_shared(pointer));
}

}  // namespace

// Elements of 1, 2, 4 and 8 bytes, signed and unsigned, each to 64 bits: by a register of
// the type's size that is converted, and by a load that extends.
MICRO_KERNEL(load_widths) {
  auto const* in = args.input<unsigned char>(0) + 8 * threadIdx.x;
  auto* out = args.output<long long>(0) + 14 * threadIdx.x;
  short s8, u8, s16, u16;
  int s32, u32;
  asm volatile("ld.global.s8 %0, [%1];" : "=h"(s8) : "l"(in));
  asm volatile("ld.global.u8 %0, [%1];" : "=h"(u8) : "l"(in));
  asm volatile("ld.global.s16 %0, [%1];" : "=h"(s16) : "l"(in));
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(u16) : "l"(in));
  asm volatile("ld.global.s32 %0, [%1+4];" : "=r"(s32) : "l"(in));
  asm volatile("ld.global.u32 %0, [%1+4];" : "=r"(u32) : "l"(in));
  out[0] = s8;
  out[1] = static_cast<unsigned short>(u8);
  out[2] = s16;
  out[3] = static_cast<unsigned short>(u16);
  out[4] = s32;
  out[5] = static_cast<unsigned>(u32);
  asm volatile("ld.global.s8 %0, [%1];" : "=l"(out[6]) : "l"(in));
  asm volatile("ld.global.u8 %0, [%1];" : "=l"(out[7]) : "l"(in));
  asm volatile("ld.global.s16 %0, [%1];" : "=l"(out[8]) : "l"(in));
  asm volatile("ld.global.u16 %0, [%1];" : "=l"(out[9]) : "l"(in));
  asm volatile("ld.global.s32 %0, [%1+4];" : "=l"(out[10]) : "l"(in));
  asm volatile("ld.global.u32 %0, [%1+4];" : "=l"(out[11]) : "l"(in));
  asm volatile("ld.global.s64 %0, [%1];" : "=l"(out[12]) : "l"(in));
  asm volatile("ld.global.b64 %0, [%1];" : "=l"(out[13]) : "l"(in));
}

// The low bytes of a register, as many as the type has, and no others.
MICRO_KERNEL(store_widths) {
  long long const value = args.input<long long>(0)[threadIdx.x];
  auto* out = args.output<unsigned char>(0) + 32 * threadIdx.x;
  asm volatile("st.global.u8 [%0], %1;" ::"l"(out), "h"(short(value)));
  asm volatile("st.global.u16 [%0+8], %1;" ::"l"(out), "h"(short(value)));
  asm volatile("st.global.u32 [%0+16], %1;" ::"l"(out), "r"(int(value)));
  asm volatile("st.global.u64 [%0+24], %1;" ::"l"(out), "l"(value));
}

MICRO_KERNEL(vectors) {
  auto const* in = args.input<uint4>(0) + threadIdx.x;
  auto* out = args.output<uint4>(0) + 2 * threadIdx.x;
  uint4 a;
  ulonglong2 b;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
               : "l"(in));
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u64 {%0, %1}, [%2];"
               : "=l"(b.x), "=l"(b.y)
               : "l"(in));
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(out), "r"(a.w), "r"(a.z), "r"(a.y),
               "r"(a.x));
  asm volatile("st.global.cs.v2.b64 [%0], {%1, %2};" ::"l"(out + 1), "l"(b.y), "l"(b.x));
}

// The same bytes through shared, generic and windowed addresses.
MICRO_KERNEL(shared_and_generic) {
  __shared__ int direct[32];
  extern __shared__ int dynamic[];
  int const t = int(threadIdx.x);
  direct[t] = args.input<int>(0)[t];
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared_address(dynamic + t)), "r"(3 * t));
  __syncthreads();
  int* generic = (t & 1) != 0 ? direct : dynamic;  // unknown to the compiler
  int from_generic, is_shared, is_global, is_local;
  asm volatile("ld.b32 %0, [%1];" : "=r"(from_generic) : "l"(generic + (31 - t)));
  asm volatile("{ .reg .pred p; isspacep.shared p, %1; selp.s32 %0, 1, 0, p; }"
               : "=r"(is_shared)
               : "l"(generic));
  asm volatile("{ .reg .pred p; isspacep.global p, %1; selp.s32 %0, 1, 0, p; }"
               : "=r"(is_global)
               : "l"(args.output<int>(0)));
  asm volatile("{ .reg .pred p; isspacep.local p, %1; selp.s32 %0, 1, 0, p; }"
               : "=r"(is_local)
               : "l"(generic));
  args.output<int>(0)[t] = from_generic;
  args.output<int>(1)[t] = is_shared + 2 * is_global + 4 * is_local;
}

MICRO_KERNEL(module_variables) {
  int const t = int(threadIdx.x);
  args.output<int>(0)[t] = constant_table[t % 4] + device_counter;
  __syncthreads();
  if (t == 0) {
    args.output<int>(1)[0] = atomicAdd(&device_counter, 0);
  }
}

// A local array with an index that the compiler cannot know.
MICRO_KERNEL(local_array) {
  int values[8];
  int const t = int(threadIdx.x);
  for (int i = 0; i < 8; ++i) {
    values[(i * args.n[0]) % 8] = t * 10 + i;
  }
  args.output<int>(0)[t] = values[args.input<int>(0)[t]];
}

// A message from block to block through global memory: data, fence, flag.
MICRO_KERNEL(message_passing) {
  auto* data = args.output<int>(0);
  auto* flag = args.output<int>(1);
  if (blockIdx.x == 0) {
    data[threadIdx.x] = int(threadIdx.x) * 7;
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
      asm volatile("st.relaxed.gpu.global.b32 [%0], 1;" ::"l"(flag) : "memory");
    }
    return;
  }
  if (threadIdx.x == 0) {
    int seen = 0;
    while (seen == 0) {
      asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    }
  }
  __syncthreads();
  args.output<int>(2)[threadIdx.x] = data[threadIdx.x];
}
