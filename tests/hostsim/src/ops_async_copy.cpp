// cp.async: copies of 4, 8 or 16 bytes from global to shared memory, and their groups.

#include <array>
#include <bit>
#include <cstring>

#include "bind.h"
#include "bulk_copy.h"
#include "copy_groups.h"
#include "ops_memory.h"

namespace hostsim {
namespace {

constexpr size_t kMaxCopyBytes = 16;

enum class Limit { kNone, kSourceBytes, kIgnoreSource };

struct CopyDetail : Detail {
  bool bypasses_l1 = false;  // .cg, which copies 16 bytes only
  Limit limit = Limit::kNone;
};

// What a lane copies; bytes of the destination beyond source_bytes become zero.
struct LaneCopy {
  char* destination = nullptr;
  char const* source = nullptr;
  uint32_t source_bytes = 0;
};
using LaneCopies = std::array<LaneCopy, kWarpSize>;

size_t copy_bytes(Execution const& x, Instruction const& in, Lanes lanes) {
  auto const bytes = uint32_t(x.in(in.operands[2])[std::countr_zero(lanes)]);
  bool const allowed =
      bytes == 16 || (!in.as<CopyDetail>().bypasses_l1 && (bytes == 4 || bytes == 8));
  if (!allowed) {
    fault("async", "cp.async of %u bytes: .ca copies 4, 8 or 16, .cg copies 16", bytes);
  }
  return bytes;
}

uint32_t source_bytes(Execution const& x, Instruction const& in, int lane, size_t bytes) {
  switch (in.as<CopyDetail>().limit) {
    case Limit::kNone: return uint32_t(bytes);
    case Limit::kIgnoreSource: return x.predicate(in.operands[3], lane) ? 0 : uint32_t(bytes);
    case Limit::kSourceBytes: break;
  }
  auto const limit = uint32_t(x.in(in.operands[3])[lane]);
  if (limit > bytes) {
    fault("async", "cp.async: a source of %u bytes for a copy of %zu", limit, bytes);
  }
  return limit;
}

LaneCopy check_copy(Execution const& x, Instruction const& in, int lane, size_t bytes) {
  Thread& thread = x.thread(lane);
  uint64_t const destination = x.address(in.operands[0], lane);
  uint64_t const source = x.address(in.operands[1], lane);
  if (destination % bytes != 0 || source % bytes != 0) {
    fault("align", "cp.async of %zu bytes from 0x%llx to shared 0x%llx", bytes,
          (unsigned long long)source, (unsigned long long)destination);
  }
  Actor const actor = async_actor(thread, open_copy_epoch(thread), false);
  LaneCopy copy;
  copy.source_bytes = source_bytes(x, in, lane, bytes);
  if (copy.source_bytes > 0) {
    copy.source = touch(actor, source, copy.source_bytes, Access::kRead, "cp.async");
  }
  copy.destination =
      touch_shared(actor, uint32_t(destination), bytes, Access::kWrite, "cp.async", false);
  return copy;
}

void perform(LaneCopies const& copies, Lanes lanes, size_t bytes) {
  for_each_lane(lanes, [&](int lane) {
    LaneCopy const& copy = copies[size_t(lane)];
    std::array<char, kMaxCopyBytes> data{};
    if (copy.source_bytes > 0) {
      std::memcpy(data.data(), copy.source, copy.source_bytes);
    }
    std::memcpy(copy.destination, data.data(), bytes);
  });
}

Flow run_copy(Execution& x, Instruction const& in, Lanes lanes) {
  size_t const bytes = copy_bytes(x, in, lanes);
  LaneCopies copies;
  for_each_lane(lanes, [&](int lane) { copies[size_t(lane)] = check_copy(x, in, lane, bytes); });
  AsyncRef const copy = issue([=] { perform(copies, lanes, bytes); });
  for_each_lane(lanes, [&](int lane) { add_copy(x.thread(lane), copy); });
  return Flow::kNext;
}

Flow run_commit_group(Execution& x, Instruction const&, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { commit_copies(x.thread(lane)); });
  return Flow::kNext;
}

Flow run_wait_group(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& keep = x.in(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { wait_for_copies(x.thread(lane), uint32_t(keep[lane])); });
  return Flow::kNext;
}

Flow run_wait_all(Execution& x, Instruction const&, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) {
    commit_copies(x.thread(lane));
    wait_for_copies(x.thread(lane), 0);
  });
  return Flow::kNext;
}

// ---- Binding ------------------------------------------------------------------------------------

void bind_copy(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<CopyDetail>();
  modifiers.take("async");
  detail->bypasses_l1 = modifiers.take_one({"ca", "cg"}) == 1;
  modifiers.take_one({"shared", "shared::cta"});
  modifiers.take_one({"global"});
  size_t const policies = modifiers.take("L2::cache_hint") ? 1 : 0;
  modifiers.take_hints();
  modifiers.finish();
  size_t const limits = in.operands.size() - policies - 3;
  if (in.operands.size() < 3 + policies || limits > 1) {
    modifiers.unsupported("number of operands");
  }
  if (limits == 1) {
    detail->limit = in.operands[3].is_predicate ? Limit::kIgnoreSource : Limit::kSourceBytes;
  }
  in.run = run_copy;
  in.detail = std::move(detail);
}

template <Handler handler, int num_operands>
void bind_group(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("async");
  modifiers.take(in.opcode[2]);
  modifiers.finish();
  if (in.operands.size() != size_t(num_operands)) {
    modifiers.unsupported("number of operands");
  }
  in.run = handler;
}

}  // namespace

void add_async_copy(BinderTable& table) {
  table["cp.async"] = bind_copy;
  table["cp.async.commit_group"] = bind_group<run_commit_group, 0>;
  table["cp.async.wait_group"] = bind_group<run_wait_group, 1>;
  table["cp.async.wait_all"] = bind_group<run_wait_all, 0>;
  add_bulk_copy(table);
  add_store_async(table);
}

}  // namespace hostsim
