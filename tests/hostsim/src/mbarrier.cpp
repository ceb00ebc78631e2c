#include "mbarrier.h"

#include <cstdlib>
#include <cstring>

namespace hostsim {
namespace {

constexpr uint64_t kMark = 0x726569727261626d;

void check_alignment(uint32_t address, char const* what) {
  if (address % kMbarrierBytes != 0) {
    fault("align", "%s: shared address 0x%x, an mbarrier is aligned to 8 bytes", what, address);
  }
}

// Completes the phase once its arrivals and its bytes are there, and no more of either.
void complete_phase_if_done(MBarrier& barrier) {
  if (barrier.pending != 0 || barrier.pending_bytes != 0) {
    return;
  }
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.completed.join(barrier.arriving);
  ++machine().progress;
  wake_all(barrier.waiting);
}

void add_bytes(MBarrier& barrier, int64_t bytes, char const* what) {
  barrier.pending_bytes += bytes;
  if (std::abs(barrier.pending_bytes) > kMaxTransactionBytes) {
    report("mbarrier", "%s: the tx-count is %lld bytes now, its range is +-%lld", what,
           (long long)barrier.pending_bytes, (long long)kMaxTransactionBytes);
  }
}

// nullptr, and a report, if it is not there any more.
MBarrier* still_valid(Block& block, uint32_t offset) {
  auto const it = block.mbarriers.find(offset);
  if (it == block.mbarriers.end()) {
    report("mbarrier",
           "an asynchronous operation ends at the mbarrier at shared offset %u of block %d, which "
           "has been invalidated meanwhile",
           offset, block.index);
    return nullptr;
  }
  return &it->second;
}

}  // namespace

void init_mbarrier(Thread& thread, uint32_t address, uint32_t count) {
  check_alignment(address, "mbarrier.init");
  char* const bytes = touch_shared(plain_actor(thread), address, kMbarrierBytes, Access::kWrite,
                                   "mbarrier.init", false);
  if (count == 0 || count > kMaxArrivals) {
    fault("mbarrier", "mbarrier.init: a count of %u arrivals, the range is 1 to %u", count,
          kMaxArrivals);
  }
  MBarrier& barrier = thread.block().mbarriers[shared_offset(address)];
  if (barrier.count != 0) {
    report("mbarrier", "mbarrier.init of an mbarrier that has not been invalidated since its last");
  }
  barrier = {};
  barrier.count = barrier.pending = count;
  barrier.init_agent = Agent::of_thread(thread.block().index, thread.index);
  barrier.init_epoch = thread.clock.epoch;
  std::memcpy(bytes, &kMark, sizeof kMark);
}

void invalidate_mbarrier(Thread& thread, uint32_t address) {
  MBarrier& barrier = find_mbarrier(atomic_actor(thread), address, "mbarrier.inval");
  char* const bytes = touch_shared(plain_actor(thread), address, kMbarrierBytes, Access::kWrite,
                                   "mbarrier.inval", false);
  if (!barrier.waiting.empty() || barrier.pending_bytes != 0) {
    report("mbarrier", "mbarrier.inval while threads wait there or %lld bytes are pending",
           (long long)barrier.pending_bytes);
  }
  wake_all(barrier.waiting);
  std::memset(bytes, 0xff, kMbarrierBytes);
  thread.block().mbarriers.erase(shared_offset(address));
}

MBarrier& find_mbarrier(Actor const& actor, uint32_t address, char const* what) {
  check_alignment(address, what);
  Block* const block = shared_owner(address);
  uint32_t const offset = shared_offset(address);
  if (block != nullptr && !block->mbarriers.contains(offset)) {
    fault("mbarrier", "%s: shared offset %u of block %d holds no initialised mbarrier", what,
          offset, block->index);
  }
  // Operations on an mbarrier do not race with each other, but with inval and plain accesses.
  char const* const bytes = touch_shared(actor, address, kMbarrierBytes, Access::kReadWrite, what);
  if (std::memcmp(bytes, &kMark, sizeof kMark) != 0) {
    fault("mbarrier", "%s: the mbarrier at shared offset %u has been written over", what, offset);
  }
  MBarrier& barrier = block->mbarriers.at(offset);
  if (machine().racing && seen_epoch(*actor.thread, barrier.init_agent) < barrier.init_epoch) {
    report("race", "%s: not ordered after mbarrier.init by thread %d of block %d", what,
           Agent::thread(barrier.init_agent), block->index);
  }
  return barrier;
}

void expect_bytes(MBarrier& barrier, int64_t bytes, char const* what) {
  add_bytes(barrier, bytes, what);
  complete_phase_if_done(barrier);  // where the bytes came before they were announced
}

void complete_bytes(MBarrier& barrier, int64_t bytes, char const* what) {
  add_bytes(barrier, -bytes, what);
  complete_phase_if_done(barrier);
}

void arrive(MBarrier& barrier, uint32_t count, char const* what) {
  if (count > barrier.pending) {
    report("mbarrier", "%s: %u arrivals, but only %u of the phase's %u are still to come", what,
           count, barrier.pending, barrier.count);
    count = barrier.pending;
  }
  barrier.pending -= count;
  complete_phase_if_done(barrier);
}

void complete_bytes_later(Block& block, uint32_t offset, int64_t bytes, SyncClock const& released) {
  if (block.live_threads == 0) {
    report("mbarrier",
           "%lld bytes come to the mbarrier at shared offset %u of block %d, which has exited",
           (long long)bytes, offset, block.index);
  }
  if (MBarrier* const barrier = still_valid(block, offset); barrier != nullptr) {
    barrier->arriving.join(released);
    complete_bytes(*barrier, bytes, "an asynchronous copy");
  }
}

void check_bytes_at_exit(Block const& block) {
  for (auto const& [offset, barrier] : block.mbarriers) {
    if (barrier.pending_bytes > 0) {
      report("mbarrier",
             "block %d exits while the mbarrier at shared offset %u waits for %lld more bytes",
             block.index, offset, (long long)barrier.pending_bytes);
    } else if (barrier.pending_bytes < 0) {
      report("mbarrier",
             "block %d exits when %lld bytes have come to the mbarrier at shared offset %u that "
             "nobody had expected",
             block.index, -(long long)barrier.pending_bytes, offset);
    }
  }
}

void arrive_later(Block& block, uint32_t offset, SyncClock const& released, char const* what) {
  if (MBarrier* const barrier = still_valid(block, offset); barrier != nullptr) {
    barrier->arriving.join(released);
    arrive(*barrier, 1, what);
  }
}

}  // namespace hostsim
