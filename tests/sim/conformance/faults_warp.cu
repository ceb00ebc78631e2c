// Kernels that misuse what the lanes of a warp do together, each in one way.
#include "conformance.cuh"

namespace {

constexpr unsigned kAll = 0xffffffff;

__device__ unsigned shared_address(void const* pointer) {
  return unsigned(__cvta_generic_to_shared(pointer));
}

__device__ unsigned load_matrix(unsigned address) {
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r)
               : "r"(address)
               : "memory");
  return r;
}

}  // namespace

MICRO_KERNEL(shuffle_from_outside_the_mask) {
  if (threadIdx.x < 16) {
    args.output<unsigned>(0)[threadIdx.x] = __shfl_sync(0x0000ffff, threadIdx.x, 20);
  }
}

MICRO_KERNEL(shuffle_from_exited_lane) {
  if (threadIdx.x == 20) {
    return;
  }
  args.output<unsigned>(0)[threadIdx.x] = __shfl_sync(kAll, threadIdx.x, 20);
}

MICRO_KERNEL(lanes_not_in_their_mask) {
  args.output<unsigned>(0)[threadIdx.x] = __ballot_sync(0x0000ffff, threadIdx.x % 2 == 0);
}

MICRO_KERNEL(masks_that_disagree) {
  unsigned const mask = threadIdx.x == 9 ? 0x0000ff00 : kAll;
  args.output<unsigned>(0)[threadIdx.x] = __ballot_sync(mask, threadIdx.x % 2 == 0);
}

// Each half waits for the other at another collective.
MICRO_KERNEL(collectives_that_never_meet) {
  unsigned result;
  if (threadIdx.x < 16) {
    result = __shfl_xor_sync(kAll, threadIdx.x, 1);
  } else {
    result = __ballot_sync(kAll, threadIdx.x % 2 == 0);
  }
  args.output<unsigned>(0)[threadIdx.x] = result;
}

MICRO_KERNEL(mma_with_an_exited_lane) {
  if (threadIdx.x == 31) {
    return;
  }
  unsigned d[2] = {0, 0};
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %2}, {%2}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(threadIdx.x));
  args.output<unsigned>(0)[threadIdx.x] = d[0] + d[1];
}

MICRO_KERNEL(mma_in_a_branch) {
  unsigned d[2] = {0, 0};
  if (threadIdx.x < 16) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %2}, {%2}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(threadIdx.x));
  }
  __syncwarp();
  args.output<unsigned>(0)[threadIdx.x] = d[0] + d[1];
}

// n[0]: what is added to every lane's address.
MICRO_KERNEL(ldmatrix_at_an_offset) {
  __shared__ __align__(128) uint4 rows[8];
  if (threadIdx.x < 8) {
    rows[threadIdx.x] = make_uint4(1, 2, 3, 4);
  }
  __syncwarp();
  unsigned const address = shared_address(&rows[threadIdx.x % 8]) + unsigned(args.n[0]);
  args.output<unsigned>(0)[threadIdx.x] = load_matrix(address);
}

MICRO_KERNEL(ldmatrix_of_unwritten_row) {
  __shared__ __align__(128) uint4 rows[8];
  if (threadIdx.x < 7) {
    rows[threadIdx.x] = make_uint4(1, 2, 3, 4);
  }
  __syncwarp();
  args.output<unsigned>(0)[threadIdx.x] = load_matrix(shared_address(&rows[threadIdx.x % 8]));
}

// n[0]: whether to wait for the other warp, which writes the rows.
MICRO_KERNEL(ldmatrix_before_the_barrier) {
  __shared__ __align__(128) uint4 rows[8];
  if (threadIdx.x < 8) {
    rows[threadIdx.x] = make_uint4(1, 2, 3, 4);
  }
  if (args.n[0] != 0) {
    __syncthreads();
  }
  args.output<unsigned>(0)[threadIdx.x] = load_matrix(shared_address(&rows[threadIdx.x % 8]));
}

MICRO_KERNEL(stmatrix_races) {
  __shared__ __align__(128) unsigned values[32];
  values[threadIdx.x] = threadIdx.x;
  if (args.n[0] != 0) {
    __syncwarp();
  }
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(
                   shared_address(values + threadIdx.x % 8 * 4)),
               "r"(threadIdx.x)
               : "memory");
  __syncwarp();
  args.output<unsigned>(0)[threadIdx.x] = values[threadIdx.x];
}
