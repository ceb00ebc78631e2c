// mbarrier.*: arrivals, phases, transactions, states and parities.
#include "async_ptx.cuh"

// Arrive, then wait with the state that arrive returned, phase by phase.
MICRO_KERNEL(arrive_and_wait) {
  __shared__ uint64_t barrier;
  __shared__ int values[2][96];
  int const me = threadIdx.x;
  if (me == 0) {
    mbarrier_init(barrier, 96);
  }
  __syncthreads();
  int value = args.input<int>(0)[me];
  for (int phase = 0; phase < args.n[0]; ++phase) {
    values[phase % 2][me] = value;
    uint64_t const state = mbarrier_arrive(barrier);
    unsigned done = 0;
    while (done == 0) {
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.acquire.cta.shared::cta.b64 p, [%1], %2;"
          " selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(to_shared(&barrier)), "l"(state)
          : "memory");
    }
    value = values[phase % 2][95 - me] + 1;
  }
  args.output<int>(0)[me] = value;
}

// A ring of two slots: one warp fills them, another empties them. The consumer polls, and the
// wait of the producer has a time limit.
MICRO_KERNEL(ring_of_slots) {
  __shared__ uint64_t full[2], empty[2];
  __shared__ int slots[2][32];
  int const lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(full[i], 32);
      mbarrier_init(empty[i], 32);
    }
  }
  __syncthreads();
  for (int round = 0; round < args.n[0]; ++round) {
    int const slot = round % 2, parity = round / 2 % 2;
    if (threadIdx.x < 32) {
      unsigned done = 0;
      while (done == 0) {  // the first time around, the phase before the first one
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3;"
            " selp.u32 %0, 1, 0, p; }"
            : "=r"(done)
            : "r"(to_shared(&empty[slot])), "r"(parity ^ 1), "r"(1000)
            : "memory");
      }
      slots[slot][lane] = 100 * round + lane;
      mbarrier_arrive(full[slot]);
    } else {
      while (!mbarrier_test(full[slot], parity)) {
      }
      args.output<int>(0)[32 * round + lane] = slots[slot][31 - lane];
      mbarrier_arrive(empty[slot]);
    }
  }
}

// One thread, many kinds of arrivals: pending counts and phases after each.
MICRO_KERNEL(counts) {
  __shared__ uint64_t barrier;
  auto* out = args.output<int>(0);
  int const barrier_address = int(to_shared(&barrier));
  auto const pending = [](uint64_t state) {
    int count;
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(count) : "l"(state));
    return count;
  };
  uint64_t state;
  mbarrier_init(barrier, 10);
  asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 3;"
               : "=l"(state)
               : "r"(barrier_address)
               : "memory");
  out[0] = pending(state);
  asm volatile("mbarrier.arrive_drop.noComplete.shared.b64 %0, [%1], 2;"
               : "=l"(state)
               : "r"(barrier_address)
               : "memory");
  out[1] = pending(state);
  out[2] = mbarrier_test(barrier, 0);
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], 4;" ::"r"(barrier_address)
               : "memory");
  out[3] = mbarrier_test(barrier, 0);
  asm volatile("mbarrier.arrive.b64 %0, [%1];" : "=l"(state) : "l"(&barrier) : "memory");
  out[4] = mbarrier_test(barrier, 0);
  out[5] = mbarrier_test(barrier, 1);
  // The next phase has 8 arrivals, because two dropped out.
  asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 7;"
               : "=l"(state)
               : "r"(barrier_address)
               : "memory");
  out[6] = pending(state);
  out[7] = mbarrier_test(barrier, 1);
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" ::"r"(barrier_address) : "memory");
  out[8] = mbarrier_test(barrier, 1);
  unsigned done;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier_address), "l"(state)
      : "memory");
  out[9] = int(done);
  // And then 7.
  asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 1;"
               : "=l"(state)
               : "r"(barrier_address)
               : "memory");
  out[10] = pending(state);
  // The memory can become another mbarrier.
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier_address) : "memory");
  mbarrier_init(barrier, 1);
  out[11] = mbarrier_test(barrier, 0);
  mbarrier_arrive(barrier);
  out[12] = mbarrier_test(barrier, 0);
}

