// tcgen05: products of one thread for its block, of matrices in shared memory into tensor memory.
//
// Those of a thread run in the order of their issue. Its tcgen05.commit arrives at an mbarrier when
// all before it have ended; until then nobody may write what they read or read what they write.

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "bind.h"
#include "bulk_copy.h"
#include "matrix_tile.h"
#include "mbarrier.h"
#include "tensor_memory.h"
#include "warp_collective.h"
#include "wgmma_layout.h"

namespace hostsim {
namespace {

constexpr int kRows = TensorMemory::kLanes;  // of A and D
constexpr int kGranules = 2;                 // of K

// ---- Allocation -----------------------------------------------------------------------------------

Flow run_alloc(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  auto const columns = int32_t(x.in(in.operands[1])[0]);
  auto const column = uint32_t(share_tensor_memory(x.block())->allocate(columns));
  char* const to = touch_shared(plain_actor(x.thread(0)), uint32_t(x.address(in.operands[0], 0)),
                                sizeof column, Access::kWrite, "tcgen05.alloc", false);
  std::memcpy(to, &column, sizeof column);
  return Flow::kNext;
}

Flow run_dealloc(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  auto const address = uint32_t(x.in(in.operands[0])[0]);
  auto const columns = int32_t(x.in(in.operands[1])[0]);
  TensorMemory& memory = *share_tensor_memory(x.block());
  // A load or a product that is not over yet is a race with this.
  memory.touch(atomic_actor(x.thread(0)), 0, kRows, TensorMemory::column_of(address), columns,
               Access::kWrite, "tcgen05.dealloc");
  memory.deallocate(TensorMemory::column_of(address), columns);
  return Flow::kNext;
}

Flow run_relinquish(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  share_tensor_memory(x.block())->relinquish();
  return Flow::kNext;
}

// ---- Products -------------------------------------------------------------------------------------

// The instruction descriptor of .kind::f16.
struct ProductShape {
  ElementFormat format;  // of A and B
  int columns = 0;       // N
};

ProductShape parse_shape(uint32_t bits) {
  constexpr uint32_t kFloatResult = 1;
  auto const field = [bits](int first, int size) { return bits >> first & ((1u << size) - 1); };
  uint32_t const format = field(7, 3);
  ProductShape const shape{element_format(format == 0 ? Type::kF16 : Type::kBF16),
                           int(field(17, 6)) * 8};
  bool const is_known = format <= 1 && field(10, 3) == format && field(4, 2) == kFloatResult &&
                        int(field(24, 5)) * 16 == kRows;
  constexpr uint32_t kKnownFields = 3u << 4 | 7u << 7 | 7u << 10 | 63u << 17 | 31u << 24;
  if (!is_known || (bits & ~kKnownFields) != 0) {
    fault("tcgen05",
          "instruction descriptor 0x%08x; the emulator knows bf16 by bf16 and f16 by f16 into f32, "
          "both K-major, M = 128",
          bits);
  }
  if (shape.columns < 16 || shape.columns > 256 || shape.columns % 16 != 0) {
    fault("tcgen05",
          "instruction descriptor 0x%08x: N is %d, a multiple of 16 up to 256 for M = 128", bits,
          shape.columns);
  }
  return shape;
}

struct TensorProduct {
  ProductShape shape;
  std::vector<char const*> a, b;  // granules, [row][2]
  std::shared_ptr<TensorMemory> memory;
  int column = 0;  // the first of D
  bool accumulate = false;
};

std::vector<char const*> locate(Execution const& x, Actor const& actor, uint64_t bits, int rows,
                                char const* name) {
  MatrixDescriptor const descriptor = parse_tensor_descriptor(bits, name);
  std::vector<char const*> granules;
  granules.reserve(size_t(rows * kGranules));
  for (int row = 0; row < rows; ++row) {
    for (int granule = 0; granule < kGranules; ++granule) {
      uint32_t const address = shared_address_of(x.block(), descriptor.k_major(row, granule));
      granules.push_back(touch_shared(actor, address, kGranuleBytes, Access::kRead, name, false));
    }
  }
  return granules;
}

void run_tile(TensorProduct const& product, TileA const& a, TileB const& b, int row, int column) {
  TileD d{};
  auto const for_each_cell = [&](auto const& visit) {
    for (int i = 0; i < kTileRows; ++i) {
      for (int j = 0; j < kTileColumns; ++j) {
        visit(d.at[i][j], product.memory->at(row + i, product.column + column + j));
      }
    }
  };
  if (product.accumulate) {
    for_each_cell([](double& value, uint32_t const& cell) { value = as_float(cell); });
  }
  multiply_accumulate(a, b, kGranules * product.shape.format.per_granule, Accumulator::kF32, d);
  for_each_cell([](double const& value, uint32_t& cell) {
    cell = std::isnan(value) ? 0x7fffffff : bits_of_float(float(value));
  });
}

void run_product(TensorProduct const& product) {
  ElementFormat const format = product.shape.format;
  std::vector<TileB> b(size_t(product.shape.columns / kTileColumns));
  for (int column = 0; column < product.shape.columns; ++column) {
    for (int i = 0; i < kGranules; ++i) {
      double elements[kGranuleBytes];
      format.decode(product.b[size_t(column * kGranules + i)], elements);
      for (int k = 0; k < format.per_granule; ++k) {
        b[size_t(column / kTileColumns)].at[i * format.per_granule + k][column % kTileColumns] =
            elements[k];
      }
    }
  }
  for (int row = 0; row < kRows; row += kTileRows) {
    TileA a;
    for (int i = 0; i < kTileRows * kGranules; ++i) {
      format.decode(product.a[size_t(row * kGranules + i)],
                    &a.at[i / kGranules][i % kGranules * format.per_granule]);
    }
    for (size_t tile = 0; tile < b.size(); ++tile) {
      run_tile(product, a, b[tile], row, int(tile) * kTileColumns);
    }
  }
}

void multiply_lane(Execution const& x, Instruction const& in, int lane) {
  for (Operand const& mask : in.operands[4].elements) {
    if (uint32_t(x.in(mask)[lane]) != 0) {
      fault("tcgen05", "tcgen05.mma with disabled lanes, which the emulator does not know");
    }
  }
  Actor const actor = warpgroup_actor(x.thread(lane), x.warp.tensor_commits + 1);
  auto product = std::make_shared<TensorProduct>();
  product->shape = parse_shape(uint32_t(x.in(in.operands[3])[lane]));
  product->accumulate = x.predicate(in.operands[5], lane);
  product->a = locate(x, actor, x.in(in.operands[1])[lane], kRows, "tcgen05.mma A");
  product->b =
      locate(x, actor, x.in(in.operands[2])[lane], product->shape.columns, "tcgen05.mma B");
  auto const address = uint32_t(x.address(in.operands[0], lane));
  if (TensorMemory::lane_of(address) != 0) {
    fault("tcgen05", "tcgen05.mma: D begins at lane %d, with M = 128 it is 0",
          TensorMemory::lane_of(address));
  }
  product->column = TensorMemory::column_of(address);
  product->memory = share_tensor_memory(x.block());
  product->memory->touch(actor, 0, kRows, product->column, product->shape.columns,
                         product->accumulate ? Access::kReadWrite : Access::kWrite,
                         "tcgen05.mma D");
  x.warp.last_product = issue([product, previous = x.warp.last_product] {
    if (previous != nullptr) {
      complete(previous);
    }
    run_product(*product);
  });
}

Flow run_mma(Execution& x, Instruction const& in, Lanes lanes) {
  if ((lanes & (lanes - 1)) != 0) {
    report("tcgen05", "tcgen05.mma by lanes %s, one thread issues it",
           describe_lanes(lanes).c_str());
  }
  ++x.grid().matrix_instructions;
  for_each_lane(lanes, [&](int lane) { multiply_lane(x, in, lane); });
  return Flow::kNext;
}

void commit_lane(Execution const& x, Instruction const& in, int lane) {
  constexpr char const* kName = "tcgen05.commit";
  Thread& thread = x.thread(lane);
  auto const address = uint32_t(x.address(in.operands[0], lane));
  std::vector<Block*> blocks = {&copy_destination(x.block(), address, false, kName)};
  if (in.operands.size() > 1) {
    blocks = multicast_destinations(x.block(), uint32_t(x.in(in.operands[1])[lane]));
  }
  // Who sees the arrival has seen the products, and what came before them.
  Actor products = as_atomic(warpgroup_actor(thread, ++x.warp.tensor_commits));
  products.async_proxy = false;
  SyncClock released;
  released.join(thread.clock.seen);
  released.add(products.agent, products.epoch);
  uint32_t const offset = shared_offset(address);
  for (Block* const block : blocks) {
    find_mbarrier(products, shared_address_of(*block, offset), kName);
  }
  x.warp.last_product = issue([=, previous = x.warp.last_product] {
    if (previous != nullptr) {
      complete(previous);
    }
    for (Block* const block : blocks) {
      arrive_later(*block, offset, released, kName);
    }
  });
}

Flow run_commit(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { commit_lane(x, in, lane); });
  return Flow::kNext;
}

// ---- Loads ----------------------------------------------------------------------------------------

// 16 lanes of tensor memory, eight columns for each four registers, which wgmma would leave so.
Flow run_load(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  auto const address = uint32_t(x.address(in.operands[1], 0));
  for (int i = 1; i < kWarpSize; ++i) {
    if (uint32_t(x.address(in.operands[1], i)) != address) {
      fault("tcgen05", "tcgen05.ld: the address differs between lanes of the warp");
    }
  }
  int const lane = TensorMemory::lane_of(address);
  int const column = TensorMemory::column_of(address);
  if (lane / TensorMemory::kLanesOfWarp != x.warp.index % 4 || lane % kTileRows != 0) {
    fault("tcgen05", "tcgen05.ld of warp %d from lane %d on: it reaches 16 or 32 from lane %d on",
          x.warp.index, lane, x.warp.index % 4 * TensorMemory::kLanesOfWarp);
  }
  std::vector<Row*> registers;
  for (Operand const& element : in.operands[0].elements) {
    registers.push_back(&x.out(element));
  }
  int const columns = int(registers.size()) / 4 * kTileColumns;
  auto const memory = share_tensor_memory(x.block());
  Thread& thread = x.thread(0);
  memory->touch(async_actor(thread, ++thread.clock.async_issued, false), lane, kTileRows, column,
                columns, Access::kRead, "tcgen05.ld");
  x.warp.tensor_loads.push_back(issue([=] {
    for (size_t r = 0; r < registers.size(); ++r) {
      for (int i = 0; i < kWarpSize; ++i) {
        int const row = lane + i / 4 + int(r / 2 % 2) * 8;
        (*registers[r])[i] =
            memory->at(row, column + int(r / 4) * kTileColumns + i % 4 * 2 + int(r % 2));
      }
    }
  }));
  return Flow::kNext;
}

Flow run_wait_load(Execution& x, Instruction const& in, Lanes lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  for (AsyncRef const& load : std::exchange(x.warp.tensor_loads, {})) {
    complete(load);
  }
  Thread& thread = x.thread(0);
  thread.clock.async_seen = thread.clock.async_issued;
  SyncClock done;
  done.add(Agent::of_copies(x.block().index, thread.index), thread.clock.async_issued);
  for_each_lane(lanes, [&](int lane) { done.acquire(x.thread(lane)); });
  return Flow::kNext;
}

Flow run_nothing(Execution&, Instruction const&, Lanes) { return Flow::kNext; }

// ---- Binders --------------------------------------------------------------------------------------

// Takes the modifiers, all of which must be there, and no others.
void take_all(Modifiers& modifiers, std::initializer_list<std::string_view> words) {
  for (std::string_view const word : words) {
    if (!modifiers.take(word)) {
      modifiers.unsupported("expected ." + std::string(word));
    }
  }
}

void bind_as(Instruction& in, Modifiers const& modifiers, Handler run, size_t num_operands) {
  modifiers.finish();
  if (in.operands.size() != num_operands) {
    modifiers.unsupported("expected " + std::to_string(num_operands) + " operands");
  }
  in.run = run;
  in.splits = true;
}

void bind_alloc(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers, {"alloc", "cta_group::1", "sync", "aligned", "shared::cta", "b32"});
  bind_as(in, modifiers, run_alloc, 2);
}

