// cp.async, cp.async.bulk, cp.reduce.async.bulk, st.async, red.async.
#include "async_ptx.cuh"

// ---- cp.async -----------------------------------------------------------------------------------

// Each lane copies 4, 8, 16 and once more 16 bytes.
MICRO_KERNEL(sizes) {
  __shared__ alignas(16) char bytes[32 * 64];
  int const lane = threadIdx.x;
  char const* from = args.input<char>(0) + 64 * lane;
  unsigned const to = to_shared(bytes + 64 * lane);
  for (int i = 0; i < 64; ++i) {
    bytes[64 * lane + i] = char(0xee);
  }
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
  asm volatile("cp.async.ca.shared::cta.global.L2::128B [%0], [%1], 8;" ::"r"(to + 8), "l"(from + 8)
               : "memory");
  asm volatile("cp.async.ca.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to + 16), "l"(from + 16)
               : "memory");
  asm volatile("cp.async.cg.shared.global [%0+32], [%1+32], 16;" ::"r"(to), "l"(from) : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  for (int i = 0; i < 64; ++i) {
    args.output<char>(0)[64 * lane + i] = bytes[64 * lane + i];
  }
}

// Bytes beyond the size of the source become zero. Lane i has a source of i % 17 bytes.
MICRO_KERNEL(short_sources) {
  __shared__ alignas(16) char bytes[64 * 16];
  int const lane = threadIdx.x;
  char const* from = args.input<char>(0) + 16 * lane;
  unsigned const to = to_shared(bytes + 16 * lane);
  if (lane < 32) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(lane % 17)
                 : "memory");
  } else {
    for (int i = 0; i < 2; ++i) {
      asm volatile(
          "cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 8, %2, %3;" ::"r"(to + 8 * i),
          "l"(from + 8 * i), "r"(lane % 9), "l"(0x12f0000000000000ll)
          : "memory");
    }
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  for (int i = 0; i < 16; ++i) {
    args.output<char>(0)[16 * lane + i] = bytes[16 * lane + i];
  }
}

// A predicate decides whether the source is read at all.
MICRO_KERNEL(ignored_sources) {
  __shared__ alignas(16) int values[32];
  int const lane = threadIdx.x;
  asm volatile(
      "{ .reg .pred ignore; setp.ne.s32 ignore, %2, 0;"
      " cp.async.ca.shared.global [%0], [%1], 4, ignore; }" ::"r"(to_shared(values + lane)),
      "l"(args.input<int>(0) + lane), "r"(lane % 3)
      : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  args.output<int>(0)[lane] = values[lane];
}

// A pipeline of three stages: while one is used, two are on their way.
MICRO_KERNEL(pipeline) {
  constexpr int kStages = 3;
  __shared__ alignas(16) int stages[kStages][64 * 4];
  int const me = threadIdx.x, steps = args.n[0];
  auto const load = [&](int step) {
    if (step < steps) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       to_shared(&stages[step % kStages][4 * me])),
                   "l"(args.input<int>(0) + (step * 64 + me) * 4)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  load(0);
  load(1);
  int sum = 0;
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    load(step + 2);
    sum = 3 * sum + stages[step % kStages][(5 * me + step) % 256];
  }
  args.output<int>(0)[me] = sum;
}

// Copies that arrive at an mbarrier when they have ended: as an arrival more, and as one of those
// that the mbarrier was initialised for.
MICRO_KERNEL(copies_arrive) {
  __shared__ alignas(16) int values[2][64];
  __shared__ uint64_t extra, counted;
  int const me = threadIdx.x;
  if (me == 0) {
    mbarrier_init(extra, 64);
    mbarrier_init(counted, 64);
  }
  __syncthreads();
  int const* from = args.input<int>(0) + me;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to_shared(&values[0][me])),
               "l"(from)
               : "memory");
  asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(to_shared(&extra))
               : "memory");
  mbarrier_arrive(extra);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to_shared(&values[1][me])),
               "l"(from + 64)
               : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(to_shared(&counted))
               : "memory");
  mbarrier_wait(extra, 0);
  args.output<int>(0)[me] = values[0][63 - me];
  mbarrier_wait(counted, 0);
  args.output<int>(1)[me] = values[1][63 - me];
}

// An arrival for each copy: none is there before its copy.
MICRO_KERNEL(each_copy_arrives) {
  constexpr int kCopies = 12;
  __shared__ int values[kCopies];
  __shared__ uint64_t barriers[kCopies];
  for (int i = 0; i < kCopies; ++i) {
    mbarrier_init(barriers[i], 1);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to_shared(&values[i])),
                 "l"(args.input<int>(0) + i)
                 : "memory");
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(to_shared(&barriers[i]))
        : "memory");
  }
  for (int i = 0; i < kCopies; ++i) {
    mbarrier_wait(barriers[i], 0);
    args.output<int>(0)[i] = values[i];
  }
}

// ---- Bulk copies --------------------------------------------------------------------------------

