// st.async and red.async: stores and reductions into the shared memory of another block, which
// complete bytes of an mbarrier there.

#include <array>
#include <cstring>

#include "bulk_copy.h"
#include "reduction.h"

namespace hostsim {
namespace {

constexpr int kMaxElements = 4;

struct StoreDetail : Detail {
  char const* name = "st.async";
  size_t element_bytes = 4;
  int count = 1;
  Reduction reduction = nullptr;  // nullptr: a store
};

Operand const& element(Operand const& operand, int i) {
  return operand.is(Operand::Kind::kVector) ? operand.elements[size_t(i)] : operand;
}

void store_lane(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<StoreDetail>();
  Thread& thread = x.thread(lane);
  auto const address = uint32_t(x.address(in.operands[0], lane));
  size_t const bytes = detail.element_bytes * size_t(detail.count);
  if (address % bytes != 0) {
    fault("align", "%s: %zu bytes at shared address 0x%x", detail.name, bytes, address);
  }
  std::array<char, kMaxElements * sizeof(uint64_t)> data{};
  for (int i = 0; i < detail.count; ++i) {
    uint64_t const value = x.in(element(in.operands[1], i))[lane];
    std::memcpy(&data[size_t(i) * detail.element_bytes], &value, detail.element_bytes);
  }
  Block& destination = copy_destination(x.block(), address, false, detail.name);
  uint32_t const epoch = ++thread.clock.async_issued;
  uint32_t const mbarrier_offset =
      check_copy_mbarrier(thread, epoch, destination, uint32_t(x.address(in.operands[2], lane)));
  bool const reduces = detail.reduction != nullptr;
  // Unlike bulk copies these belong to the generic proxy.
  Actor const actor = load_actor(thread, epoch, false);
  char* const to = touch_shared(reduces ? as_atomic(actor) : actor, address, bytes,
                                reduces ? Access::kReadWrite : Access::kWrite, detail.name);
  issue_bulk_load(thread, epoch, destination, mbarrier_offset, int64_t(bytes),
                  [=, reduction = detail.reduction] {
                    if (reduction != nullptr) {
                      reduction(to, data.data(), bytes);
                    } else {
                      std::memcpy(to, data.data(), bytes);
                    }
                  });
}

Flow run_store(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { store_lane(x, in, lane); });
  return Flow::kNext;
}

void bind_store(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<StoreDetail>();
  Type const type = modifiers.take_type();
  detail->element_bytes = size_t(bytes_of(type));
  modifiers.take("async");
  modifiers.take_any({"weak", "relaxed"});
  modifiers.take("cluster");
  modifiers.take_one({"shared::cluster"});
  modifiers.take_one({"mbarrier::complete_tx::bytes"});
  if (in.opcode[0] == "red") {
    detail->name = "red.async";
    ReductionKind const kind = take_reduction_kind(modifiers);
    detail->reduction = find_reduction(kind, type);
    if (!is_defined_in_shared(kind, type)) {
      modifiers.unsupported("no such reduction of this type");
    }
  } else {
    int const vector = modifiers.take_any({"v2", "v4"});
    detail->count = vector < 0 ? 1 : 2 << vector;
  }
  modifiers.finish();
  size_t const elements = in.operands.size() == 3 && in.operands[1].is(Operand::Kind::kVector)
                              ? in.operands[1].elements.size()
                              : 1;
  if (in.operands.size() != 3 || elements != size_t(detail->count)) {
    modifiers.unsupported("number of operands");
  }
  in.run = run_store;
  in.detail = std::move(detail);
}

}  // namespace

void add_store_async(BinderTable& table) {
  table["st.async"] = bind_store;
  table["red.async"] = bind_store;
}

}  // namespace hostsim