void bind_dealloc(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers, {"dealloc", "cta_group::1", "sync", "aligned", "b32"});
  bind_as(in, modifiers, run_dealloc, 2);
}

void bind_relinquish(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers, {"relinquish_alloc_permit", "cta_group::1", "sync", "aligned"});
  bind_as(in, modifiers, run_relinquish, 0);
}

void bind_mma(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers, {"mma", "cta_group::1", "kind::f16"});
  bind_as(in, modifiers, run_mma, 6);
  bool const from_shared = in.operands[1].is(Operand::Kind::kRow);
  if (!from_shared || in.operands[4].elements.size() != 4 || !in.operands[5].is_predicate) {
    modifiers.unsupported("expected both matrices by descriptor, four masks and a predicate");
  }
}

void bind_commit(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers,
           {"commit", "cta_group::1", "mbarrier::arrive::one", "shared::cluster", "b64"});
  bool const is_multicast = modifiers.take("multicast::cluster");
  bind_as(in, modifiers, run_commit, is_multicast ? 2 : 1);
}

void bind_load(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers, {"ld", "sync", "aligned", "16x256b", "b32"});
  std::string const count = modifiers.take_prefixed("x");
  bind_as(in, modifiers, run_load, 2);
  if (count != "x" + std::to_string(in.operands[0].elements.size() / 4)) {
    modifiers.unsupported("expected 4 registers for each of ." + count);
  }
}

void bind_wait_load(Instruction& in) {
  Modifiers modifiers(in);
  take_all(modifiers, {"wait::ld", "sync", "aligned"});
  bind_as(in, modifiers, run_wait_load, 0);
}

// Order between threads is that of the barriers around it.
void bind_fence(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"fence::before_thread_sync", "fence::after_thread_sync"});
  bind_as(in, modifiers, run_nothing, 0);
}

}  // namespace

void add_tcgen05(BinderTable& table) {
  table["tcgen05.alloc"] = bind_alloc;
  table["tcgen05.dealloc"] = bind_dealloc;
  table["tcgen05.relinquish_alloc_permit"] = bind_relinquish;
  table["tcgen05.mma"] = bind_mma;
  table["tcgen05.commit"] = bind_commit;
  table["tcgen05.ld"] = bind_load;
  table["tcgen05.wait::ld"] = bind_wait_load;
  table["tcgen05.fence::before_thread_sync"] = bind_fence;
  table["tcgen05.fence::after_thread_sync"] = bind_fence;
}

}  // namespace hostsim
