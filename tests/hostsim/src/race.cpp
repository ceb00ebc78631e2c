#include "race.h"

#include <string>

#include "machine.h"

namespace hostsim {

Shadow::Byte& Shadow::at(size_t offset) {
  size_t const page = offset / kPageBytes;
  if (page >= pages_.size()) {
    pages_.resize(page + 1);
  }
  if (pages_[page] == nullptr) {
    pages_[page] = std::make_unique<Page>();
  }
  return (*pages_[page])[offset % kPageBytes];
}

namespace {

bool saw_grid(Thread const& thread, uint32_t serial) {
  Grid const& grid = thread.grid();
  return serial < grid.saw_before_wait ||
         (thread.clock.seen.saw_predecessor && grid.saw_after_wait.count(serial) != 0);
}

// Whether everything the issuing thread does now comes after the access `then`.
bool is_ordered(Stamp const& then, Actor const& now) {
  if (then.agent == Agent::kNone) {
    return true;
  }
  Thread const& thread = *now.thread;
  if (then.grid != thread.grid().serial) {
    return saw_grid(thread, then.grid);
  }
  // Copies of one thread are not ordered with each other, but for those of one group.
  bool const same =
      then.agent == now.agent && (!Agent::is_async(now.agent) || then.epoch == now.epoch);
  return same || then.epoch <= seen_epoch(thread, then.agent);
}

bool both_atomic(Stamp const& then, Actor const& now) {
  return then.kind == AccessKind::kAtomic && now.kind == AccessKind::kAtomic;
}

std::string agent_name(Stamp const& stamp) {
  Machine const& m = machine();
  Grid const* grid = nullptr;
  for (auto const& queued : m.queue) {
    if (queued->serial == stamp.grid) {
      grid = queued.get();
    }
  }
  bool const other_grid = grid != nullptr && m.now != nullptr && grid != &m.now->grid();
  std::string const of_grid =
      other_grid ? " of the earlier launch of " + short_kernel_name(grid->kernel->name) : "";
  std::string const block = " of block " + std::to_string(Agent::block(stamp.agent)) + of_grid;
  if (Agent::is_warpgroup(stamp.agent)) {
    return "a wgmma or tcgen05.mma of warpgroup " + std::to_string(Agent::index(stamp.agent)) + block;
  }
  std::string const thread = "thread " + std::to_string(Agent::thread(stamp.agent)) + block;
  return Agent::is_async(stamp.agent) ? "an asynchronous copy issued by " + thread : thread;
}

void report_race(char const* access, char const* place, size_t offset, char const* what,
                 char const* earlier, Stamp const& then) {
  bool const other_grid = then.grid != machine().now->grid().serial;
  report(other_grid ? "pdl" : "race", "%s: %s of %s+%zu is not ordered after %s by %s%s", what,
         access, place, offset, earlier, agent_name(then).c_str(),
         other_grid ? "; griddepcontrol.wait must come first" : "");
}

// An access through the async proxy sees a plain write only across a proxy fence: by the writer
// after the write, or by the issuer after it had synchronised with the writer.
void check_proxy(Stamp const& writer, Actor const& now, size_t offset, char const* place,
                 char const* what) {
  if (!now.async_proxy || writer.agent == Agent::kNone || writer.kind != AccessKind::kPlain) {
    return;
  }
  Thread const& issuer = *now.thread;
  if (writer.grid != issuer.grid().serial ||
      issuer.clock.proxy_seen.epoch_of(writer.agent) >= writer.epoch) {
    return;
  }
  if (Agent::block(writer.agent) != issuer.block().index) {
    return;  // its thread may be gone; only the own block's writers are followed
  }
  Thread const& author = issuer.block().thread(Agent::thread(writer.agent));
  if (writer.epoch > author.clock.proxy_fence) {
    report("proxy",
           "%s: the async proxy uses %s+%zu, which thread %d wrote, without a fence.proxy.async",
           what, place, offset, author.index);
  }
}

void remember_read(Shadow::Byte& byte, Stamp const& stamp, Actor const& actor) {
  auto const same_warp = [](Stamp const& a, Stamp const& b) {
    return Agent::block(a.agent) == Agent::block(b.agent) && !Agent::is_warpgroup(a.agent) &&
           !Agent::is_warpgroup(b.agent) &&
           Agent::thread(a.agent) / kWarpSize == Agent::thread(b.agent) / kWarpSize;
  };
  for (Stamp& reader : byte.readers) {
    if (reader.agent == stamp.agent || is_ordered(reader, actor) || same_warp(reader, stamp)) {
      reader = stamp;
      return;
    }
  }
  byte.readers[machine().random() & 1] = stamp;
}

void check_byte(Shadow::Byte& byte, Stamp const& stamp, Actor const& actor, size_t offset,
                Access access, char const* place, char const* what) {
  bool const writes = access != Access::kRead;
  if (!is_ordered(byte.writer, actor) && !both_atomic(byte.writer, actor)) {
    report_race(writes ? "a write" : "a read", place, offset, what, "a write", byte.writer);
  } else {
    check_proxy(byte.writer, actor, offset, place, what);
  }
  if (!writes) {
    remember_read(byte, stamp, actor);
    return;
  }
  for (Stamp& reader : byte.readers) {
    bool const ordered = is_ordered(reader, actor);
    if (!ordered && both_atomic(reader, actor)) {
      continue;  // no race, but no order either: a plain write may follow
    }
    if (!ordered) {
      report_race("a write", place, offset, what, "a read", reader);
    }
    reader = {};
  }
  byte.writer = stamp;
}

}  // namespace

void check_races(Shadow& shadow, Actor const& actor, size_t offset, size_t size, Access access,
                 char const* place, char const* what) {
  Stamp const stamp{actor.agent, actor.epoch, actor.thread->grid().serial, actor.kind};
  // Bytes next to each other mostly have one history, and then also one future.
  Shadow::Byte before;
  Shadow::Byte after;
  for (size_t i = offset; i < offset + size; ++i) {
    Shadow::Byte& byte = shadow.at(i);
    if (i > offset && byte == before) {
      byte = after;
      continue;
    }
    before = byte;
    check_byte(byte, stamp, actor, i, access, place, what);
    after = byte;
  }
}

bool was_written_by(Shadow& shadow, uint32_t grid, size_t offset, size_t size) {
  for (size_t i = offset; i < offset + size; ++i) {
    Stamp const& writer = shadow.at(i).writer;
    if (writer.agent != Agent::kNone && writer.grid == grid) {
      return true;
    }
  }
  return false;
}

}  // namespace hostsim
