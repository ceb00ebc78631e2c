// Kernels with an error each, that the emulator must find and say what it is.
#include "conformance.cuh"

MICRO_KERNEL(read_past_the_end) {
  args.output<int>(0)[threadIdx.x] = args.input<int>(0)[threadIdx.x + 1];
}

MICRO_KERNEL(write_before_the_start) { args.output<int>(0)[int(threadIdx.x) - 1] = 1; }

MICRO_KERNEL(wild_pointer) {
  args.output<int>(0)[threadIdx.x] = *reinterpret_cast<int const*>(args.n[0] * 4096ll);
}

MICRO_KERNEL(write_to_input) { const_cast<int*>(args.input<int>(0))[threadIdx.x] = 1; }

MICRO_KERNEL(non_coherent_read_of_written) {
  auto* out = args.output<int>(0) + threadIdx.x;
  *out = 5;
  int value;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(out) : "memory");
  *out = value + 1;
}

MICRO_KERNEL(read_of_unwritten_output) {
  auto* out = args.output<int>(0);
  out[threadIdx.x] = out[threadIdx.x] + 1;
}

MICRO_KERNEL(read_of_unwritten_shared) {
  __shared__ int values[64];
  if (threadIdx.x < 31) {
    values[threadIdx.x] = int(threadIdx.x);
  }
  __syncthreads();
  args.output<int>(0)[threadIdx.x] = values[threadIdx.x];
}

MICRO_KERNEL(past_shared_variable) {
  __shared__ int first[32];
  __shared__ int second[32];
  first[threadIdx.x + args.n[0]] = 1;
  second[threadIdx.x] = 2;
  __syncthreads();
  args.output<int>(0)[threadIdx.x] = first[threadIdx.x] + second[31 - threadIdx.x];
}

MICRO_KERNEL(past_dynamic_shared) {
  extern __shared__ int values[];
  values[threadIdx.x] = 1;
  args.output<int>(0)[threadIdx.x] = values[threadIdx.x];
}

MICRO_KERNEL(misaligned) {
  auto const* bytes = args.input<char>(0) + 4 * threadIdx.x;
  args.output<long long>(0)[threadIdx.x] = *reinterpret_cast<long long const*>(bytes);
}

MICRO_KERNEL(race_in_shared) {
  __shared__ int values[64];
  values[threadIdx.x] = int(threadIdx.x);
  args.output<int>(0)[threadIdx.x] = values[threadIdx.x ^ 32];
}

MICRO_KERNEL(race_within_warp) {
  __shared__ int values[32];
  values[threadIdx.x] = int(threadIdx.x);
  args.output<int>(0)[threadIdx.x] = values[threadIdx.x ^ 1];
}

MICRO_KERNEL(race_across_blocks) { args.output<int>(0)[threadIdx.x] = int(blockIdx.x); }

// All warps but the last read, which writes after it has met all of them but number n[0]. With n[1]
// every lane reads the same word.
MICRO_KERNEL(one_reader_is_not_waited_for) {
  __shared__ int values[32];
  int const warp = int(threadIdx.x / 32), writer = int(blockDim.x / 32) - 1;
  int const place = args.n[1] != 0 ? 0 : int(threadIdx.x % 32);
  if (warp == 0) {
    values[threadIdx.x] = 1;
  }
  __syncthreads();
  int seen = 0;
  if (warp != writer) {
    seen = values[place];
  }
  if (warp != args.n[0]) {
    asm volatile("bar.sync 1, %0;" ::"r"(blockDim.x - 32) : "memory");
  }
  if (threadIdx.x % 32 == 0 && warp == writer) {
    values[0] = 0;
  }
  args.output<int>(0)[threadIdx.x] = seen;
}

// Atomic operations on a word do not race with each other; the plain write after them does, with the
// read, which nothing orders.
MICRO_KERNEL(plain_write_after_atomics) {
  auto* const word = args.output<int>(1);
  int seen = 0;
  if (threadIdx.x == 0) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(word) : "memory");
  } else if (threadIdx.x == 32) {
    seen = atomicAdd(word, 1);
    *word = 0;
  }
  args.output<int>(0)[threadIdx.x] = seen;
}

// The message of conformance/memory.cu with a fence of too narrow a scope.
MICRO_KERNEL(fence_too_narrow) {
  auto* data = args.output<int>(0);
  auto* flag = args.output<int>(1);
  if (blockIdx.x == 0) {
    *data = 7;
    asm volatile("fence.acq_rel.cta;" ::: "memory");
    asm volatile("st.relaxed.gpu.global.b32 [%0], 1;" ::"l"(flag) : "memory");
    return;
  }
  int seen = 0;
  while (seen == 0) {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  }
  args.output<int>(2)[0] = *data;
}

MICRO_KERNEL(fence_too_narrow_to_acquire) {
  auto* data = args.output<int>(0);
  auto* flag = args.output<int>(1);
  if (blockIdx.x == 0) {
    *data = 7;
    asm volatile("st.release.gpu.global.b32 [%0], 1;" ::"l"(flag) : "memory");
    return;
  }
  int seen = 0;
  while (seen == 0) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  }
  asm volatile("fence.acq_rel.cta;" ::: "memory");
  args.output<int>(2)[0] = *data;
}

MICRO_KERNEL(polls_in_vain) {
  int seen = 0;
  while (seen == 0) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];"
                 : "=r"(seen)
                 : "l"(args.output<int>(0))
                 : "memory");
  }
}

MICRO_KERNEL(runs_forever) {
  for (unsigned i = 1; i != 0; i += 2) {  // never zero
    asm volatile("");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

// A video instruction, which no kernel of this project will ever use.
MICRO_KERNEL(unknown_instruction) {
  int result;
  asm volatile("vabsdiff4.s32.s32.s32.add %0, %1, %2, %3;"
               : "=r"(result)
               : "r"(args.n[0]), "r"(args.n[1]), "r"(args.n[2]));
  args.output<int>(0)[threadIdx.x] = result;
}

MICRO_KERNEL(does_nothing_wrong) { args.output<int>(0)[threadIdx.x] = 1; }
