// The mbarrier objects in shared memory: arrivals and transaction bytes that complete phases.
//
// The state is kept beside the memory. The eight bytes in shared memory hold a mark, by which an
// mbarrier that a kernel writes over is found out.
#pragma once

#include "machine.h"

namespace hostsim {

inline constexpr uint32_t kMbarrierBytes = 8;
inline constexpr uint32_t kMaxArrivals = (1u << 20) - 1;        // of a phase
inline constexpr int64_t kMaxTransactionBytes = (1 << 20) - 1;  // pending, as an absolute value

void init_mbarrier(Thread& thread, uint32_t address, uint32_t count);
void invalidate_mbarrier(Thread& thread, uint32_t address);

// The mbarrier at a shared address, which must be initialised and intact. `actor`, an atomic one,
// operates on it: a thread, or its asynchronous copies. `what` names the instruction in reports.
MBarrier& find_mbarrier(Actor const& actor, uint32_t address, char const* what);

void expect_bytes(MBarrier& barrier, int64_t bytes, char const* what);
void complete_bytes(MBarrier& barrier, int64_t bytes, char const* what);
void arrive(MBarrier& barrier, uint32_t count, char const* what);

// An asynchronous operation, `what`, has ended which was to complete `bytes`, or one arrival, of the
// mbarrier at `offset`. It may have been invalidated meanwhile.
void complete_bytes_later(Block& block, uint32_t offset, int64_t bytes, SyncClock const& released);
void arrive_later(Block& block, uint32_t offset, SyncClock const& released, char const* what);

// All threads of `block` have left: whatever is still to come would write into memory that is no
// longer theirs, and what has come beyond what was expected was miscounted.
void check_bytes_at_exit(Block const& block);

}  // namespace hostsim
