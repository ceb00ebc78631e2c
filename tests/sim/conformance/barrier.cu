// bar, barrier, bar.warp.sync, barrier.cluster, mapa.
#include "async_ptx.cuh"

// ---- Barriers of a block ------------------------------------------------------------------------

MICRO_KERNEL(sync) {
  __shared__ int values[128];
  values[threadIdx.x] = args.input<int>(0)[threadIdx.x];
  asm volatile("bar.sync 0;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = values[127 - threadIdx.x];
}

// Two warps produce, two consume, by two barriers whose numbers and counts are in registers.
MICRO_KERNEL(produce_and_consume) {
  __shared__ int values[64];
  int const full = args.n[0], empty = args.n[1], threads = args.n[2], rounds = args.n[3];
  int const me = threadIdx.x % 64;
  bool const produces = threadIdx.x < 64;
  for (int round = 0; round < rounds; ++round) {
    if (produces) {
      if (round > 0) {
        asm volatile("bar.sync %0, %1;" ::"r"(empty), "r"(threads) : "memory");
      }
      values[me] = 1000 * round + me;
      asm volatile("bar.arrive %0, %1;" ::"r"(full), "r"(threads) : "memory");
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(full), "r"(threads) : "memory");
      args.output<int>(0)[64 * round + me] = values[63 - me];
      if (round + 1 < rounds) {
        asm volatile("bar.arrive %0, %1;" ::"r"(empty), "r"(threads) : "memory");
      }
    }
  }
}

// popc, and, or of the predicate "input is not 0", over all 96 threads and over two warps.
MICRO_KERNEL(reductions) {
  int const value = args.input<int>(0)[threadIdx.x];
  auto* out = args.output<int>(0) + 7 * threadIdx.x;
  asm volatile("{ .reg .pred c; setp.ne.s32 c, %1, 0; bar.red.popc.u32 %0, 0, c; }"
               : "=r"(out[0])
               : "r"(value)
               : "memory");
  asm volatile(
      "{ .reg .pred c, p; setp.ne.s32 c, %1, 0; bar.red.and.pred p, 1, c; selp.s32 %0, 1, 0, p; }"
      : "=r"(out[1])
      : "r"(value)
      : "memory");
  asm volatile(
      "{ .reg .pred c, p; setp.ne.s32 c, %1, 0; bar.red.or.pred p, 2, c; selp.s32 %0, 1, 0, p; }"
      : "=r"(out[2])
      : "r"(value)
      : "memory");
  asm volatile("{ .reg .pred c; setp.ne.s32 c, %1, 0; bar.red.popc.u32 %0, 3, !c; }"
               : "=r"(out[3])
               : "r"(value)
               : "memory");
  out[4] = out[5] = out[6] = -1;
  if (threadIdx.x < 64) {
    asm volatile(
        "{ .reg .pred c; setp.ne.s32 c, %1, 0; barrier.cta.red.popc.aligned.u32 %0, 4, 64, c; }"
        : "=r"(out[4])
        : "r"(value)
        : "memory");
    asm volatile(
        "{ .reg .pred c, p; setp.ne.s32 c, %1, 0; bar.red.and.pred p, 4, 64, c;"
        " selp.s32 %0, 1, 0, p; }"
        : "=r"(out[5])
        : "r"(value)
        : "memory");
    asm volatile(
        "{ .reg .pred c, p; setp.ne.s32 c, %1, 0; bar.red.or.pred p, 4, 64, c;"
        " selp.s32 %0, 1, 0, p; }"
        : "=r"(out[6])
        : "r"(value)
        : "memory");
  }
}

// The lanes of each warp come to the barrier in three parts.
MICRO_KERNEL(unaligned) {
  __shared__ int values[64];
  int const me = threadIdx.x;
  int popc = 0;
  if (me % 3 == 0) {
    values[me] = me;
    asm volatile("barrier.sync 5, 64;" ::: "memory");
  } else if (me % 3 == 1) {
    values[me] = 2 * me;
    asm volatile("barrier.sync 5, 64;" ::: "memory");
  } else {
    values[me] = 3 * me;
    asm volatile("barrier.sync 5, 64;" ::: "memory");
  }
  args.output<int>(0)[me] = values[63 - me];
  if (me % 2 == 0) {
    asm volatile("{ .reg .pred c; setp.lt.s32 c, %1, 40; barrier.red.popc.u32 %0, 6, c; }"
                 : "=r"(popc)
                 : "r"(me)
                 : "memory");
  } else {
    asm volatile("{ .reg .pred c; setp.lt.s32 c, %1, 20; barrier.red.popc.u32 %0, 6, c; }"
                 : "=r"(popc)
                 : "r"(me)
                 : "memory");
  }
  args.output<int>(1)[me] = popc;
}

// A barrier of the block does not wait for threads that have left: here all of a warp, and most of
// another one.
MICRO_KERNEL(after_exits) {
  __shared__ int values[96];
  int const me = threadIdx.x;
  if (me < 32 || (me >= 64 && me < 90)) {
    args.output<int>(0)[me] = -1;
    return;
  }
  values[me] = me;
  asm volatile("barrier.sync 0;" ::: "memory");
  int const other = me < 64 ? 95 - (me - 32) % 6 : me - 32;
  args.output<int>(0)[me] = values[other];
}

