// cp.async.bulk and cp.reduce.async.bulk: ranges of bytes between global and shared memory, or from
// one block's shared memory to another's.

#include <cstring>
#include <memory>

#include "bulk_copy.h"
#include "copy_groups.h"
#include "mbarrier.h"
#include "ops_memory.h"
#include "reduction.h"

namespace hostsim {
namespace {

struct BulkDetail : Detail {
  char const* name = "cp.async.bulk";
  bool multicast = false;
  bool own_block_only = false;    // the destination is .shared::cta
  Reduction reduction = nullptr;  // nullptr: a copy
};

// One lane's operands: all bulk copies begin with destination, source, size.
struct Range {
  uint64_t destination;
  uint64_t source;
  uint32_t bytes;
};

Range range_of(Execution const& x, Instruction const& in, int lane) {
  Range const range{x.address(in.operands[0], lane), x.address(in.operands[1], lane),
                    uint32_t(x.in(in.operands[2])[lane])};
  if (range.destination % kBulkAlignment != 0 || range.source % kBulkAlignment != 0 ||
      range.bytes % kBulkAlignment != 0) {
    fault("align", "%s: %u bytes from 0x%llx to 0x%llx, all must be multiples of 16",
          in.as<BulkDetail>().name, range.bytes, (unsigned long long)range.source,
          (unsigned long long)range.destination);
  }
  return range;
}

// ---- Global to shared ---------------------------------------------------------------------------

void load_lane(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<BulkDetail>();
  Thread& thread = x.thread(lane);
  Range const range = range_of(x, in, lane);
  auto const address = uint32_t(range.destination);
  uint32_t const mbarrier = uint32_t(x.address(in.operands[3], lane));
  std::vector<Block*> destinations = {
      &copy_destination(x.block(), address, detail.own_block_only, detail.name)};
  if (detail.multicast) {
    destinations = multicast_destinations(x.block(), uint32_t(x.in(in.operands[4])[lane]));
  }
  if (range.bytes == 0) {
    return;
  }
  uint32_t const epoch = ++thread.clock.async_issued;
  Actor const actor = load_actor(thread, epoch, true);
  char const* const from = touch(actor, range.source, range.bytes, Access::kRead, detail.name);
  for (Block* const block : destinations) {
    uint32_t const there =
        detail.multicast ? shared_address_of(*block, shared_offset(address)) : address;
    uint32_t const its_mbarrier =
        detail.multicast ? shared_address_of(*block, shared_offset(mbarrier)) : mbarrier;
    uint32_t const mbarrier_offset = check_copy_mbarrier(thread, epoch, *block, its_mbarrier);
    char* const to = touch_shared(actor, there, range.bytes, Access::kWrite, detail.name);
    issue_bulk_load(thread, epoch, *block, mbarrier_offset, range.bytes,
                    [=, bytes = range.bytes] { std::memcpy(to, from, bytes); });
  }
}

// ---- Shared to shared, of another block ---------------------------------------------------------

void send_lane(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<BulkDetail>();
  Thread& thread = x.thread(lane);
  Range const range = range_of(x, in, lane);
  auto const address = uint32_t(range.destination);
  Block& destination = copy_destination(x.block(), address, false, detail.name);
  if (&destination == &x.block()) {
    report("async", "%s: the destination must be in the shared memory of another block",
           detail.name);
  }
  if (range.bytes == 0) {
    return;
  }
  uint32_t const epoch = ++thread.clock.async_issued;
  uint32_t const mbarrier_offset =
      check_copy_mbarrier(thread, epoch, destination, uint32_t(x.address(in.operands[3], lane)));
  Actor const actor = load_actor(thread, epoch, true);
  char const* const from =
      touch_shared(actor, uint32_t(range.source), range.bytes, Access::kRead, detail.name, false);
  bool const reduces = detail.reduction != nullptr;
  char* const to = touch_shared(reduces ? as_atomic(actor) : actor, address, range.bytes,
                                reduces ? Access::kReadWrite : Access::kWrite, detail.name);
  issue_bulk_load(thread, epoch, destination, mbarrier_offset, range.bytes,
                  [=, bytes = range.bytes, reduction = detail.reduction] {
                    if (reduction != nullptr) {
                      reduction(to, from, bytes);
                    } else {
                      std::memcpy(to, from, bytes);
                    }
                  });
}

// ---- Shared to global ---------------------------------------------------------------------------

void store_lane(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<BulkDetail>();
  Thread& thread = x.thread(lane);
  Range const range = range_of(x, in, lane);
  if (range.bytes == 0) {
    return;
  }
  BulkEpochs const epochs = open_bulk_epochs(thread);
  Actor const writer = async_actor(thread, epochs.write, true);
  bool const reduces = detail.reduction != nullptr;
  char const* const from =
      touch_shared(async_actor(thread, epochs.read, true), uint32_t(range.source), range.bytes,
                   Access::kRead, detail.name, false);
  char* const to = touch(reduces ? as_atomic(writer) : writer, range.destination, range.bytes,
                         reduces ? Access::kReadWrite : Access::kWrite, detail.name);
  std::shared_ptr<char[]> const data(new char[range.bytes]);
  issue_bulk_store(
      thread, [=, bytes = range.bytes] { std::memcpy(data.get(), from, bytes); },
      [=, bytes = range.bytes, reduction = detail.reduction] {
        if (reduction != nullptr) {
          reduction(to, data.get(), bytes);
        } else {
          std::memcpy(to, data.get(), bytes);
        }
      });
}

template <void (*run_lane)(Execution const&, Instruction const&, int)>
Flow for_lanes(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { run_lane(x, in, lane); });
  return Flow::kNext;
}

// ---- Prefetch, groups ---------------------------------------------------------------------------

// Brings nothing and counts as no traffic, but must stay inside its buffer.
Flow run_prefetch(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) {
    uint64_t const address = x.address(in.operands[0], lane);
    uint32_t const bytes = uint32_t(x.in(in.operands[1])[lane]);
    if (address % kBulkAlignment != 0 || bytes % kBulkAlignment != 0) {
      fault("align", "cp.async.bulk.prefetch: %u bytes at 0x%llx", bytes,
            (unsigned long long)address);
    }
    Buffer const* const buffer = find_buffer(address);
    char const* const first = reinterpret_cast<char const*>(address);
    if (buffer == nullptr || first + bytes > buffer->data + buffer->size) {
      fault("memory", "cp.async.bulk.prefetch: %u bytes at 0x%llx are not all inside a buffer",
            bytes, (unsigned long long)address);
    }
  });
  return Flow::kNext;
}

