// barrier.cluster, and the addresses of other blocks' shared memory: mapa, getctarank.

#include "ops_barrier.h"

namespace hostsim {
namespace {

// ---- barrier.cluster ----------------------------------------------------------------------------

struct ClusterBarrierDetail : Detail {
  bool releases = true;
};

bool has_arrived(Cluster const& cluster, Thread const& thread) {
  return thread.cluster_arrival == cluster.barrier_phase + 1;
}

int live_threads(Cluster const& cluster) {
  int count = 0;
  for (auto const& block : cluster.blocks) {
    count += block->live_threads;
  }
  return count;
}

void complete_if_all_arrived(Cluster& cluster) {
  Barrier& barrier = cluster.barrier;
  if (barrier.arrived == 0 || barrier.arrived < live_threads(cluster)) {
    return;
  }
  cluster.barrier_released = std::exchange(barrier.clock, {});
  barrier.arrived = 0;
  ++cluster.barrier_phase;
  ++machine().progress;
  wake_all(barrier.waiting);
}

Flow run_cluster_arrive(Execution& x, Instruction const& in, Lanes lanes) {
  Cluster& cluster = *x.block().cluster;
  bool const releases = in.as<ClusterBarrierDetail>().releases;
  for_each_lane(lanes, [&](int lane) {
    Thread& thread = x.thread(lane);
    if (thread.cluster_arrival != 0) {
      fault("cluster", "lane %d executes barrier.cluster.arrive again without a wait between",
            lane);
    }
    thread.cluster_arrival = cluster.barrier_phase + 1;
    ++cluster.barrier.arrived;
    if (releases) {
      cluster.barrier.clock.release(thread);
    } else {  // passes on what the thread's last fence released
      cluster.barrier.clock.join(thread.clock.released[kWideScope]);
    }
  });
  complete_if_all_arrived(cluster);
  return Flow::kNext;
}

Flow run_aligned_cluster_arrive(Execution& x, Instruction const& in, Lanes lanes) {
  return x.converged(x.warp.live()) ? run_cluster_arrive(x, in, lanes) : Flow::kConverge;
}

Flow run_cluster_wait(Execution& x, Instruction const&, Lanes lanes) {
  Cluster& cluster = *x.block().cluster;
  Lanes pending = 0;
  for_each_lane(lanes, [&](int lane) {
    Thread const& thread = x.thread(lane);
    if (thread.cluster_arrival == 0) {
      fault("cluster", "lane %d waits at barrier.cluster, where it has not arrived", lane);
    }
    pending |= Lanes(has_arrived(cluster, thread)) << lane;
  });
  if (pending == lanes) {
    cluster.barrier.waiting.emplace_back(&x.warp, lanes);
    return x.retry("barrier.cluster");
  }
  if (pending != 0) {
    x.split(pending, x.fragment->pc);
  }
  for_each_lane(lanes & ~pending, [&](int lane) {
    Thread& thread = x.thread(lane);
    thread.cluster_arrival = 0;
    cluster.barrier_released.acquire(thread);
  });
  return Flow::kNext;
}

Flow run_aligned_cluster_wait(Execution& x, Instruction const& in, Lanes lanes) {
  return x.converged(x.warp.live()) ? run_cluster_wait(x, in, lanes) : Flow::kConverge;
}

void bind_cluster_barrier(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<ClusterBarrierDetail>();
  modifiers.take("cluster");
  bool const arrives = modifiers.take_one({"arrive", "wait"}) == 0;
  bool const aligned = modifiers.take("aligned");
  if (arrives) {
    detail->releases = modifiers.take_any({"release", "relaxed"}) != 1;
    in.run = aligned ? run_aligned_cluster_arrive : run_cluster_arrive;
  } else {
    modifiers.take("acquire");
    in.run = aligned ? run_aligned_cluster_wait : run_cluster_wait;
  }
  modifiers.finish();
  in.splits = true;
  in.detail = std::move(detail);
}

// ---- mapa, getctarank ---------------------------------------------------------------------------

Block& block_of_rank(Block const& home, uint32_t rank) {
  auto const& blocks = home.cluster->blocks;
  if (rank >= blocks.size()) {
    fault("cluster", "mapa: the cluster has %zu blocks, there is none of rank %u", blocks.size(),
          rank);
  }
  return *blocks[rank];
}

Block& owner_in_cluster(Block const& home, uint32_t address, char const* what) {
  Block* const owner = shared_owner(address);
  if (owner == nullptr || owner->cluster != home.cluster) {
    fault("cluster", "%s: 0x%x is no shared address of the cluster", what, address);
  }
  return *owner;
}

template <bool generic>
uint32_t shared_operand(uint64_t address) {
  return generic ? to_shared(address) : uint32_t(address);
}

template <bool generic>
Flow run_mapa(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& addresses = x.in(in.operands[1]);
  Row const& ranks = x.in(in.operands[2]);
  Row& results = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    uint32_t const address = shared_operand<generic>(addresses[lane]);
    owner_in_cluster(x.block(), address, "mapa");
    uint32_t const mapped =
        shared_address_of(block_of_rank(x.block(), uint32_t(ranks[lane])), shared_offset(address));
    results[lane] = generic ? to_generic(mapped) : mapped;
  });
  return Flow::kNext;
}

template <bool generic>
Flow run_getctarank(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& addresses = x.in(in.operands[1]);
  Row& results = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    uint32_t const address = shared_operand<generic>(addresses[lane]);
    results[lane] = uint32_t(owner_in_cluster(x.block(), address, "getctarank").rank);
  });
  return Flow::kNext;
}

// True where the addresses are generic ones.
bool take_space_and_type(Instruction const& in) {
  Modifiers modifiers(in);
  bool const generic = !modifiers.take("shared::cluster");
  modifiers.take_one({"u32", "u64"});
  modifiers.finish();
  return generic;
}

void bind_mapa(Instruction& in) {
  in.run = take_space_and_type(in) ? run_mapa<true> : run_mapa<false>;
}

void bind_getctarank(Instruction& in) {
  in.run = take_space_and_type(in) ? run_getctarank<true> : run_getctarank<false>;
}

}  // namespace

void cluster_threads_exited(Cluster& cluster) {
  Barrier& barrier = cluster.barrier;
  if (barrier.arrived == 0) {
    return;
  }
  // Who has arrived and left is no longer waited for.
  barrier.arrived = 0;
  for (auto const& block : cluster.blocks) {
    for (auto const& warp : block->warps) {
      for_each_lane(warp->live(), [&](int lane) {
        barrier.arrived += has_arrived(cluster, warp->threads[size_t(lane)]);
      });
    }
  }
  complete_if_all_arrived(cluster);
}

void add_cluster(BinderTable& table) {
  table["barrier.cluster"] = bind_cluster_barrier;
  table["mapa"] = bind_mapa;
  table["getctarank"] = bind_getctarank;
}

}  // namespace hostsim
