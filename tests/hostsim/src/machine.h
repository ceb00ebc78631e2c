// The simulated GPU: queued grids, resident blocks, warps, and lanes that may diverge.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "async.h"
#include "clock.h"
#include "instruction.h"
#include "memory.h"
#include "program.h"
#include "settings.h"

namespace hostsim {

struct Block;
struct Cluster;
struct Grid;
struct Warp;
class TensorMemory;

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t product() const { return uint64_t(x) * y * z; }
  uint32_t linear(Dim3 size) const { return x + size.x * (y + size.y * z); }  // of a position
};

struct Thread {
  Warp* warp = nullptr;
  int lane = 0;
  int index = 0;  // in the block
  Dim3 id{0, 0, 0};
  char* local = nullptr;  // Kernel::local_bytes of them
  ThreadClock clock;
  AsyncGroups copies;       // cp.async
  AsyncGroups bulk_copies;  // cp.async.bulk with .bulk_group
  uint32_t cluster_arrival =
      0;  // barrier.cluster.arrive without its wait: 1 + Cluster::barrier_phase

  Block& block() const;
  Grid& grid() const;
};

// Lanes of a warp that are at the same instruction. A warp starts as one fragment; fragments split
// where lanes part, and merge where they meet again.
struct Fragment {
  enum class State : uint8_t { kReady, kWaiting, kConverging };
  Lanes lanes = 0;
  int pc = 0;
  State state = State::kReady;
  bool sleeps = false;         // kWaiting: goes on at pc, does not execute the one before again
  bool yielded = false;        // polled without success: others of the warp go first
  char const* waits_for = "";  // for reports of deadlocks
  uint32_t waits_at = 0;       // a shared address, a barrier number, a mask
};

struct Warp {
  Block* block = nullptr;
  int index = 0;  // in the block
  Lanes existing = 0;
  Lanes exited = 0;
  Lanes carry = 0;  // the carry flag CC.CF of add.cc, addc and the like
  std::vector<Row> registers;
  std::array<Thread, kWarpSize> threads;
  std::vector<std::unique_ptr<Fragment>> fragments;
  bool queued = false;  // in the scheduler's list of warps that can run

  // wgmma: groups are the warp's, and complete in order.
  AsyncGroups wgmmas;
  AsyncRef last_wgmma;
  uint32_t wgmmas_committed = 0;  // groups
  bool wgmma_fenced = false;

  // tcgen05: products and commits of the warp's threads run in order, loads until the next wait.
  AsyncRef last_product;
  uint32_t tensor_commits = 0;
  std::vector<AsyncRef> tensor_loads;

  Lanes live() const { return existing & ~exited; }
};

// bar.sync, bar.arrive, bar.red; also the barrier of a cluster.
struct Barrier {
  int arrived = 0;           // threads; a warp counts whole once all its lanes have come
  int expected = -1;         // threads, as the first arrival said
  bool whole_block = false;  // it gave no count, so warps that have exited count as arrived
  uint32_t warps_arrived = 0;
  std::array<Lanes, kWarpSize> lanes_arrived{};  // by warp
  std::vector<std::pair<Warp*, Lanes>> waiting;
  SyncClock clock;
  // bar.red: the predicates of the arrivals so far, and where each of `waiting` wants the result.
  int reduction = -1;
  uint32_t red_count = 0;
  bool red_and = true;
  std::vector<Row*> results;
};

struct MBarrier {
  uint32_t count = 0;         // arrivals in a phase
  uint32_t pending = 0;       // arrivals still to come in this one
  int64_t pending_bytes = 0;  // tx-count
  uint32_t phase = 0;         // completed phases, of which waits see the parity
  std::vector<std::pair<Warp*, Lanes>> waiting;
  SyncClock arriving;                       // what arrivals have released, so far
  SyncClock completed;                      // what completed phases released
  uint32_t init_agent = 0, init_epoch = 0;  // mbarrier.init, which comes before all else
};

struct SharedAllocation {
  std::string name;
  uint32_t offset = 0;
  uint32_t size = 0;
};

struct Block {
  Grid* grid = nullptr;
  Cluster* cluster = nullptr;
  int index = 0;  // in the grid
  int rank = 0;   // in the cluster
  int slot = 0;   // of shared memory
  Dim3 id{0, 0, 0};
  std::vector<std::unique_ptr<Warp>> warps;
  int num_threads = 0;
  int live_threads = 0;
  bool triggered = false;  // griddepcontrol.launch_dependents, by any thread

  std::unique_ptr<char[]> local;      // of all threads
  char* shared = nullptr;             // kSharedBytes of them, poisoned with 0xff
  std::vector<uint8_t> shared_state;  // per byte: 0 no variable here, 1 not written yet, 2 written
  std::vector<SharedAllocation> allocations;
  std::shared_ptr<TensorMemory> tensor_memory;
  std::shared_ptr<Shadow> shadow;
  std::map<uint32_t, uint32_t> remote_users;  // epochs in which other blocks used this memory
  Clock exit_clock;                           // all that the exited threads had seen

  std::array<Barrier, 16> barriers;
  std::unordered_map<uint32_t, MBarrier> mbarriers;  // by offset
  std::array<std::vector<std::pair<Warp*, Lanes>>, 8> waiting_for_warpgroup;

  Thread& thread(int index) const;
};

