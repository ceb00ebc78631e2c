// A message: data, then a sign that it is there. Whoever sees the sign may read the data only where
// both sides say so, in scopes that contain both. n[0] is how the sign is given, n[1] how it is seen:
// the numbers of the cases below. With n[2] the sign comes before the data.
#include "async_ptx.cuh"

namespace {

__device__ void give(int* flag, int how) {
  int old;
  switch (how) {
    case 0: asm volatile("st.relaxed.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory"); break;
    case 1: asm volatile("st.release.cta.global.s32 [%0], 1;" ::"l"(flag) : "memory"); break;
    case 2: asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory"); break;
    case 3:
      asm volatile("fence.acq_rel.cta; st.relaxed.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
      break;
    case 4:
      asm volatile("fence.acq_rel.gpu; st.relaxed.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
      break;
    case 5:
      asm volatile("fence.acq_rel.gpu; st.relaxed.cta.global.s32 [%0], 1;" ::"l"(flag) : "memory");
      break;
    case 6:
      asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], 1;"
                   : "=r"(old)
                   : "l"(flag)
                   : "memory");
      break;
    case 7:
      asm volatile("atom.acquire.gpu.global.exch.b32 %0, [%1], 1;"
                   : "=r"(old)
                   : "l"(flag)
                   : "memory");
      break;
    case 8: asm volatile("red.release.cta.global.add.s32 [%0], 1;" ::"l"(flag) : "memory"); break;
    case 9: asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(flag) : "memory"); break;
    default:
      asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
                   : "=r"(old)
                   : "l"(flag)
                   : "memory");
  }
}

__device__ int look(int* flag, int how) {
  int seen;
  switch (how) {
    case 1:
      asm volatile("ld.acquire.cta.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
      break;
    case 2:
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
      break;
    case 5:
      asm volatile("ld.relaxed.cta.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
      break;
    case 6:
      asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 0;"
                   : "=r"(seen)
                   : "l"(flag)
                   : "memory");
      break;
    case 7:
      asm volatile("atom.release.gpu.global.add.s32 %0, [%1], 0;"
                   : "=r"(seen)
                   : "l"(flag)
                   : "memory");
      break;
    case 8:
      asm volatile("atom.acquire.cta.global.add.s32 %0, [%1], 0;"
                   : "=r"(seen)
                   : "l"(flag)
                   : "memory");
      break;
    case 9:
      asm volatile("atom.acquire.gpu.global.add.s32 %0, [%1], 0;"
                   : "=r"(seen)
                   : "l"(flag)
                   : "memory");
      break;
    default:
      asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  }
  return seen;
}

}  // namespace

// From the first thread to the last one, of the same block or of another.
MICRO_KERNEL(message) {
  auto* const data = args.output<int>(0);
  auto* const flag = args.output<int>(1);
  int const me = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (me == 0) {
    if (args.n[2] != 0) {
      give(flag, args.n[0]);
    }
    *data = 7;
    if (args.n[2] == 0) {
      give(flag, args.n[0]);
    }
  } else if (me == int(gridDim.x * blockDim.x) - 1) {
    while (look(flag, args.n[1]) == 0) {
    }
    if (args.n[1] == 3) {
      asm volatile("fence.acq_rel.cta;" ::: "memory");
    } else if (args.n[1] == 4 || args.n[1] == 5) {
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    args.output<int>(2)[0] = *data;
  }
}

// What the first thread has copied, and has waited for, it passes on like what it wrote.
MICRO_KERNEL(message_of_a_copy) {
  __shared__ alignas(16) int data[4];
  auto* const flag = args.output<int>(0);
  if (threadIdx.x == 0) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to_shared(data)),
                 "l"(args.input<int>(0))
                 : "memory");
    if (args.n[1] != 0) {
      asm volatile("cp.async.wait_all;" ::: "memory");
    }
    give(flag, args.n[0]);
    asm volatile("cp.async.wait_all;" ::: "memory");
  } else if (threadIdx.x == 63) {
    while (look(flag, 2) == 0) {
    }
    args.output<int>(1)[0] = data[0];
  }
}

// The same in shared memory, by way of an mbarrier: the first warp gives the sign to the second.
MICRO_KERNEL(message_by_mbarrier) {
  __shared__ uint64_t barrier;
  __shared__ int data[32];
  unsigned const address = to_shared(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 32);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    data[threadIdx.x] = 7;
    if (args.n[0] == 2) {
      mbarrier_arrive(barrier);
    } else {
      if (args.n[0] == 1) {
        asm volatile("fence.acq_rel.cta;" ::: "memory");
      }
      asm volatile("mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%0];" ::"r"(address)
                   : "memory");
    }
    return;
  }
  if (args.n[1] == 2) {
    mbarrier_wait(barrier, 0);
  } else {
    unsigned done = 0;
    while (done == 0) {
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.relaxed.cta.shared::cta.b64 p, [%1], 0;"
          " selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(address)
          : "memory");
    }
    if (args.n[1] == 1) {
      asm volatile("fence.acq_rel.cta;" ::: "memory");
    }
  }
  args.output<int>(0)[threadIdx.x - 32] = data[threadIdx.x - 32];
}

// From each block of a cluster of two to the other, by way of the cluster's barrier.
MICRO_KERNEL(message_by_cluster_barrier) {
  __shared__ int data[32];
  data[threadIdx.x] = 7;
  if (args.n[0] == 2) {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  } else {
    if (args.n[0] == 1) {
      asm volatile("fence.acq_rel.cluster;" ::: "memory");
    }
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  }
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  int got;
  asm volatile("ld.shared::cluster.s32 %0, [%1];"
               : "=r"(got)
               : "r"(in_block(data, 1 - cluster_rank()) + 4 * threadIdx.x)
               : "memory");
  args.output<int>(0)[blockIdx.x * 32 + threadIdx.x] = got;
  cluster_sync();
}
