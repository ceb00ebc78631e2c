// Exchange between the lanes of a warp: shfl, vote, match, redux, elect.
#include "conformance.cuh"

namespace {

constexpr unsigned kAll = 0xffffffff;

struct Shuffled {
  unsigned value;
  unsigned in_range;
};

enum Mode { kUp, kDown, kBfly, kIdx };

// An instruction needs its mode in its text.
template <Mode kMode>
__device__ Shuffled shuffle(unsigned value, unsigned b, unsigned c, unsigned mask) {
  Shuffled s;
  if constexpr (kMode == kUp) {
    asm volatile("{ .reg .pred p; shfl.sync.up.b32 %0|p, %2, %3, %4, %5; selp.u32 %1, 1, 0, p; }"
                 : "=r"(s.value), "=r"(s.in_range)
                 : "r"(value), "r"(b), "r"(c), "r"(mask));
  } else if constexpr (kMode == kDown) {
    asm volatile("{ .reg .pred p; shfl.sync.down.b32 %0|p, %2, %3, %4, %5; selp.u32 %1, 1, 0, p; }"
                 : "=r"(s.value), "=r"(s.in_range)
                 : "r"(value), "r"(b), "r"(c), "r"(mask));
  } else if constexpr (kMode == kBfly) {
    asm volatile("{ .reg .pred p; shfl.sync.bfly.b32 %0|p, %2, %3, %4, %5; selp.u32 %1, 1, 0, p; }"
                 : "=r"(s.value), "=r"(s.in_range)
                 : "r"(value), "r"(b), "r"(c), "r"(mask));
  } else {
    asm volatile("{ .reg .pred p; shfl.sync.idx.b32 %0|p, %2, %3, %4, %5; selp.u32 %1, 1, 0, p; }"
                 : "=r"(s.value), "=r"(s.in_range)
                 : "r"(value), "r"(b), "r"(c), "r"(mask));
  }
  return s;
}

// in0: values, in1: b, in2: c, in3: member masks, all per lane.
template <Mode kMode>
__device__ void shuffle_test(Args const& args) {
  int const lane = int(threadIdx.x);
  Shuffled const s = shuffle<kMode>(args.input<unsigned>(0)[lane], args.input<unsigned>(1)[lane],
                                    args.input<unsigned>(2)[lane], args.input<unsigned>(3)[lane]);
  args.output<unsigned>(0)[lane] = s.value;
  args.output<unsigned>(1)[lane] = s.in_range;
}

}  // namespace

MICRO_KERNEL(shfl_up) { shuffle_test<kUp>(args); }
MICRO_KERNEL(shfl_down) { shuffle_test<kDown>(args); }
MICRO_KERNEL(shfl_bfly) { shuffle_test<kBfly>(args); }
MICRO_KERNEL(shfl_idx) { shuffle_test<kIdx>(args); }

// The form without a predicate, over its own source.
MICRO_KERNEL(shfl_in_place) {
  unsigned value = args.input<unsigned>(0)[threadIdx.x];
  asm volatile("shfl.sync.bfly.b32 %0, %0, 1, 31, -1;" : "+r"(value));
  args.output<unsigned>(0)[threadIdx.x] = value;
}

// Lanes that come to a shuffle from both sides of a branch, and not before a loop of their own.
MICRO_KERNEL(shfl_after_divergence) {
  unsigned value = threadIdx.x;
  for (unsigned i = 0; i < threadIdx.x % 5; ++i) {
    value = value * 3 + args.input<unsigned>(0)[i];
  }
  args.output<unsigned>(0)[threadIdx.x] = __shfl_xor_sync(kAll, value, 7);
}

// The halves of a warp sum up on their own, each with its mask, in code of its own.
MICRO_KERNEL(sums_of_halves) {
  unsigned value = args.input<unsigned>(0)[threadIdx.x];
  if (threadIdx.x < 16) {
    for (int step = 8; step > 0; step /= 2) {
      value += __shfl_xor_sync(0x0000ffff, value, step);
    }
  } else {
    for (int step = 1; step < 16; step *= 2) {
      value += 2 * __shfl_down_sync(0xffff0000, value, step, 16);
    }
  }
  args.output<unsigned>(0)[threadIdx.x] = value;
}