struct Cluster {
  Grid* grid = nullptr;
  int index = 0;
  std::vector<std::unique_ptr<Block>> blocks;  // by rank; freed together, after the last one's exit
  Barrier barrier;
  uint32_t barrier_phase = 0;
  SyncClock barrier_released;
  int live_blocks = 0;
};

// Memory that atomics synchronise through.
struct SyncVariable {
  SyncClock wide;                  // released with gpu, cluster or system scope
  std::map<int, SyncClock> block;  // released with cta scope, by block
};

struct LaunchConfig {
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared = 0;
  bool overlaps_previous = false;  // programmatic stream serialisation
  bool cooperative = false;
};

// One launch, queued, running or finished.
struct Grid {
  enum class State : uint8_t { kQueued, kRunning, kFinished };
  Kernel const* kernel = nullptr;
  LaunchConfig config;
  std::shared_ptr<char> parameters;  // Kernel::parameter_bytes, aligned for tensor maps
  uint32_t serial = 0;               // since the queue was last empty
  State state = State::kQueued;

  std::vector<uint32_t> clusters_to_start;  // from the back
  std::vector<std::unique_ptr<Cluster>> running;
  int untriggered_blocks = 0;
  Grid* previous = nullptr;
  bool all_waited = true;  // every block that has finished had executed griddepcontrol.wait
  // Grids, by serial, whose memory operations this one's threads have seen: all below the first
  // number before griddepcontrol.wait; after it, those and all in the set.
  uint32_t saw_before_wait = 0;
  std::set<uint32_t> saw_after_wait;
  std::vector<std::pair<Warp*, Lanes>> waiting_for_previous;

  std::unordered_map<uint64_t, SyncVariable> sync_variables;
  std::map<Buffer*, BufferTraffic> traffic;
  SharedTraffic shared_traffic;
  uint64_t warp_instructions = 0;
  uint64_t matrix_instructions = 0;  // mma and wgmma, per warp; tcgen05.mma

  int num_threads() const { return int(config.grid.product() * config.block.product()); }
};

// What is left of a finished launch, for tests and benchmarks.
struct LaunchRecord {
  std::string kernel;
  LaunchConfig config;
  uint32_t static_shared = 0;
  uint64_t warp_instructions = 0;
  uint64_t matrix_instructions = 0;
  SharedTraffic shared_traffic;
  std::map<std::string, BufferTraffic> traffic;  // by buffer name
};

// The context of one instruction of one fragment.
struct Execution {
  Warp& warp;
  Fragment* fragment;
  Row* registers;

  Block& block() const { return *warp.block; }
  Grid& grid() const { return *warp.block->grid; }
  Thread& thread(int lane) const { return warp.threads[size_t(lane)]; }

  Row const& in(Operand const& o) const { return registers[o.row]; }
  Row& out(Operand const& o) const { return o.row < 0 ? sink() : registers[o.row]; }
  bool predicate(Operand const& o, int lane) const {
    return (registers[o.row][lane] != 0) != o.negated;
  }
  uint64_t address(Operand const& memory, int lane) const {
    return registers[memory.row][lane] + uint64_t(memory.offset);
  }

  // Says what the lanes will wait for, then: return x.sleep(...) or x.retry(...).
  Flow sleep(char const* what, uint32_t at = 0) const;
  Flow retry(char const* what, uint32_t at = 0) const;
  Flow yield() const;
  // True if all live lanes of `wanted` are in this fragment. If not, return Flow::kConverge. Lanes
  // of `wanted` that have exited are an error.
  bool converged(Lanes wanted) const;
  // Moves `lanes` out of the current fragment into a new one, ready at `pc`.
  Fragment& split(Lanes lanes, int pc) const;

 private:
  static Row& sink();
};

struct Machine {
  Settings settings;
  std::mt19937_64 random;
  std::deque<std::unique_ptr<Grid>> queue;  // in stream order; the front ones may be running
  std::vector<LaunchRecord> records;
  bool racing = false;             // settings.race_detection, while grids run
  Execution const* now = nullptr;  // whose instruction is running
  Instruction const* instruction = nullptr;
  Thread const* subject = nullptr;  // whose access is being checked, for reports
  uint64_t progress = 0;            // rises with every event that others could be waiting for

  bool chance(int one_in) { return random() % uint64_t(one_in) == 0; }
};

inline Machine& machine() {
  static Machine m;
  return m;
}

std::string describe_lanes(Lanes lanes);  // "0-3,7"
inline Lanes nonzero_lanes(Row const& row) {
  Lanes lanes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    lanes |= Lanes(row[lane] != 0) << lane;
  }
  return lanes;
}

// Appends a launch to the queue. Reports and returns false where no GPU would take it.
bool enqueue(Kernel const& kernel, LaunchConfig const& config, std::vector<char> parameters);
// Runs everything queued. False if a kernel faulted; the rest of the queue is dropped then.
bool synchronize();

// Lanes of `warp` that sleep or retry may go on.
void wake(Warp& warp, Lanes lanes);
void wake_all(std::vector<std::pair<Warp*, Lanes>>& waiting);  // and empties the list

inline Block& Thread::block() const { return *warp->block; }
inline Grid& Thread::grid() const { return *warp->block->grid; }
inline Thread& Block::thread(int i) const {
  return warps[size_t(i / kWarpSize)]->threads[size_t(i % kWarpSize)];
}

}  // namespace hostsim