// One fence is enough for what all have written, if it comes after a barrier, before the copy.
MICRO_KERNEL(fence_of_the_issuer) {
  __shared__ alignas(16) int values[64];
  values[threadIdx.x] = 3 * int(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_proxy_async();
    bulk_store(args.output<int>(0), values, sizeof values);
    bulk_commit();
    bulk_wait<0>();
  }
}

// The wait lets the second group remain, and not the first.
MICRO_KERNEL(first_of_two_groups) {
  __shared__ alignas(16) int values[2][4];
  auto* const out = args.output<int>(0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 8; ++i) {
      values[i / 4][i % 4] = 5 + i;
    }
    fence_proxy_async();
    for (int group = 0; group < 2; ++group) {
      bulk_store(out + 4 * group, values[group], sizeof values[group]);
      bulk_commit();
    }
    bulk_wait<1>();
    args.output<int>(1)[0] = out[3];
    bulk_wait<0>();
  }
}

// In with an mbarrier, changed, out with a group; two buffers in turn, and three sizes of copies.
MICRO_KERNEL(bulk_round_trip) {
  constexpr int kBytes = 1024;
  __shared__ alignas(128) int buffers[2][kBytes / 4];
  __shared__ uint64_t full[2];
  int const me = threadIdx.x;
  if (me == 0) {
    mbarrier_init(full[0], 1);
    mbarrier_init(full[1], 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  for (int step = 0; step < args.n[0]; ++step) {
    int const slot = step % 2;
    char const* from = args.input<char>(0) + step * kBytes;
    if (me == 0) {
      bulk_wait_read<1>();  // this slot's bytes have been taken out
      mbarrier_arrive_expect_tx(full[slot], kBytes);
      char* to = reinterpret_cast<char*>(buffers[slot]);
      bulk_load(to, from, 16, full[slot]);
      bulk_load(to + 16, from + 16, 496, full[slot]);
      asm volatile(
          "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint"
          " [%0], [%1], %2, [%3], %4;" ::"r"(to_shared(to + 512)),
          "l"(from + 512), "r"(512), "r"(to_shared(&full[slot])), "l"(0x14f0000000000000ll)
          : "memory");
    }
    mbarrier_wait(full[slot], step / 2 % 2);
    for (int i = me; i < kBytes / 4; i += blockDim.x) {
      buffers[slot][i] = 7 * buffers[slot][i] + step;
    }
    fence_proxy_async();
    __syncthreads();
    if (me == 0) {
      bulk_store(args.output<char>(0) + step * kBytes, buffers[slot], kBytes);
      bulk_commit();
    }
  }
  if (me == 0) {
    bulk_wait<0>();
  }
}

// wait_group.read gives the source back, to all threads after a barrier; wait_group lets the thread
// read what it has stored.
MICRO_KERNEL(reuse_and_read_back) {
  __shared__ alignas(16) int values[64];
  int const me = threadIdx.x, steps = args.n[0];
  for (int step = 0; step < steps; ++step) {
    values[me] = 100 * step + me;
    fence_proxy_async();
    __syncthreads();
    if (me == 0) {
      bulk_store(args.output<int>(0) + 64 * step, values, int(sizeof values));
      bulk_commit();
      bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (me == 0) {
    bulk_wait<1>();  // all but the last one
    for (int step = 0; step + 1 < steps; ++step) {
      args.output<int>(1)[step] = args.output<int>(0)[64 * step + 5];
    }
    bulk_wait<0>();
    args.output<int>(1)[steps - 1] = args.output<int>(0)[64 * (steps - 1) + 5];
  }
}

// The prefetch changes nothing.
MICRO_KERNEL(bulk_prefetch) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(args.input<char>(0)),
               "r"(args.n[0])
               : "memory");
  args.output<int>(0)[threadIdx.x] = 1;
}

// Block 1 loads for the blocks of a mask; all of them wait at their own mbarriers.
MICRO_KERNEL(multicast) {
  __shared__ alignas(16) int values[64];
  __shared__ uint64_t full;
  unsigned const rank = cluster_rank();
  unsigned const mask = unsigned(args.n[0]);
  bool const receives = (mask >> rank & 1) != 0;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    if (receives) {
      mbarrier_arrive_expect_tx(full, sizeof values);
    }
  }
  cluster_sync();
  if (rank == 1 && threadIdx.x == 0) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1], %2, [%3], %4;" ::"r"(to_shared(values)),
        "l"(args.input<int>(0)), "r"(int(sizeof values)), "r"(to_shared(&full)),
        "h"(static_cast<unsigned short>(mask))
        : "memory");
  }
  int value = -1;
  if (receives) {
    mbarrier_wait(full, 0);
    value = values[63 - threadIdx.x] + 1000 * int(rank);
  }
  args.output<int>(0)[blockIdx.x * 64 + threadIdx.x] = value;
  cluster_sync();
}

