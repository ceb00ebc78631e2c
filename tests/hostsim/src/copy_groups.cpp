#include "copy_groups.h"

#include <algorithm>

namespace hostsim {
namespace {

void complete_all(std::vector<AsyncRef> const& ops) {
  for (AsyncRef const& op : ops) {
    complete(op);
  }
}

void see_copies(Thread& thread, uint32_t epoch) {
  thread.clock.async_seen = std::max(thread.clock.async_seen, epoch);
}

}  // namespace

// ---- cp.async -----------------------------------------------------------------------------------

uint32_t open_copy_epoch(Thread const& thread) { return thread.clock.async_issued + 1; }

void add_copy(Thread& thread, AsyncRef const& copy) {
  if (!copy->done()) {
    thread.copies.open.push_back(copy);
  }
}

void commit_copies(Thread& thread) {
  AsyncGroup group;
  group.ops = std::exchange(thread.copies.open, {});
  group.epoch = ++thread.clock.async_issued;
  thread.copies.committed.push_back(std::move(group));
}

void wait_for_copies(Thread& thread, size_t keep) {
  auto& groups = thread.copies.committed;
  for (; groups.size() > keep; groups.pop_front()) {
    complete_all(groups.front().ops);
    see_copies(thread, groups.front().epoch);
  }
}

// ---- Bulk copies --------------------------------------------------------------------------------

BulkEpochs open_bulk_epochs(Thread const& thread) {
  return {thread.clock.async_issued + 1, thread.clock.async_issued + 2};
}

void add_bulk_copy(Thread& thread, AsyncRef const& read, AsyncRef const& write) {
  thread.bulk_copies.open_reads.push_back(read);
  thread.bulk_copies.open.push_back(write);
}

void commit_bulk_copies(Thread& thread) {
  AsyncGroup group;
  group.ops = std::exchange(thread.bulk_copies.open, {});
  group.reads = std::exchange(thread.bulk_copies.open_reads, {});
  group.reads_epoch = ++thread.clock.async_issued;
  group.epoch = ++thread.clock.async_issued;
  thread.bulk_copies.committed.push_back(std::move(group));
}

void wait_for_bulk_reads(Thread& thread, size_t keep) {
  AsyncGroups& groups = thread.bulk_copies;
  for (; groups.committed.size() > keep; groups.committed.pop_front()) {
    AsyncGroup& oldest = groups.committed.front();
    complete_all(oldest.reads);
    see_copies(thread, oldest.reads_epoch);
    groups.read.push_back(std::move(oldest));
  }
}

void wait_for_bulk_copies(Thread& thread, size_t keep) {
  AsyncGroups& groups = thread.bulk_copies;
  wait_for_bulk_reads(thread, keep);
  size_t const younger = groups.committed.size();  // at most `keep`
  size_t const num_done = groups.read.size() - std::min(groups.read.size(), keep - younger);
  for (size_t i = 0; i < num_done; ++i) {
    complete_all(groups.read[i].ops);
    see_copies(thread, groups.read[i].epoch);
  }
  groups.read.erase(groups.read.begin(), groups.read.begin() + std::ptrdiff_t(num_done));
}

}  // namespace hostsim
