// What all bulk copies have in common, those of ranges and those of tensors.
#pragma once

#include <functional>

#include "bind.h"
#include "machine.h"

namespace hostsim {

inline constexpr uint32_t kBulkAlignment = 16;

// The block whose shared memory a copy by a thread of `home` goes to.
Block& copy_destination(Block const& home, uint32_t address, bool own_block_only, char const* name);

// Checks the mbarrier of a copy into `destination`'s shared memory, where it must lie, too. Returns
// its offset.
uint32_t check_copy_mbarrier(Thread& thread, uint32_t epoch, Block const& destination,
                             uint32_t mbarrier);

// Issues a copy of `thread` into shared memory, which then completes `bytes` bytes of the mbarrier.
void issue_bulk_load(Thread& thread, uint32_t epoch, Block& destination, uint32_t mbarrier_offset,
                     int64_t bytes, std::function<void()> copy);

// Issues a copy out of shared memory as part of the thread's open bulk group: `read` takes the
// bytes away, `write` puts them into global memory.
void issue_bulk_store(Thread& thread, std::function<void()> read, std::function<void()> write);

// The blocks of the cluster that a multicast goes to, by rank.
std::vector<Block*> multicast_destinations(Block const& home, uint32_t mask);

// Reductions, atomic for each element, and operations on mbarriers.
Actor as_atomic(Actor actor);

void add_bulk_copy(BinderTable& table);    // cp.async.bulk: part of add_async_copy()
void add_store_async(BinderTable& table);  // st.async, red.async

}  // namespace hostsim
