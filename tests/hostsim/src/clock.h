// Happens-before, for race detection. Every agent of a grid counts its own epochs: each thread, each
// thread's asynchronous copies, each warpgroup's wgmmas. A Clock says up to which epoch of every
// agent its owner has synchronised. Threads that meet at a barrier share one Clock, so a barrier
// costs one merge and not one per thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace hostsim {

struct Thread;

// An agent of a grid: the block (linear index in the grid), then which of the block's.
struct Agent {
  static constexpr uint32_t kNone = ~0u;

  static uint32_t of_warpgroup(int block, int warpgroup) { return make(block, warpgroup); }
  static uint32_t of_thread(int block, int thread) { return make(block, 8 + 3 * thread); }
  // A thread's copies that it waits for by group, and those that an mbarrier announces, are two
  // agents: who has seen one of the latter complete knows nothing of the former.
  static uint32_t of_copies(int block, int thread) { return make(block, 9 + 3 * thread); }
  static uint32_t of_loads(int block, int thread) { return make(block, 10 + 3 * thread); }

  static int block(uint32_t agent) { return int(agent >> 12); }
  static int index(uint32_t agent) { return int(agent & 4095); }
  static bool is_warpgroup(uint32_t agent) { return index(agent) < 8; }
  static bool is_async(uint32_t agent) {
    return !is_warpgroup(agent) && (index(agent) - 8) % 3 != 0;
  }
  static int thread(uint32_t agent) { return (index(agent) - 8) / 3; }  // unless a warpgroup

 private:
  static uint32_t make(int block, int index) { return uint32_t(block) << 12 | uint32_t(index); }
};

// A set of synchronised epochs. A value type; copies share memory until one is changed.
class Clock {
 public:
  uint32_t epoch_of(uint32_t agent) const;
  void raise(uint32_t agent, uint32_t epoch);
  void join(Clock const& other);
  bool same_memory(Clock const& other) const {
    return own_ == other.own_ && others_ == other.others_;
  }

  // Whether griddepcontrol.wait has been executed, by this thread or by one it synchronised with.
  bool saw_predecessor = false;

 private:
  using Epochs = std::vector<uint32_t>;    // of one block, by agent index; short where zeros follow
  using Shared = std::shared_ptr<Epochs>;  // changed in place only while nobody else has it
  using Others = std::map<int, Shared>;

  Shared const* find(int block) const;
  Shared& own(int block);
  void join_block(int block, Shared const& epochs);

  int own_block_ = -1;  // most clocks know one block only
  Shared own_;
  std::shared_ptr<Others> others_;
};

// A thread's view: the shared part and its own agents' epochs, which change too often to share.
struct ThreadClock {
  Clock seen;
  uint32_t epoch = 1;         // of the thread itself
  uint32_t async_issued = 0;  // epoch of its latest asynchronous copy
  uint32_t async_seen = 0;    // up to which of them it has waited
  uint32_t proxy_fence = 0;   // own epoch at the last fence.proxy.async
  Clock proxy_seen;           // `seen` at that fence
  // For fences, by scope (see FenceScope): what relaxed atomic loads have brought that no fence has
  // acquired yet, and what the last fence released.
  Clock pending[2];
  Clock released[2];
};

enum FenceScope : int { kBlockScope, kWideScope };  // .cta; .cluster, .gpu and .sys

// What a barrier, an mbarrier phase or an atomic variable carries from releasers to acquirers. All
// members do nothing unless race detection is on.
class SyncClock {
 public:
  void release(Thread& thread);        // joins the thread's clock, then starts a new epoch of it
  void acquire(Thread& thread) const;  // the thread has now seen everything in here
  void add(uint32_t agent, uint32_t epoch);
  void join(SyncClock const& other) { clock_.join(other.clock_); }
  void join(Clock const& other) { clock_.join(other); }
  Clock const& clock() const { return clock_; }

 private:
  Clock clock_;
  Clock last_;  // what release() joined last: threads of a block mostly share theirs
};

// The epoch of `agent` that `thread` has synchronised with.
uint32_t seen_epoch(Thread const& thread, uint32_t agent);

// The whole of what `thread` has seen, its own agents included.
Clock snapshot(Thread const& thread);

}  // namespace hostsim