// in0: predicates, in1: member masks.
MICRO_KERNEL(vote) {
  int const lane = int(threadIdx.x);
  unsigned const yes = args.input<unsigned>(0)[lane];
  unsigned const mask = args.input<unsigned>(1)[lane];
  auto* out = args.output<unsigned>(0) + 8 * lane;
  asm volatile(
      "{ .reg .pred p, q, r;\n"
      "setp.ne.u32 p, %8, 0;\n"
      "vote.sync.all.pred q, p, %9;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "vote.sync.any.pred q, p, %9;\n"
      "selp.u32 %1, 1, 0, q;\n"
      "vote.sync.uni.pred q, p, %9;\n"
      "selp.u32 %2, 1, 0, q;\n"
      "vote.sync.ballot.b32 %3, p, %9;\n"
      "vote.sync.all.pred q, !p, %9;\n"
      "selp.u32 %4, 1, 0, q;\n"
      "vote.sync.any.pred q, !p, %9;\n"
      "selp.u32 %5, 1, 0, q;\n"
      "vote.sync.uni.pred q, !p, %9;\n"
      "selp.u32 %6, 1, 0, q;\n"
      "vote.sync.ballot.b32 %7, !p, %9; }"
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]), "=r"(out[4]), "=r"(out[5]),
        "=r"(out[6]), "=r"(out[7])
      : "r"(yes), "r"(mask));
}

// in0: 64-bit values, in1: member masks.
MICRO_KERNEL(match) {
  int const lane = int(threadIdx.x);
  unsigned long long const value = args.input<unsigned long long>(0)[lane];
  unsigned const mask = args.input<unsigned>(1)[lane];
  auto* out = args.output<unsigned>(0) + 6 * lane;
  asm volatile("match.any.sync.b32 %0, %1, %2;" : "=r"(out[0]) : "r"(unsigned(value)), "r"(mask));
  asm volatile("match.any.sync.b64 %0, %1, %2;" : "=r"(out[1]) : "l"(value), "r"(mask));
  asm volatile("{ .reg .pred p; match.all.sync.b32 %0|p, %2, %3; selp.u32 %1, 1, 0, p; }"
               : "=r"(out[2]), "=r"(out[3])
               : "r"(unsigned(value)), "r"(mask));
  asm volatile("{ .reg .pred p; match.all.sync.b64 %0|p, %2, %3; selp.u32 %1, 1, 0, p; }"
               : "=r"(out[4]), "=r"(out[5])
               : "l"(value), "r"(mask));
}

// in0: values, in1: member masks.
MICRO_KERNEL(redux) {
  int const lane = int(threadIdx.x);
  unsigned const value = args.input<unsigned>(0)[lane];
  unsigned const mask = args.input<unsigned>(1)[lane];
  auto* out = args.output<unsigned>(0) + 9 * lane;
  asm volatile("redux.sync.add.s32 %0, %1, %2;" : "=r"(out[0]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.min.s32 %0, %1, %2;" : "=r"(out[1]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.max.s32 %0, %1, %2;" : "=r"(out[2]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.add.u32 %0, %1, %2;" : "=r"(out[3]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.min.u32 %0, %1, %2;" : "=r"(out[4]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.max.u32 %0, %1, %2;" : "=r"(out[5]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.and.b32 %0, %1, %2;" : "=r"(out[6]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.or.b32 %0, %1, %2;" : "=r"(out[7]) : "r"(value), "r"(mask));
  asm volatile("redux.sync.xor.b32 %0, %1, %2;" : "=r"(out[8]) : "r"(value), "r"(mask));
}

// in0: member masks.
MICRO_KERNEL(elect) {
  int const lane = int(threadIdx.x);
  unsigned const mask = args.input<unsigned>(0)[lane];
  unsigned leader, is_leader, is_leader_again;
  asm volatile("{ .reg .pred p; elect.sync %0|p, %2; selp.u32 %1, 1, 0, p; }"
               : "=r"(leader), "=r"(is_leader)
               : "r"(mask));
  asm volatile("{ .reg .pred p; elect.sync _|p, %1; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_leader_again)
               : "r"(mask));
  args.output<unsigned>(0)[lane] = leader;
  args.output<unsigned>(1)[lane] = is_leader;
  args.output<unsigned>(2)[lane] = is_leader_again;
}

// Lanes that have exited count no longer, though the masks name them.
MICRO_KERNEL(exited_lanes) {
  unsigned const lane = threadIdx.x;
  if (lane % 3 == 1) {
    return;
  }
  args.output<unsigned>(0)[lane] = __ballot_sync(kAll, lane % 2 == 0);
  args.output<unsigned>(1)[lane] = __reduce_add_sync(kAll, lane);
  args.output<unsigned>(2)[lane] = __match_any_sync(kAll, lane / 8);
}

MICRO_KERNEL(active_mask) {
  if (threadIdx.x % 4 == 3) {
    args.output<unsigned>(0)[threadIdx.x] = __activemask();
  } else {
    args.output<unsigned>(0)[threadIdx.x] = __activemask();
  }
}
