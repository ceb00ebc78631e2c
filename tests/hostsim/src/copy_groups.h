// The groups in which a thread commits its asynchronous copies, and waits for them: those of
// cp.async, and those of bulk copies out of shared memory.
//
// For race detection a copy has the epoch that its group will have at the commit, so that one
// number covers the whole group. The reads of bulk copies, which end earlier, have the one before.
#pragma once

#include "machine.h"

namespace hostsim {

uint32_t open_copy_epoch(Thread const& thread);  // of the cp.async not yet committed
void add_copy(Thread& thread, AsyncRef const& copy);
void commit_copies(Thread& thread);
void wait_for_copies(Thread& thread, size_t keep);  // for all groups but the latest `keep`

struct BulkEpochs {
  uint32_t read;
  uint32_t write;
};
BulkEpochs open_bulk_epochs(Thread const& thread);
// A bulk copy in two steps: `read` takes the bytes out of shared memory, `write` needs that done.
void add_bulk_copy(Thread& thread, AsyncRef const& read, AsyncRef const& write);
void commit_bulk_copies(Thread& thread);
void wait_for_bulk_copies(Thread& thread, size_t keep);
void wait_for_bulk_reads(Thread& thread, size_t keep);

}  // namespace hostsim