// A block of 100 threads has 128 for a barrier.
MICRO_KERNEL(ragged_block) {
  __shared__ int values[100];
  values[threadIdx.x] = int(threadIdx.x);
  asm volatile("bar.sync 1, 128;" ::: "memory");
  int const sum = values[99 - threadIdx.x];
  asm volatile("bar.sync 2;" ::: "memory");
  args.output<int>(0)[threadIdx.x] = sum;
}

// ---- Barriers of a warp -------------------------------------------------------------------------

// Lanes meet at different places of the program.
MICRO_KERNEL(warp_sync_apart) {
  __shared__ int values[32];
  int const me = threadIdx.x;
  int other;
  if (me % 2 == 0) {
    values[me] = 10 * me;
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
    other = values[me + 1];
  } else {
    values[me] = 20 * me;
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
    other = values[me - 1] + 1;
  }
  args.output<int>(0)[me] = other;
}

// Each quarter of a warp for itself, the mask in a register; the other lanes do not come at all.
MICRO_KERNEL(warp_sync_parts) {
  __shared__ int volatile values[32];
  int const me = threadIdx.x;
  unsigned const mask = 0xffu << (me / 8 * 8);
  int value = me;
  if (me / 8 != 2) {
    for (int round = 0; round < 3; ++round) {
      values[me] = value;
      asm volatile("bar.warp.sync %0;" ::"r"(mask) : "memory");
      value = 3 * values[me ^ 5];
      asm volatile("bar.warp.sync %0;" ::"r"(mask) : "memory");
    }
  }
  args.output<int>(0)[me] = value;
}

// Lanes that have left are not waited for.
MICRO_KERNEL(warp_sync_after_exits) {
  __shared__ int values[32];
  int const me = threadIdx.x;
  args.output<int>(0)[me] = -1;
  if (me >= 20) {
    return;
  }
  values[me] = me;
  asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
  args.output<int>(0)[me] = values[19 - me];
}

// ---- Clusters -----------------------------------------------------------------------------------

// Every block writes into the next one's shared memory, round by round.
MICRO_KERNEL(ring) {
  __shared__ int values[2][32];
  unsigned const rank = cluster_rank(), size = cluster_size();
  unsigned const next = in_block(&values, (rank + 1) % size);
  int value = 100 * int(rank) + int(threadIdx.x);
  cluster_sync();  // all blocks have begun
  for (int round = 0; round < args.n[0]; ++round) {
    unsigned const to = next + (round % 2 * 32 + threadIdx.x) * 4;
    asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
    asm volatile("barrier.cluster.arrive;" ::: "memory");
    asm volatile("barrier.cluster.wait;" ::: "memory");
    value = values[round % 2][31 - threadIdx.x] + 1;
  }
  args.output<int>(0)[blockIdx.x * 32 + threadIdx.x] = value;
}

// arrive.relaxed orders nothing by itself, but a fence before it does.
MICRO_KERNEL(relaxed_arrival) {
  __shared__ int value;
  unsigned const rank = cluster_rank();
  cluster_sync();
  if (threadIdx.x == 0) {
    asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(in_block(&value, rank ^ 1)),
                 "r"(int(rank) + 7)
                 : "memory");
  }
  asm volatile("fence.acq_rel.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  args.output<int>(0)[blockIdx.x * 32 + threadIdx.x] = value;
}

// Addresses of other blocks: generic and shared ones, back to the rank; loads and atomics there.
MICRO_KERNEL(remote_addresses) {
  __shared__ int value;
  __shared__ int counter;
  unsigned const rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) {
    value = 10 * int(rank) + 3;
    counter = 0;
  }
  cluster_sync();
  unsigned const of = (rank + 1 + threadIdx.x) % size;
  uint64_t generic;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(generic) : "l"(&value), "r"(of));
  unsigned rank_of_generic, rank_of_shared;
  asm volatile("getctarank.u64 %0, %1;" : "=r"(rank_of_generic) : "l"(generic));
  asm volatile("getctarank.shared::cluster.u32 %0, %1;"
               : "=r"(rank_of_shared)
               : "r"(in_block(&value, of)));
  int from_shared;
  asm volatile("ld.shared::cluster.s32 %0, [%1];"
               : "=r"(from_shared)
               : "r"(in_block(&value, of))
               : "memory");
  asm volatile("red.relaxed.cluster.shared::cluster.add.s32 [%0], %1;" ::"r"(in_block(&counter, 0)),
               "r"(int(threadIdx.x) + 1)
               : "memory");
  auto* out = args.output<int>(0) + 5 * (32 * blockIdx.x + threadIdx.x);
  out[0] = *reinterpret_cast<int const*>(generic);
  out[1] = from_shared;
  out[2] = int(rank_of_generic);
  out[3] = int(rank_of_shared);
  cluster_sync();
  out[4] = rank == 0 ? counter : 0;
}

// The barrier of a cluster does not wait for threads that have left, nor for whole blocks of them.
MICRO_KERNEL(cluster_after_exits) {
  unsigned const rank = cluster_rank();
  args.output<int>(0)[blockIdx.x * 64 + threadIdx.x] = int(rank);
  if (rank % 3 == 0 || (rank == 2 && threadIdx.x >= 32)) {
    return;
  }
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  args.output<int>(0)[blockIdx.x * 64 + threadIdx.x] = 10 + int(rank);
}
