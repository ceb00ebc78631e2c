// Kernels that end with a report of their own, or that the emulator cannot run and says so.
#include <cassert>

#include "conformance.cuh"

namespace {

__device__ __noinline__ int fibonacci(int n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
__device__ __noinline__ int twice(int n) { return 2 * n; }
__device__ __noinline__ int thrice(int n) { return 3 * n; }
__device__ int (*const kFunctions[2])(int) = {twice, thrice};

}  // namespace

MICRO_KERNEL(failed_assertion) {
  int const x = args.input<int>(0)[threadIdx.x];
  assert(x != 7);
  args.output<int>(0)[threadIdx.x] = x;
}

MICRO_KERNEL(trapped) {
  if (args.input<int>(0)[threadIdx.x] == 7) {
    __trap();
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(index_without_label) {
  asm volatile(
      "{\n"
      "table: .branchtargets done;\n"
      "brx.idx %0, table;\n"
      "done:\n"
      "}" ::"r"(args.n[0]));
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(recursion) {
  args.output<int>(0)[threadIdx.x] = fibonacci(args.input<int>(0)[threadIdx.x]);
}

MICRO_KERNEL(indirect_call) {
  int const x = args.input<int>(0)[threadIdx.x];
  args.output<int>(0)[threadIdx.x] = kFunctions[x & 1](x);
}

MICRO_KERNEL(unknown_register) {
  int value;
  asm volatile("mov.u32 %0, %%envreg3;" : "=r"(value));
  args.output<int>(0)[threadIdx.x] = value;
}