// Bytes that are to come keep a phase open, in whichever order they are announced and completed.
MICRO_KERNEL(transactions) {
  __shared__ uint64_t barrier;
  auto* out = args.output<int>(0);
  unsigned const address = to_shared(&barrier);
  mbarrier_init(barrier, 2);
  mbarrier_arrive_expect_tx(barrier, 100);
  mbarrier_arrive(barrier);
  out[0] = mbarrier_test(barrier, 0);
  asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 60;" ::"r"(address)
               : "memory");
  out[1] = mbarrier_test(barrier, 0);
  asm volatile("mbarrier.complete_tx.shared::cta.relaxed.cta.b64 [%0], 40;" ::"r"(address)
               : "memory");
  out[2] = mbarrier_test(barrier, 0);
  // First the bytes, then the announcement.
  asm volatile("mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%0], 1000;" ::"r"(address)
               : "memory");
  mbarrier_arrive(barrier);
  mbarrier_arrive(barrier);
  out[3] = mbarrier_test(barrier, 1);
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 1000;" ::"r"(address)
               : "memory");
  // Whether or not that completes the phase, the next operations do.
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(address)
               : "memory");
  asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 16;" ::"r"(address)
               : "memory");
  out[4] = mbarrier_test(barrier, 1);
}

// All blocks of a cluster arrive at block 0's mbarrier and leave a value there.
MICRO_KERNEL(remote_arrivals) {
  __shared__ uint64_t barrier;
  __shared__ int values[8];
  unsigned const rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 2 * int(size));
    fence_mbarrier_init();
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    unsigned const remote = in_block(&barrier, 0);
    asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(in_block(&values, 0) + 4 * rank),
                 "r"(int(rank) * 5)
                 : "memory");
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote)
                 : "memory");
    asm volatile(
        "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], 8;" ::"r"(remote)
        : "memory");
    asm volatile("mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%0], 8;" ::"r"(remote)
                 : "memory");
  }
  if (rank == 0) {
    unsigned done = 0;
    while (done == 0) {
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;"
          " selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(to_shared(&barrier))
          : "memory");
    }
    if (threadIdx.x < size) {
      args.output<int>(0)[threadIdx.x] = values[threadIdx.x];
    }
  }
  cluster_sync();
}

// Relaxed arrivals and waits, ordered by fences.
MICRO_KERNEL(relaxed) {
  __shared__ uint64_t barrier;
  __shared__ int values[64];
  int const me = threadIdx.x;
  if (me == 0) {
    mbarrier_init(barrier, 64);
  }
  __syncthreads();
  values[me] = 3 * me;
  asm volatile("fence.acq_rel.cta;" ::: "memory");
  asm volatile("mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%0];" ::"r"(to_shared(&barrier))
               : "memory");
  unsigned done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.relaxed.cta.shared::cta.b64 p, [%1], 0;"
        " selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(to_shared(&barrier))
        : "memory");
  }
  asm volatile("fence.acq_rel.cta;" ::: "memory");
  args.output<int>(0)[me] = values[63 - me];
}

// Each lane has its own mbarrier, and waits for another lane's of the same warp.
MICRO_KERNEL(one_per_lane) {
  __shared__ uint64_t barriers[32];
  __shared__ int values[32];
  int const me = threadIdx.x;
  mbarrier_init(barriers[me], 1);
  __syncwarp();
  if (me % 2 == 0) {
    values[me] = me;
    mbarrier_arrive(barriers[me]);
    mbarrier_wait(barriers[me + 1], 0);
    args.output<int>(0)[me] = values[me + 1];
  } else {
    mbarrier_wait(barriers[me - 1], 0);
    values[me] = 50 + values[me - 1];
    mbarrier_arrive(barriers[me]);
    args.output<int>(0)[me] = -1;
  }
}