// Every block sends to the next one, as a copy and as a sum.
MICRO_KERNEL(send_to_neighbour) {
  __shared__ alignas(16) int ours[64], theirs[64], sums[64];
  __shared__ uint64_t full;
  unsigned const rank = cluster_rank(), next = (rank + 1) % cluster_size();
  int const me = threadIdx.x;
  if (me == 0) {
    mbarrier_init(full, 1);
    mbarrier_arrive_expect_tx(full, 2 * int(sizeof ours));
    fence_mbarrier_init();
  }
  ours[me] = 100 * int(rank) + me;
  sums[me] = 5000;
  fence_proxy_async();
  cluster_sync();
  if (me == 0) {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
        " [%0], [%1], %2, [%3];" ::"r"(in_block(theirs, next)),
        "r"(to_shared(ours)), "r"(int(sizeof ours)), "r"(in_block(&full, next))
        : "memory");
    asm volatile(
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.s32"
        " [%0], [%1], %2, [%3];" ::"r"(in_block(sums, next)),
        "r"(to_shared(ours)), "r"(int(sizeof ours)), "r"(in_block(&full, next))
        : "memory");
  }
  mbarrier_wait(full, 0);
  args.output<int>(0)[blockIdx.x * 64 + me] = theirs[63 - me];
  args.output<int>(1)[blockIdx.x * 64 + me] = sums[63 - me];
  cluster_sync();
}

// ---- Reductions in global memory ----------------------------------------------------------------

// Two blocks reduce the same 128 bytes; the kernel's name says how.
template <class Reduce>
__device__ void reduce_bytes(Args const& args, Reduce reduce) {
  __shared__ alignas(16) int values[32];
  values[threadIdx.x] = args.input<int>(0)[32 * blockIdx.x + threadIdx.x];
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    reduce(args.output<char>(0), to_shared(values), int(sizeof values));
    bulk_commit();
    bulk_wait<0>();
  }
}

#define REDUCTION(name, operation)                                                 \
  MICRO_KERNEL(name) {                                                             \
    reduce_bytes(args, [](char* to, unsigned from, int bytes) {                    \
      asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." operation \
                   " [%0], [%1], %2;" ::"l"(to),                                   \
                   "r"(from), "r"(bytes)                                           \
                   : "memory");                                                    \
    });                                                                            \
  }

REDUCTION(add_u32, "add.u32")
REDUCTION(add_s32, "add.s32")
REDUCTION(add_u64, "add.u64")
REDUCTION(add_f32, "add.f32")
REDUCTION(add_f64, "add.f64")
REDUCTION(add_f16, "add.noftz.f16")
REDUCTION(add_bf16, "add.noftz.bf16")
REDUCTION(min_u32, "min.u32")
REDUCTION(min_s32, "min.s32")
REDUCTION(min_u64, "min.u64")
REDUCTION(min_s64, "min.s64")
REDUCTION(min_f16, "min.f16")
REDUCTION(min_bf16, "min.bf16")
REDUCTION(max_u32, "max.u32")
REDUCTION(max_s32, "max.s32")
REDUCTION(max_u64, "max.u64")
REDUCTION(max_s64, "max.s64")
REDUCTION(max_f16, "max.f16")
REDUCTION(max_bf16, "max.bf16")
REDUCTION(inc_u32, "inc.u32")
REDUCTION(dec_u32, "dec.u32")
REDUCTION(and_b32, "and.b32")
REDUCTION(or_b32, "or.b32")
REDUCTION(xor_b32, "xor.b32")
REDUCTION(and_b64, "and.b64")
REDUCTION(or_b64, "or.b64")
REDUCTION(xor_b64, "xor.b64")

// ---- Asynchronous stores to another block -------------------------------------------------------

MICRO_KERNEL(store_async) {
  __shared__ alignas(16) int values[32 * 8];
  __shared__ int counter;
  __shared__ uint64_t full;
  unsigned const rank = cluster_rank(), other = rank ^ 1;
  int const lane = threadIdx.x;
  if (lane == 0) {
    counter = 0;
    mbarrier_init(full, 1);
    mbarrier_arrive_expect_tx(full, 32 * (4 + 8 + 16 + 4));
    fence_mbarrier_init();
  }
  cluster_sync();
  unsigned const to = in_block(values + 8 * lane, other);
  unsigned const barrier = in_block(&full, other);
  int const value = 1000 * int(rank) + 10 * lane;
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.s32 [%0], %1, [%2];" ::"r"(to),
      "r"(value), "r"(barrier)
      : "memory");
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0+8], %1, [%2];" ::"r"(to),
      "l"((value + 2ll) << 32 | (value + 1)), "r"(barrier)
      : "memory");
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0+16], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(value + 3), "r"(value + 4), "r"(value + 5), "r"(value + 6), "r"(barrier)
      : "memory");
  asm volatile(
      "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.s32 [%0], %1, "
      "[%2];" ::"r"(in_block(&counter, other)),
      "r"(value), "r"(barrier)
      : "memory");
  mbarrier_wait(full, 0);
  auto* out = args.output<int>(0) + 8 * (32 * blockIdx.x + lane);
  for (int i = 0; i < 8; ++i) {
    out[i] = i == 1 ? counter : values[8 * lane + i];
  }
  cluster_sync();
}
