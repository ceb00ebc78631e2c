// cp.async.bulk.tensor, cp.reduce.async.bulk.tensor: boxes of tensors between global and shared
// memory, in tile mode.

#include "ops_tensor_copy.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>

#include "bulk_copy.h"
#include "copy_groups.h"
#include "reduction.h"
#include "tensor_box.h"

namespace hostsim {
namespace {

constexpr uint32_t kSharedAlignment = 128;

struct TensorDetail : Detail {
  char const* name = "cp.async.bulk.tensor";
  int rank = 0;
  bool multicast = false;
  bool own_block_only = false;  // the destination is .shared::cta
  bool reduces = false;
  ReductionKind reduction = ReductionKind::kAdd;
};

// ---- What all tensor copies begin with ----------------------------------------------------------

// The map of the operand [map, {coordinates}].
TensorMap map_of(Execution const& x, Instruction const& in, Operand const& tensor, int lane) {
  auto const& detail = in.as<TensorDetail>();
  TensorMap const map = read_tensor_map(x.thread(lane), x.address(tensor, lane), detail.name);
  if (map.rank != detail.rank) {
    fault("tma", "%s: %d coordinates for a tensor map of rank %d", detail.name, detail.rank,
          map.rank);
  }
  return map;
}

TensorCoordinates coordinates_of(Execution const& x, Operand const& tensor, int lane) {
  TensorCoordinates first{};
  for (size_t i = 0; i < tensor.elements.size(); ++i) {
    first[i] = int32_t(x.in(tensor.elements[i])[lane]);
  }
  return first;
}

void check_shared_alignment(uint32_t address, char const* name) {
  if (address % kSharedAlignment != 0) {
    fault("align", "%s: shared address 0x%x is not a multiple of 128", name, address);
  }
}

// A box whose pieces inside the tensor have been checked: `global` of each is a host address.
struct Tile {
  TensorMap map;
  std::vector<BoxPiece> pieces;
};

std::shared_ptr<Tile const> check_tile(TensorMap const& map, TensorCoordinates const& first,
                                       Actor const& actor, Access access, char const* name) {
  auto tile = std::make_shared<Tile>(Tile{map, pieces_of_box(map, first)});
  for (BoxPiece& piece : tile->pieces) {
    piece.global =
        reinterpret_cast<uint64_t>(touch(actor, piece.global, piece.bytes, access, name));
  }
  return tile;
}

char* host_pointer(BoxPiece const& piece) { return reinterpret_cast<char*>(piece.global); }

// ---- Global to shared ---------------------------------------------------------------------------

// What elements outside the tensor become, 16 bytes of it.
std::array<char, 16> fill_pattern(TensorMap const& map) {
  std::array<char, 16> pattern{};
  if (map.fills_nan) {
    uint64_t const nan = encode(map.type, std::numeric_limits<double>::quiet_NaN());
    size_t const bytes = size_t(map.element_bytes());
    for (size_t i = 0; i < pattern.size(); i += bytes) {
      std::memcpy(&pattern[i], &nan, bytes);
    }
  }
  return pattern;
}

void fill_box(Tile const& tile, char* shared, uint32_t offset) {
  std::array<char, 16> const pattern = fill_pattern(tile.map);
  for (uint32_t place = 0; place < tile.map.box_bytes(); place += 16) {
    std::memcpy(shared + swizzled(tile.map, offset + place), pattern.data(), pattern.size());
  }
}

void load_box(Tile const& tile, char* shared, uint32_t offset) {
  uint32_t bytes_inside = 0;
  for (BoxPiece const& piece : tile.pieces) {
    bytes_inside += piece.bytes;
  }
  if (bytes_inside < tile.map.box_bytes()) {
    fill_box(tile, shared, offset);
  }
  for (BoxPiece const& piece : tile.pieces) {
    for_each_chunk(tile.map, offset + piece.place, piece.bytes,
                   [&](uint32_t to, uint32_t from, uint32_t bytes) {
                     std::memcpy(shared + to, host_pointer(piece) + from, bytes);
                   });
  }
}

uint32_t round_up(uint32_t value, uint32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void load_into(Block& block, uint32_t offset, uint32_t mbarrier, Actor const& actor,
               std::shared_ptr<Tile const> const& tile, char const* name) {
  Thread& thread = *actor.thread;
  uint32_t const mbarrier_offset = check_copy_mbarrier(thread, actor.epoch, block, mbarrier);
  // Chunks move within whole spans.
  uint32_t const bytes = round_up(tile->map.box_bytes(), tile->map.swizzle_span());
  touch_shared(actor, shared_address_of(block, offset), bytes, Access::kWrite, name);
  issue_bulk_load(thread, actor.epoch, block, mbarrier_offset, tile->map.box_bytes(),
                  [=, shared = block.shared] { load_box(*tile, shared, offset); });
}

void load_lane(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<TensorDetail>();
  Thread& thread = x.thread(lane);
  Operand const& tensor = in.operands[1];
  TensorMap const map = map_of(x, in, tensor, lane);
  auto const destination = uint32_t(x.address(in.operands[0], lane));
  auto const mbarrier = uint32_t(x.address(in.operands[2], lane));
  check_shared_alignment(destination, detail.name);
  Actor const actor = load_actor(thread, ++thread.clock.async_issued, true);
  auto const tile =
      check_tile(map, coordinates_of(x, tensor, lane), actor, Access::kRead, detail.name);
  if (!detail.multicast) {
    Block& block = copy_destination(x.block(), destination, detail.own_block_only, detail.name);
    load_into(block, shared_offset(destination), mbarrier, actor, tile, detail.name);
    return;
  }
  uint32_t const mask = uint32_t(x.in(in.operands[3])[lane]);
  for (Block* const block : multicast_destinations(x.block(), mask)) {
    load_into(*block, shared_offset(destination),
              shared_address_of(*block, shared_offset(mbarrier)), actor, tile, detail.name);
  }
}

// ---- Shared to global ---------------------------------------------------------------------------

void store_lane(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<TensorDetail>();
  Thread& thread = x.thread(lane);
  Operand const& tensor = in.operands[0];
  TensorMap const map = map_of(x, in, tensor, lane);
  auto const source = uint32_t(x.address(in.operands[1], lane));
  check_shared_alignment(source, detail.name);
  Reduction const reduction = detail.reduces ? find_reduction(detail.reduction, map.type) : nullptr;
  if (detail.reduces && (reduction == nullptr || map.type == Type::kF64)) {
    fault("tma", "%s: no such reduction of elements of type %s", detail.name, type_name(map.type));
  }
  BulkEpochs const epochs = open_bulk_epochs(thread);
  Actor const reader = async_actor(thread, epochs.read, true);
  Actor const writer = async_actor(thread, epochs.write, true);
  auto const tile =
      check_tile(map, coordinates_of(x, tensor, lane), detail.reduces ? as_atomic(writer) : writer,
                 detail.reduces ? Access::kReadWrite : Access::kWrite, detail.name);
  for (BoxPiece const& piece : tile->pieces) {
    for_each_chunk(map, source + piece.place, piece.bytes,
                   [&](uint32_t from, uint32_t, uint32_t bytes) {
                     touch_shared(reader, from, bytes, Access::kRead, detail.name, false);
                   });
  }
  char const* const shared = x.block().shared;
  uint32_t const offset = shared_offset(source);
  std::shared_ptr<char[]> const data(new char[map.box_bytes()]);
  auto const read = [=] {
    for (BoxPiece const& piece : tile->pieces) {
      for_each_chunk(tile->map, offset + piece.place, piece.bytes,
                     [&](uint32_t from, uint32_t to, uint32_t bytes) {
                       std::memcpy(data.get() + piece.place + to, shared + from, bytes);
                     });
    }
  };
  auto const write = [=] {
    for (BoxPiece const& piece : tile->pieces) {
      if (reduction != nullptr) {
        reduction(host_pointer(piece), data.get() + piece.place, piece.bytes);
      } else {
        std::memcpy(host_pointer(piece), data.get() + piece.place, piece.bytes);
      }
    }
  };
  issue_bulk_store(thread, read, write);
}

// A prefetch changes nothing, but its tensor map must be one.
void prefetch_lane(Execution const& x, Instruction const& in, int lane) {
  map_of(x, in, in.operands[0], lane);
}

template <void (*run_lane)(Execution const&, Instruction const&, int)>
Flow for_lanes(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { run_lane(x, in, lane); });
  return Flow::kNext;
}

bool same_operands(Execution const& x, Instruction const& in, int a, int b) {
  auto const same = [&](Operand const& operand) {
    return operand.row < 0 || x.in(operand)[a] == x.in(operand)[b];
  };
  return std::all_of(in.operands.begin(), in.operands.end(), [&](Operand const& operand) {
    return same(operand) && std::all_of(operand.elements.begin(), operand.elements.end(), same);
  });
}

// CUTLASS's epilogues let a whole warp issue one store. Lanes that store the same bytes to the same
// place are one operation here, of the first of them, so that they do not race with each other.
Flow store_once(Execution& x, Instruction const& in, Lanes lanes) {
  bool const reduces = in.as<TensorDetail>().reduces;
  for_each_lane(lanes, [&](int lane) {
    int const first = std::countr_zero(lanes);
    if (reduces || lane == first || !same_operands(x, in, lane, first)) {
      store_lane(x, in, lane);
    }
  });
  return Flow::kNext;
}

// ---- Binding ------------------------------------------------------------------------------------

void take_rank(Instruction const& in, Modifiers& modifiers, TensorDetail& detail,
               size_t tensor_operand) {
  detail.rank = modifiers.take_one({"1d", "2d", "3d", "4d", "5d"}) + 1;
  if (in.operands.size() <= tensor_operand ||
      in.operands[tensor_operand].elements.size() != size_t(detail.rank)) {
    modifiers.unsupported("number of coordinates");
  }
}

void expect_operands(Instruction const& in, Modifiers const& modifiers, size_t count) {
  if (in.operands.size() != count) {
    modifiers.unsupported("number of operands");
  }
}

void bind_tensor_copy(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<TensorDetail>();
  detail->reduces = modifiers.take("reduce");
  for (char const* word : {"async", "bulk", "tensor"}) {
    modifiers.take(word);
  }
  bool const stores = modifiers.take("bulk_group");
  take_rank(in, modifiers, *detail, stores ? 0 : 1);
  modifiers.take_one({"global"});
  modifiers.take("tile");
  size_t const policies = modifiers.take("L2::cache_hint") ? 1 : 0;
  if (stores) {
    modifiers.take_one({"shared::cta"});
    expect_operands(in, modifiers, 2 + policies);
    in.run = store_once;
  } else {
    modifiers.take_one({"mbarrier::complete_tx::bytes"});
    detail->own_block_only = modifiers.take_one({"shared::cta", "shared::cluster"}) == 0;
    detail->multicast = modifiers.take("multicast::cluster");
    expect_operands(in, modifiers, 3 + policies + (detail->multicast ? 1 : 0));
    in.run = for_lanes<load_lane>;
  }
  if (detail->reduces) {
    detail->name = "cp.reduce.async.bulk.tensor";
    detail->reduction = take_reduction_kind(modifiers);
  }
  modifiers.finish();
  if (detail->reduces && !stores) {
    modifiers.unsupported("reductions go to global memory");
  }
  in.detail = std::move(detail);
}

void bind_prefetch(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<TensorDetail>();
  detail->name = "cp.async.bulk.prefetch.tensor";
  for (char const* word : {"async", "bulk", "prefetch", "tensor", "L2", "global", "tile"}) {
    modifiers.take(word);
  }
  take_rank(in, modifiers, *detail, 0);
  size_t const policies = modifiers.take("L2::cache_hint") ? 1 : 0;
  modifiers.finish();
  expect_operands(in, modifiers, 1 + policies);
  in.run = for_lanes<prefetch_lane>;
  in.detail = std::move(detail);
}

}  // namespace

void add_tensor_copy(BinderTable& table) {
  table["cp.async.bulk.tensor"] = bind_tensor_copy;
  table["cp.reduce.async.bulk.tensor"] = bind_tensor_copy;
  table["cp.async.bulk.prefetch.tensor"] = bind_prefetch;
  add_tensor_map(table);
}

}  // namespace hostsim