Flow run_commit_group(Execution& x, Instruction const&, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { commit_bulk_copies(x.thread(lane)); });
  return Flow::kNext;
}

template <void (*wait)(Thread&, size_t)>
Flow run_wait_group(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& keep = x.in(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { wait(x.thread(lane), uint32_t(keep[lane])); });
  return Flow::kNext;
}

// ---- Binding ------------------------------------------------------------------------------------

void expect_operands(Instruction const& in, Modifiers const& modifiers, size_t count) {
  if (in.operands.size() != count) {
    modifiers.unsupported("number of operands");
  }
}

void take_reduction(Modifiers& modifiers, BulkDetail& detail, bool in_shared) {
  Type const type = modifiers.take_type();
  ReductionKind const kind = take_reduction_kind(modifiers);
  bool const is_half = type == Type::kF16 || type == Type::kBF16;
  if (is_half && kind == ReductionKind::kAdd && !modifiers.take("noftz")) {
    modifiers.unsupported("the sum of halves needs .noftz");
  }
  detail.name = "cp.reduce.async.bulk";
  detail.reduction = find_reduction(kind, type);
  if (detail.reduction == nullptr || (in_shared && !is_defined_in_shared(kind, type))) {
    modifiers.unsupported("no such reduction of this type");
  }
}

// cp.async.bulk and cp.reduce.async.bulk, in each direction.
void bind_copy(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<BulkDetail>();
  bool const reduces = modifiers.take("reduce");
  modifiers.take("async");
  modifiers.take("bulk");
  bool const in_group = modifiers.take("bulk_group");
  if (!in_group) {
    modifiers.take_one({"mbarrier::complete_tx::bytes"});
  }
  bool const has_global = modifiers.take("global");
  bool const has_cluster = modifiers.take("shared::cluster");
  bool const has_block = modifiers.take("shared::cta");
  detail->multicast = modifiers.take("multicast::cluster");
  size_t const policies = modifiers.take("L2::cache_hint") ? 1 : 0;
  if (reduces) {
    take_reduction(modifiers, *detail, !has_global);
  }
  modifiers.finish();

  bool const stores = in_group && has_global && has_block && !has_cluster;
  bool const loads = !in_group && has_global && has_block != has_cluster && !reduces;
  bool const sends = !in_group && !has_global && has_block && has_cluster;
  if (!stores && !loads && !sends) {
    modifiers.unsupported("no such direction");
  }
  if (detail->multicast && !(loads && has_cluster)) {
    modifiers.unsupported("only copies from global to .shared::cluster are multicast");
  }
  detail->own_block_only = has_block && loads;
  expect_operands(in, modifiers, (stores ? 3u : 4u) + policies + (detail->multicast ? 1u : 0u));
  in.run = stores ? for_lanes<store_lane> : loads ? for_lanes<load_lane> : for_lanes<send_lane>;
  in.detail = std::move(detail);
}

