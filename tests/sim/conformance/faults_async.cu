// Kernels with an error each in their barriers or asynchronous copies, that the emulator must find.
#include "async_ptx.cuh"

// ---- Barriers -----------------------------------------------------------------------------------

MICRO_KERNEL(no_barrier) {
  __shared__ int values[64];
  values[threadIdx.x] = int(threadIdx.x);
  args.output<int>(0)[threadIdx.x] = values[threadIdx.x % 32];
}

MICRO_KERNEL(different_counts) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
  } else {
    asm volatile("bar.sync 1, 96;" ::: "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(count_in_n) {
  asm volatile("bar.sync 1, %0;" ::"r"(args.n[0]) : "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(barrier_in_n) {
  asm volatile("bar.sync %0, 64;" ::"r"(args.n[0]) : "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(arrives_twice) {
  asm volatile("bar.arrive 1, 64;" ::: "memory");
  asm volatile("bar.arrive 1, 64;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(only_one_warp_comes) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 3, 64;" ::: "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(half_a_warp_comes) {
  if (threadIdx.x % 2 == 0) {
    asm volatile("bar.sync 0;" ::: "memory");
  } else {
    asm volatile("bar.sync 1;" ::: "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(not_in_its_mask) {
  asm volatile("bar.warp.sync 0xffff;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

// ---- Clusters -----------------------------------------------------------------------------------

MICRO_KERNEL(waits_without_arriving) {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(arrives_without_waiting) {
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(no_such_rank) {
  __shared__ int value;
  args.output<int>(0)[threadIdx.x] = int(in_block(&value, 2));
}

// Block 1 reads block 0's shared memory, which need not be there any more.
MICRO_KERNEL(owner_has_left) {
  __shared__ int values[32];
  unsigned const rank = cluster_rank();
  values[threadIdx.x] = int(rank);
  cluster_sync();
  int value = 0;
  if (rank == 1) {
    asm volatile("ld.shared::cluster.s32 %0, [%1];"
                 : "=r"(value)
                 : "r"(in_block(values + threadIdx.x, 0))
                 : "memory");
  }
  args.output<int>(0)[32 * rank + threadIdx.x] = value;
}

// The neighbour may not have begun to listen: its arrival is not waited for.
MICRO_KERNEL(unordered_remote_write) {
  __shared__ int values[32];
  unsigned const rank = cluster_rank();
  values[threadIdx.x] = 0;
  cluster_sync();
  asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(in_block(values + threadIdx.x, rank ^ 1)),
               "r"(1)
               : "memory");
  args.output<int>(0)[32 * rank + threadIdx.x] = values[31 - threadIdx.x];
  cluster_sync();
}

// ---- mbarriers ----------------------------------------------------------------------------------

MICRO_KERNEL(not_initialized) {
  __shared__ uint64_t barrier;
  mbarrier_arrive(barrier);
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(initialized_with_n) {
  __shared__ uint64_t barrier;
  mbarrier_init(barrier, args.n[0]);
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(written_over) {
  __shared__ uint64_t barriers[2];
  if (threadIdx.x == 0) {
    mbarrier_init(barriers[1], 1);
    for (int i = 0; i < args.n[0]; ++i) {
      barriers[i] = 0;
    }
    mbarrier_arrive(barriers[1]);
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(misaligned_mbarrier) {
  __shared__ uint64_t barriers[2];
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(to_shared(barriers) + 4) : "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

// Initialised, but the others are not told.
MICRO_KERNEL(no_sync_after_init) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 32);
  }
  mbarrier_arrive(barrier);
  mbarrier_wait(barrier, 0);
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(too_many_arrivals) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 2);
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 3;" ::"r"(to_shared(&barrier))
                 : "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(too_few_arrivals) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 33);
  }
  __syncthreads();
  mbarrier_arrive(barrier);
  mbarrier_wait(barrier, 0);
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(stale_state) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    uint64_t const state = mbarrier_arrive(barrier);
    mbarrier_arrive(barrier);
    mbarrier_arrive(barrier);
    unsigned done;
    asm volatile(
        "{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(to_shared(&barrier)), "l"(state)
        : "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(too_many_bytes) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    asm volatile(
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(to_shared(&barrier)),
        "r"(1 << 20)
        : "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

// ---- cp.async -----------------------------------------------------------------------------------

__device__ void copy_16(int* to, int const* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to_shared(to)), "l"(from)
               : "memory");
}

// Every lane reads what it has copied itself, but without waiting.
MICRO_KERNEL(no_wait_for_copies) {
  __shared__ alignas(16) int values[128];
  copy_16(values + 4 * threadIdx.x, args.input<int>(0) + 4 * threadIdx.x);
  asm volatile("cp.async.commit_group;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = values[4 * threadIdx.x];
}

// Waits for all groups but the one it needs.
MICRO_KERNEL(waits_for_too_few_groups) {
  __shared__ alignas(16) int values[128];
  copy_16(values + 4 * threadIdx.x, args.input<int>(0) + 4 * threadIdx.x);
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = values[4 * threadIdx.x];
}

// Groups of one thread end in any order.
MICRO_KERNEL(copies_of_two_groups_to_one_place) {
  __shared__ alignas(16) int values[128];
  for (int i = 0; i < 2; ++i) {
    copy_16(values + 4 * threadIdx.x, args.input<int>(0) + 4 * threadIdx.x);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = values[4 * threadIdx.x];
}

// The wait is for a thread's own copies; a barrier must tell the others.
MICRO_KERNEL(no_barrier_after_copies) {
  __shared__ alignas(16) int values[256];
  copy_16(values + 4 * threadIdx.x, args.input<int>(0) + 4 * threadIdx.x);
  asm volatile("cp.async.wait_all;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = values[4 * (threadIdx.x % 32)];
}

MICRO_KERNEL(misaligned_copy) {
  __shared__ alignas(16) int values[128 + 4];
  copy_16(values + 4 * threadIdx.x + args.n[0], args.input<int>(0) + 4 * threadIdx.x);
  asm volatile("cp.async.wait_all;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(copy_past_the_end) {
  __shared__ alignas(16) int values[128];
  copy_16(values + 4 * threadIdx.x, args.input<int>(0) + 4 * threadIdx.x + args.n[0]);
  asm volatile("cp.async.wait_all;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

// ---- Bulk copies --------------------------------------------------------------------------------

struct BulkLoad {
  int bytes;
  int expected;
  int from;  // ints
  int to;
};

__device__ void load_and_read(Args const& args, BulkLoad load, bool waits) {
  __shared__ alignas(16) int values[256];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, load.expected);
    bulk_load(values + load.to, args.input<int>(0) + load.from, load.bytes, full);
  }
  __syncthreads();
  if (waits) {
    mbarrier_wait(full, 0);
  }
  args.output<int>(0)[threadIdx.x] = values[threadIdx.x];
  if (!waits) {
    mbarrier_wait(full, 0);  // too late
  }
}

// Race detection does not see it: a thread's copies count as complete in their order.
MICRO_KERNEL(waits_for_the_second_load) {
  __shared__ uint64_t barriers[2];
  __shared__ alignas(16) int values[2][32];
  if (threadIdx.x == 0) {
    mbarrier_init(barriers[0], 1);
    mbarrier_init(barriers[1], 1);
    for (int i = 0; i < 2; ++i) {
      mbarrier_arrive_expect_tx(barriers[i], sizeof values[i]);
      bulk_load(values[i], args.input<int>(0) + 32 * i, sizeof values[i], barriers[i]);
    }
  }
  __syncthreads();
  mbarrier_wait(barriers[1], 0);
  args.output<int>(0)[threadIdx.x] = values[0][threadIdx.x];
  mbarrier_wait(barriers[0], 0);
}

MICRO_KERNEL(no_wait_for_bulk_load) { load_and_read(args, {512, 512, 0, 0}, false); }
MICRO_KERNEL(expects_too_many_bytes) { load_and_read(args, {512, 528, 0, 0}, true); }
MICRO_KERNEL(expects_too_few_bytes) { load_and_read(args, {512, 496, 0, 0}, true); }
MICRO_KERNEL(misaligned_source) { load_and_read(args, {512, 512, 1, 0}, true); }
MICRO_KERNEL(misaligned_target) { load_and_read(args, {512, 512, 0, 2}, true); }
MICRO_KERNEL(misaligned_size) { load_and_read(args, {500, 500, 0, 0}, true); }
MICRO_KERNEL(bulk_source_past_the_end) { load_and_read(args, {512, 512, 4, 0}, true); }
MICRO_KERNEL(bulk_target_past_the_end) { load_and_read(args, {512, 512, 0, 132}, true); }

MICRO_KERNEL(prefetch_past_the_end) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], 1024;" ::"l"(args.input<int>(0)) : "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

__device__ void fill_and_store(Args const& args, bool fences, bool waits, bool synchronizes) {
  __shared__ alignas(16) int values[32];
  values[threadIdx.x] = int(threadIdx.x);
  if (fences) {
    fence_proxy_async();
  }
  if (synchronizes) {
    __syncwarp();
  }
  if (threadIdx.x == 0) {
    bulk_store(args.output<int>(0), values, int(sizeof values));
    bulk_commit();
    if (waits) {
      bulk_wait_read<0>();
    }
  }
}

MICRO_KERNEL(no_proxy_fence) { fill_and_store(args, false, true, true); }
MICRO_KERNEL(no_wait_for_bulk_store) { fill_and_store(args, true, false, true); }
MICRO_KERNEL(no_sync_before_bulk_store) { fill_and_store(args, true, true, false); }

// Reuses shared memory from which a store may still read.
MICRO_KERNEL(no_wait_before_reuse) {
  __shared__ alignas(16) int values[4];
  if (threadIdx.x == 0) {
    values[0] = values[1] = values[2] = values[3] = 1;
    fence_proxy_async();
    bulk_store(args.output<int>(0), values, int(sizeof values));
    bulk_commit();
    values[0] = 2;
    bulk_wait<0>();
  }
}

// Two blocks store to the same place: only reductions may.
MICRO_KERNEL(bulk_stores_to_one_place) {
  __shared__ alignas(16) int values[4];
  if (threadIdx.x == 0) {
    values[0] = values[1] = values[2] = values[3] = 1;
    fence_proxy_async();
    bulk_store(args.output<int>(0), values, int(sizeof values));
    bulk_commit();
    bulk_wait<0>();
  }
}

// wait_group.read is enough to reuse the source, but not to read the result.
MICRO_KERNEL(reads_result_after_wait_read) {
  __shared__ alignas(16) int values[4];
  if (threadIdx.x == 0) {
    values[0] = values[1] = values[2] = values[3] = 1;
    fence_proxy_async();
    bulk_store(args.output<int>(0), values, int(sizeof values));
    bulk_commit();
    bulk_wait_read<0>();
    values[0] = args.output<int>(0)[1];
  }
}

// Leaves while bytes are on their way, or when more have come than were announced.
MICRO_KERNEL(leaves_with_bytes_pending) {
  __shared__ alignas(16) int values[64];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, args.n[0]);
    bulk_load(values, args.input<int>(0), 128, full);
    bulk_load(values + 32, args.input<int>(0), 128, full);
    if (args.n[0] <= 128) {
      mbarrier_wait(full, 0);
    }
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

// The mbarrier must be in the block that the bytes go to.
MICRO_KERNEL(mbarrier_of_another_block) {
  __shared__ alignas(16) int values[32];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  values[threadIdx.x] = 0;
  fence_proxy_async();
  cluster_sync();
  if (threadIdx.x == 0) {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
        " [%0], [%1], 128, [%2];" ::"r"(in_block(values, cluster_rank() ^ 1)),
        "r"(to_shared(values)), "r"(to_shared(&full))
        : "memory");
  }
  cluster_sync();
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(invalidated_too_early) {
  __shared__ alignas(16) int values[32];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, 128);
    bulk_load(values, args.input<int>(0), 128, full);
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(to_shared(&full)) : "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

MICRO_KERNEL(multicast_to_nobody) {
  __shared__ alignas(16) int values[32];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1], 128, [%2], %3;" ::"r"(to_shared(values)),
        "l"(args.input<int>(0)), "r"(to_shared(&full)), "h"(static_cast<unsigned short>(args.n[0]))
        : "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}

// ---- Tensor copies ------------------------------------------------------------------------------

MICRO_KERNEL(no_tensor_map) {
  __shared__ alignas(128) int values[32];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2}], [%3];" ::"r"(to_shared(values)),
        "l"(args.input<char>(0) + args.n[0]), "r"(0), "r"(to_shared(&full))
        : "memory");
  }
  args.output<int>(0)[threadIdx.x] = 1;
}
