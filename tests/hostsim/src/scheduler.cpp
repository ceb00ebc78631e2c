// Runs what is queued: starts blocks, picks warps and fragments, and notices when nothing can go on.

#include <algorithm>
#include <bit>
#include <limits>

#include "launch.h"
#include "machine.h"
#include "ops_barrier.h"
#include "stuck.h"
#include "traffic.h"

namespace hostsim {
namespace {

class Scheduler {
 public:
  bool run_queue();
  void make_ready(Warp& warp);
  void make_ready_last(Warp& warp);

 private:
  enum class Outcome { kBlocked, kYielded, kPreempted, kWarpGone };

  void start_blocks();
  bool may_begin(size_t index) const;
  void finish_grids();
  Warp* next_warp();
  void run_warp(Warp& warp);
  void reconverge(Warp& warp);
  Fragment* choose_fragment(Warp& warp);
  Outcome run_fragment(Warp& warp, Fragment& fragment, int64_t budget);
  Outcome leave(Warp& warp, Fragment& fragment, Lanes lanes);
  bool unstick();
  void check_progress();

  std::deque<Warp*> ready_;
  int resident_threads_ = 0;
  int resident_blocks_ = 0;
  size_t first_unfinished_ = 0;   // in the queue
  uint64_t instructions_ = 0;     // executed, of all warps
  uint64_t seen_progress_ = 0;    // Machine::progress when it last rose
  uint64_t progress_at_ = 0;      // instructions_ then
  uint64_t fruitless_turns_ = 0;  // polls since anything happened
};

Scheduler& scheduler() {
  static Scheduler s;
  return s;
}

// ---- Blocks ---------------------------------------------------------------------------------------

// A grid begins when everything before it has finished; with programmatic stream serialisation, when
// all blocks of the one before have triggered or left.
bool Scheduler::may_begin(size_t index) const {
  auto const& queue = machine().queue;
  Grid const& grid = *queue[index];
  if (grid.previous != nullptr && grid.previous->state == Grid::State::kRunning) {
    return grid.previous->untriggered_blocks == 0;
  }
  return index == first_unfinished_;
}

void Scheduler::start_blocks() {
  Machine& m = machine();
  for (size_t i = first_unfinished_; i < m.queue.size(); ++i) {
    Grid& grid = *m.queue[i];
    if (grid.state == Grid::State::kQueued) {
      if (!may_begin(i)) {
        return;
      }
      begin_grid(grid);
    }
    int const cluster_blocks = int(grid.config.cluster.product());
    int const cluster_threads = cluster_blocks * int(grid.config.block.product());
    int const limit = grid.config.cooperative ? std::numeric_limits<int>::max()
                      : m.racing ? std::max(m.settings.resident_threads, kRaceResidentThreads)
                                 : m.settings.resident_threads;
    while (!grid.clusters_to_start.empty()) {
      bool const fits = resident_threads_ + cluster_threads <= limit &&
                        resident_blocks_ + cluster_blocks <= kMaxSlots;
      if (!fits && resident_threads_ > 0) {
        return;
      }
      Cluster& cluster = start_cluster(grid);
      for (auto const& block : cluster.blocks) {
        ++resident_blocks_;
        resident_threads_ += block->num_threads;
        for (auto const& warp : block->warps) {
          make_ready(*warp);
        }
      }
    }
  }
}

void Scheduler::finish_grids() {
  auto const& queue = machine().queue;
  for (size_t i = first_unfinished_; i < queue.size(); ++i) {
    Grid& grid = *queue[i];
    if (grid.state == Grid::State::kQueued) {
      break;
    }
    if (grid.state == Grid::State::kRunning && grid.running.empty() &&
        grid.clusters_to_start.empty()) {
      finish_grid(grid);
      ++machine().progress;
      if (i + 1 < queue.size()) {
        wake_all(queue[i + 1]->waiting_for_previous);
      }
    }
  }
  while (first_unfinished_ < queue.size() &&
         queue[first_unfinished_]->state == Grid::State::kFinished) {
    ++first_unfinished_;
  }
}

// ---- Choosing what runs ---------------------------------------------------------------------------

void Scheduler::make_ready(Warp& warp) {
  if (!warp.queued) {
    warp.queued = true;
    ready_.push_back(&warp);
  }
}

// A warp that polls goes to where it is chosen last, or it would keep what it polls for from coming.
void Scheduler::make_ready_last(Warp& warp) {
  make_ready(warp);
  if (machine().settings.order == Order::kReverse && ready_.back() == &warp) {
    ready_.pop_back();
    ready_.push_front(&warp);
  }
}

Warp* Scheduler::next_warp() {
  if (ready_.empty()) {
    return nullptr;
  }
  Machine& m = machine();
  if (m.settings.order == Order::kRandom) {
    std::swap(ready_.back(), ready_[m.random() % ready_.size()]);
  }
  bool const in_order = m.settings.order == Order::kInOrder;
  Warp* const warp = in_order ? ready_.front() : ready_.back();
  in_order ? ready_.pop_front() : ready_.pop_back();
  warp->queued = false;
  return warp;
}

// Merges fragments that have come to the same instruction. In random order lanes that could run
// together sometimes do not, as the programming model allows.
void Scheduler::reconverge(Warp& warp) {
  Machine& m = machine();
  auto& fragments = warp.fragments;
  for (size_t i = 0; i < fragments.size(); ++i) {
    Fragment& into = *fragments[i];
    if (into.state == Fragment::State::kWaiting) {
      continue;
    }
    for (size_t k = i + 1; k < fragments.size();) {
      Fragment const& other = *fragments[k];
      bool const meets = other.state != Fragment::State::kWaiting && other.pc == into.pc;
      bool const must =
          other.state == Fragment::State::kConverging && into.state == Fragment::State::kConverging;
      if (!meets || (!must && m.settings.order == Order::kRandom && !m.chance(4))) {
        ++k;
        continue;
      }
      into.lanes |= other.lanes;
      into.state = Fragment::State::kReady;
      into.yielded = false;
      fragments.erase(fragments.begin() + std::ptrdiff_t(k));
    }
  }
}

// The lowest pc lets the others catch up, so that loops and branches reconverge.
Fragment* Scheduler::choose_fragment(Warp& warp) {
  if (warp.fragments.size() == 1) {
    Fragment& only = *warp.fragments[0];
    return only.state == Fragment::State::kReady ? &only : nullptr;
  }
  reconverge(warp);
  std::vector<Fragment*> candidates;
  for (bool const yielded : {false, true}) {
    for (auto const& fragment : warp.fragments) {
      if (fragment->state == Fragment::State::kReady && fragment->yielded == yielded) {
        candidates.push_back(fragment.get());
      }
    }
    if (!candidates.empty()) {
      break;
    }
  }
  if (candidates.empty()) {
    return nullptr;
  }
  Machine& m = machine();
  auto const by_pc = [](Fragment* a, Fragment* b) { return a->pc < b->pc; };
  switch (m.settings.order) {
    case Order::kInOrder: return *std::min_element(candidates.begin(), candidates.end(), by_pc);
    case Order::kReverse: return *std::max_element(candidates.begin(), candidates.end(), by_pc);
    case Order::kRandom: return candidates[m.random() % candidates.size()];
  }
  return nullptr;
}

// ---- Running ----------------------------------------------------------------------------------------

void Scheduler::run_warp(Warp& warp) {
  Machine& m = machine();
  bool const random = m.settings.order == Order::kRandom;
  for (;;) {
    Fragment* fragment = choose_fragment(warp);
    if (fragment == nullptr) {
      return;
    }
    if (random && m.chance(16) && std::popcount(fragment->lanes) > 1) {
      if (Lanes const some = fragment->lanes & Lanes(m.random());
          some != 0 && some != fragment->lanes) {
        Execution const x{warp, fragment, warp.registers.data()};
        x.split(some, fragment->pc);
      }
    }
    int64_t const budget = random ? 1 + int64_t(m.random() % 48) : 1 << 20;
    Outcome const outcome = run_fragment(warp, *fragment, budget);
    m.now = nullptr;
    m.instruction = nullptr;
    if (outcome == Outcome::kWarpGone) {
      return;
    }
    if (outcome == Outcome::kYielded || (outcome == Outcome::kPreempted && random)) {
      make_ready_last(warp);
      return;
    }
    check_progress();
  }
}

Scheduler::Outcome Scheduler::run_fragment(Warp& warp, Fragment& fragment, int64_t budget) {
  Machine& m = machine();
  Grid& grid = *warp.block->grid;
  Instruction const* const code = grid.kernel->code.data();
  Execution x{warp, &fragment, warp.registers.data()};
  m.now = &x;
  fragment.yielded = false;
  for (; budget > 0; --budget) {
    Instruction const& in = code[fragment.pc];
    Lanes lanes = fragment.lanes;
    if (in.guard >= 0) {
      lanes &= nonzero_lanes(x.registers[in.guard]) ^ (in.guard_negated ? kAllLanes : 0);
    }
    Flow flow = Flow::kNext;
    if (lanes != 0) {
      if (in.splits && lanes != fragment.lanes) {
        x.split(fragment.lanes & ~lanes, fragment.pc + 1);
      }
      m.instruction = &in;
      m.subject = nullptr;
      flow = in.run(x, in, lanes);
      ++grid.warp_instructions;
      ++instructions_;
      count_requests(grid);
    }
    switch (flow) {
      case Flow::kNext: ++fragment.pc; break;
      case Flow::kJumped: break;
      case Flow::kSleep: ++fragment.pc; return Outcome::kBlocked;
      case Flow::kRetry: return Outcome::kBlocked;
      case Flow::kConverge: fragment.state = Fragment::State::kConverging; return Outcome::kBlocked;
      case Flow::kYield:
        ++fragment.pc;
        fragment.yielded = true;
        ++fruitless_turns_;
        return Outcome::kYielded;
      case Flow::kExit:
        if (Outcome const gone = leave(warp, fragment, lanes); gone != Outcome::kPreempted) {
          return gone;
        }
        break;
    }
    if (warp.fragments.size() > 1 && code[fragment.pc].is_target) {
      return Outcome::kBlocked;  // another fragment may have been waiting for this one here
    }
    if (m.settings.async_timing == AsyncTiming::kRandom && m.chance(64)) {
      complete_any_pending();
    }
  }
  return Outcome::kPreempted;
}

// What a thread leaves behind must not be waited for by anyone.
void check_exit(Warp& warp, Thread& thread) {
  machine().subject = &thread;
  if (!thread.bulk_copies.open.empty() || !thread.bulk_copies.committed.empty()) {
    report("async", "a thread exits without waiting for its bulk copies out of shared memory");
  }
  if (!warp.wgmmas.open.empty() || !warp.wgmmas.committed.empty()) {
    report("async", "a thread exits without waiting for its wgmma groups");
  }
}

Scheduler::Outcome Scheduler::leave(Warp& warp, Fragment& fragment, Lanes lanes) {
  Machine& m = machine();
  Block& block = *warp.block;
  for_each_lane(lanes, [&](int lane) {
    Thread& thread = warp.threads[size_t(lane)];
    check_exit(warp, thread);
    if (m.racing) {
      block.exit_clock.join(snapshot(thread));
    }
  });
  warp.exited |= lanes;
  fragment.lanes &= ~lanes;
  block.live_threads -= std::popcount(lanes);
  ++m.progress;
  Outcome outcome = Outcome::kPreempted;  // other lanes of the fragment go on
  if (fragment.lanes == 0) {
    std::erase_if(warp.fragments, [&](auto const& f) { return f.get() == &fragment; });
    outcome = Outcome::kBlocked;
  } else {
    ++fragment.pc;
  }
  // Collectives that waited for these lanes must look again.
  for (auto const& other : warp.fragments) {
    if (other->state == Fragment::State::kConverging) {
      other->state = Fragment::State::kReady;
    }
  }
  threads_exited(block);
  if (block.live_threads > 0) {
    return warp.live() == 0 ? Outcome::kWarpGone : outcome;
  }
  for (auto const& gone : block.warps) {
    if (gone->queued) {
      std::erase(ready_, gone.get());
    }
  }
  --resident_blocks_;
  resident_threads_ -= block.num_threads;
  finish_block(block);
  return Outcome::kWarpGone;
}

// ---- When nothing goes on ---------------------------------------------------------------------------

// Pollers may wait for an operation that runs as late as it can, so it must run at some time.
bool Scheduler::unstick() {
  bool any = false;
  while (complete_any_pending()) {
    any = true;
  }
  return any;
}

void Scheduler::check_progress() {
  Machine& m = machine();
  if (m.progress != seen_progress_) {
    seen_progress_ = m.progress;
    progress_at_ = instructions_;
    fruitless_turns_ = 0;
    return;
  }
  if (fruitless_turns_ > 8 * (ready_.size() + 1) && unstick()) {
    fruitless_turns_ = 0;
  }
  if (int64_t(instructions_ - progress_at_) > m.settings.livelock_instructions) {
    report_stuck("livelock", "threads run without getting anywhere");
  }
}

bool Scheduler::run_queue() {
  Machine& m = machine();
  ready_.clear();
  resident_threads_ = resident_blocks_ = 0;
  first_unfinished_ = 0;
  seen_progress_ = progress_at_ = instructions_ = fruitless_turns_ = 0;
  m.progress = 1;
  m.random.seed(m.settings.seed);
  m.racing = m.settings.race_detection;
  try {
    for (;;) {
      start_blocks();
      Warp* const warp = next_warp();
      if (warp != nullptr) {
        run_warp(*warp);
        check_progress();
        finish_grids();
      } else if (!complete_any_pending()) {
        finish_grids();
        if (first_unfinished_ == m.queue.size()) {
          return true;
        }
        if (ready_.empty() && resident_threads_ > 0) {
          report_stuck("deadlock", "no thread can go on");
        }
      }
    }
  } catch (KernelFault const&) {
    return false;
  }
}

}  // namespace

void wake(Warp& warp, Lanes lanes) {
  ++machine().progress;
  for (auto const& fragment : warp.fragments) {
    if ((fragment->lanes & lanes) != 0 && fragment->state == Fragment::State::kWaiting) {
      fragment->state = Fragment::State::kReady;
      scheduler().make_ready(warp);
    }
  }
}

void wake_all(std::vector<std::pair<Warp*, Lanes>>& waiting) {
  auto const list = std::move(waiting);
  waiting.clear();
  for (auto const& [warp, lanes] : list) {
    wake(*warp, lanes);
  }
}

bool synchronize() {
  Machine& m = machine();
  bool const ok = scheduler().run_queue();
  if (!ok) {
    drop_pending();
    drop_requests();
    for (auto const& grid : m.queue) {
      for (auto const& cluster : grid->running) {
        for (auto const& block : cluster->blocks) {
          detach_shared(*block);
        }
      }
    }
  }
  m.now = nullptr;
  m.instruction = nullptr;
  m.subject = nullptr;
  m.racing = false;
  m.queue.clear();
  forget_global_accesses();
  return ok;
}

}  // namespace hostsim