void bind_prefetch(Instruction& in) {
  Modifiers modifiers(in);
  for (char const* word : {"async", "bulk", "prefetch", "L2", "global"}) {
    modifiers.take(word);
  }
  size_t const policies = modifiers.take("L2::cache_hint") ? 1 : 0;
  modifiers.finish();
  expect_operands(in, modifiers, 2 + policies);
  in.run = run_prefetch;
}

void bind_commit_group(Instruction& in) {
  Modifiers modifiers(in);
  for (char const* word : {"async", "bulk", "commit_group"}) {
    modifiers.take(word);
  }
  modifiers.finish();
  in.run = run_commit_group;
}

void bind_wait_group(Instruction& in) {
  Modifiers modifiers(in);
  for (char const* word : {"async", "bulk", "wait_group"}) {
    modifiers.take(word);
  }
  bool const reads_only = modifiers.take("read");
  modifiers.finish();
  expect_operands(in, modifiers, 1);
  in.run = reads_only ? run_wait_group<wait_for_bulk_reads> : run_wait_group<wait_for_bulk_copies>;
}

}  // namespace

Block& copy_destination(Block const& home, uint32_t address, bool own_block_only,
                        char const* name) {
  Block* const block = shared_owner(address);
  bool const allowed =
      block != nullptr && block->cluster == home.cluster && (block == &home || !own_block_only);
  if (!allowed) {
    fault("memory", "%s: 0x%x is no shared address that the thread may copy to", name, address);
  }
  return *block;
}

uint32_t check_copy_mbarrier(Thread& thread, uint32_t epoch, Block const& destination,
                             uint32_t mbarrier) {
  if (Block const* const owner = shared_owner(mbarrier); owner != &destination) {
    fault("mbarrier", "a bulk copy into block %d with the mbarrier at 0x%x, which is not there",
          destination.index, mbarrier);
  }
  // PTX: the copy "accesses its mbarrier operand using generic-proxy".
  find_mbarrier(as_atomic(load_actor(thread, epoch, false)), mbarrier, "bulk copy");
  return shared_offset(mbarrier);
}

void issue_bulk_load(Thread& thread, uint32_t epoch, Block& destination, uint32_t mbarrier_offset,
                     int64_t bytes, std::function<void()> copy) {
  SyncClock released;
  released.add(Agent::of_loads(thread.block().index, thread.index), epoch);
  issue([=, &destination, copy = std::move(copy)] {
    copy();
    complete_bytes_later(destination, mbarrier_offset, bytes, released);
  });
}

void issue_bulk_store(Thread& thread, std::function<void()> read, std::function<void()> write) {
  AsyncRef const reading = issue(std::move(read));
  AsyncRef const writing = issue([=, write = std::move(write)] {
    complete(reading);
    write();
  });
  add_bulk_copy(thread, reading, writing);
}

std::vector<Block*> multicast_destinations(Block const& home, uint32_t mask) {
  auto const& blocks = home.cluster->blocks;
  std::vector<Block*> destinations;
  for (size_t rank = 0; rank < blocks.size(); ++rank) {
    if ((mask >> rank & 1) != 0) {
      destinations.push_back(blocks[rank].get());
    }
  }
  if ((mask & 0xffff) == 0 || (mask & 0xffff) >> blocks.size() != 0) {
    fault("cluster", "a multicast to blocks 0x%x of a cluster of %zu", mask & 0xffff,
          blocks.size());
  }
  return destinations;
}

Actor as_atomic(Actor actor) {
  actor.kind = AccessKind::kAtomic;
  return actor;
}

void add_bulk_copy(BinderTable& table) {
  table["cp.async.bulk"] = bind_copy;
  table["cp.reduce.async.bulk"] = bind_copy;
  table["cp.async.bulk.prefetch"] = bind_prefetch;
  table["cp.async.bulk.commit_group"] = bind_commit_group;
  table["cp.async.bulk.wait_group"] = bind_wait_group;
}

}  // namespace hostsim
