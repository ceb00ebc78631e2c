#include "clock.h"

#include <algorithm>

#include "machine.h"

namespace hostsim {

Clock::Shared const* Clock::find(int block) const {
  if (block == own_block_) {
    return &own_;
  }
  if (others_ != nullptr) {
    if (auto const it = others_->find(block); it != others_->end()) {
      return &it->second;
    }
  }
  return nullptr;
}

Clock::Shared& Clock::own(int block) {
  if (own_block_ < 0) {
    own_block_ = block;
  }
  if (block == own_block_) {
    return own_;
  }
  if (others_ == nullptr) {
    others_ = std::make_shared<Others>();
  } else if (others_.use_count() > 1) {
    others_ = std::make_shared<Others>(*others_);
  }
  return (*others_)[block];
}

uint32_t Clock::epoch_of(uint32_t agent) const {
  Shared const* epochs = find(Agent::block(agent));
  auto const index = size_t(Agent::index(agent));
  return epochs != nullptr && *epochs != nullptr && index < (*epochs)->size() ? (**epochs)[index]
                                                                              : 0;
}

void Clock::raise(uint32_t agent, uint32_t epoch) {
  if (epoch_of(agent) >= epoch) {
    return;
  }
  Shared& epochs = own(Agent::block(agent));
  if (epochs == nullptr) {
    epochs = std::make_shared<Epochs>();
  } else if (epochs.use_count() > 1) {
    epochs = std::make_shared<Epochs>(*epochs);
  }
  auto const index = size_t(Agent::index(agent));
  if (index >= epochs->size()) {
    epochs->resize(index + 1);
  }
  (*epochs)[index] = epoch;
}

void Clock::join(Clock const& other) {
  saw_predecessor |= other.saw_predecessor;
  if (other.own_ != nullptr) {
    join_block(other.own_block_, other.own_);
  }
  if (other.others_ != nullptr && other.others_ != others_) {
    for (auto const& [block, epochs] : *other.others_) {
      join_block(block, epochs);
    }
  }
}

namespace {

bool covers(std::vector<uint32_t> const& a, std::vector<uint32_t> const& b) {
  if (b.size() > a.size()) {
    return false;
  }
  bool all = true;
  for (size_t i = 0; i < b.size(); ++i) {
    all &= a[i] >= b[i];
  }
  return all;
}

}  // namespace

void Clock::join_block(int block, Shared const& theirs) {
  // All threads of a block tend to acquire the same clock while holding the same one, so the last
  // merge is remembered. Holding the three keeps them from being changed in place.
  static thread_local Shared last_mine, last_theirs, last_result;

  Shared& mine = own(block);
  if (mine == theirs || theirs == nullptr) {
    return;
  }
  if (mine == nullptr || covers(*theirs, *mine)) {
    mine = theirs;
    return;
  }
  if (covers(*mine, *theirs)) {
    return;
  }
  if (mine == last_mine && theirs == last_theirs) {
    mine = last_result;
    return;
  }
  auto merged = std::make_shared<Epochs>(*mine);
  merged->resize(std::max(mine->size(), theirs->size()));
  for (size_t i = 0; i < theirs->size(); ++i) {
    (*merged)[i] = std::max((*merged)[i], (*theirs)[i]);
  }
  last_mine = mine;
  last_theirs = theirs;
  last_result = merged;
  mine = merged;
}

uint32_t seen_epoch(Thread const& thread, uint32_t agent) {
  int const block = thread.block().index;
  if (agent == Agent::of_thread(block, thread.index)) {
    return thread.clock.epoch;
  }
  uint32_t const seen = thread.clock.seen.epoch_of(agent);
  if (agent == Agent::of_copies(block, thread.index)) {
    return std::max(seen, thread.clock.async_seen);
  }
  return seen;
}

Clock snapshot(Thread const& thread) {
  int const block = thread.block().index;
  Clock clock = thread.clock.seen;
  clock.raise(Agent::of_thread(block, thread.index), thread.clock.epoch);
  if (thread.clock.async_seen > 0) {
    clock.raise(Agent::of_copies(block, thread.index), thread.clock.async_seen);
  }
  return clock;
}

void SyncClock::release(Thread& thread) {
  if (!machine().racing) {
    return;
  }
  ThreadClock& own = thread.clock;
  clock_.saw_predecessor |= own.seen.saw_predecessor;
  if (!last_.same_memory(own.seen)) {
    clock_.join(own.seen);
    last_ = own.seen;
  }
  int const block = thread.block().index;
  clock_.raise(Agent::of_thread(block, thread.index), own.epoch);
  if (own.async_seen > 0) {
    clock_.raise(Agent::of_copies(block, thread.index), own.async_seen);
  }
  ++own.epoch;
}

void SyncClock::acquire(Thread& thread) const {
  if (machine().racing) {
    thread.clock.seen.join(clock_);
  }
}

void SyncClock::add(uint32_t agent, uint32_t epoch) {
  if (machine().racing) {
    clock_.raise(agent, epoch);
  }
}

}  // namespace hostsim
