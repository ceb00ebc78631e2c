// wgmma: matrix products of the 4 warps of a warpgroup. Each warp computes 16 of the 64 rows, so an
// instruction of one warp is an operation of its own here; that they are one operation shows in
// wait_group, which waits until all 4 warps have issued it, and in race detection, where the
// warpgroup is the agent that reads shared memory.

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "bind.h"
#include "matrix_tile.h"
#include "warp_collective.h"
#include "wgmma_layout.h"

namespace hostsim {
namespace {

constexpr int kWarpsPerGroup = 4;
constexpr int kGranules = 2;  // of K, in every shape
constexpr int kMaxColumns = 256;

struct WgmmaDetail : Detail {
  ElementFormat a, b;
  Accumulator accumulator = Accumulator::kF32;
  int columns = 0;
  bool a_in_registers = false;
  bool has_scales = false;      // imm-scale-a and -b: all but integers
  int transpose_a_operand = 0;  // imm-trans-a and -b: of 16-bit types; 0 if not there
  int transpose_b_operand = 0;

  int depth() const { return kGranules * a.per_granule; }
  int tiles() const { return columns / kTileColumns; }
};

// One operand in shared memory: where its granules lie, found and checked at issue.
struct SharedMatrix {
  bool k_major = true;
  std::vector<char const*> granules;  // [row][2] if K-major, else [k][granule of rows]
};

// One warp's share of one wgmma.
struct Product {
  WgmmaDetail const* detail = nullptr;
  SharedMatrix a, b;
  TileA a_registers;
  bool accumulate = true;  // scale-d
  double sign = 1;         // imm-scale-a times imm-scale-b
  std::vector<Row*> accumulators;
};

std::span<std::unique_ptr<Warp> const> warps_of_group(Execution const& x, Instruction const& in) {
  auto const& warps = x.block().warps;
  auto const first = size_t(x.warp.index / kWarpsPerGroup * kWarpsPerGroup);
  if (first + kWarpsPerGroup > warps.size()) {
    fault("wgmma", "%s needs the 4 warps of a warpgroup, but the block ends with warp %zu",
          in.opcode[1].c_str(), warps.size() - 1);
  }
  return {&warps[first], kWarpsPerGroup};
}

// ---- When it runs ---------------------------------------------------------------------------------

void read_shared_a(Product const& product, TileA& a) {
  ElementFormat const format = product.detail->a;
  char const* const* granule = product.a.granules.data();
  if (product.a.k_major) {
    for (int row = 0; row < kTileRows; ++row) {
      for (int i = 0; i < kGranules; ++i) {
        format.decode(*granule++, &a.at[row][i * format.per_granule]);
      }
    }
    return;
  }
  for (int k = 0; k < product.detail->depth(); ++k) {
    for (int row = 0; row < kTileRows; row += format.per_granule) {
      double elements[kGranuleBytes];
      format.decode(*granule++, elements);
      for (int i = 0; i < format.per_granule; ++i) {
        a.at[row + i][k] = elements[i];
      }
    }
  }
}

void read_shared_b(Product const& product, int tile, TileB& b) {
  ElementFormat const format = product.detail->b;
  auto const& granules = product.b.granules;
  if (!product.b.k_major) {
    for (int k = 0; k < product.detail->depth(); ++k) {
      format.decode(granules[size_t(k * product.detail->tiles() + tile)], b.at[k]);
    }
    return;
  }
  char const* const* granule = &granules[size_t(tile * kTileColumns * kGranules)];
  for (int column = 0; column < kTileColumns; ++column) {
    for (int first = 0; first < product.detail->depth(); first += format.per_granule) {
      double elements[kGranuleBytes];
      format.decode(*granule++, elements);
      for (int i = 0; i < format.per_granule; ++i) {
        b.at[first + i][column] = elements[i];
      }
    }
  }
}

void apply_sign(double sign, TileA& a) {
  for (auto& row : a.at) {
    for (double& element : row) {
      element *= sign;
    }
  }
}

void run_product(Product const& product) {
  WgmmaDetail const& detail = *product.detail;
  TileA a = product.a_registers;
  if (!detail.a_in_registers) {
    read_shared_a(product, a);
  }
  if (product.sign < 0) {
    apply_sign(product.sign, a);
  }
  int const registers_per_tile = accumulator_registers(detail.accumulator);
  for (int tile = 0; tile < detail.tiles(); ++tile) {
    Row* const* const registers = &product.accumulators[size_t(tile * registers_per_tile)];
    TileB b;
    TileD d{};
    read_shared_b(product, tile, b);
    if (product.accumulate) {
      read_accumulators(detail.accumulator, registers, d);
    }
    multiply_accumulate(a, b, detail.depth(), detail.accumulator, d);
    write_accumulators(detail.accumulator, d, registers);
  }
}

// ---- wgmma.mma_async ------------------------------------------------------------------------------

// The value of an operand that must be the same in all lanes.
uint64_t uniform(Execution const& x, Operand const& operand, char const* name) {
  Row const& row = x.in(operand);
  for (int lane = 1; lane < kWarpSize; ++lane) {
    if (row[lane] != row[0]) {
      machine().subject = &x.thread(lane);
      fault("wgmma", "%s differs between lanes of the warp: 0x%llx in lane 0, 0x%llx in lane %d",
            name, static_cast<unsigned long long>(row[0]),
            static_cast<unsigned long long>(row[lane]), lane);
    }
  }
  return row[0];
}

bool immediate_flag(Execution const& x, Instruction const& in, int operand) {
  return operand != 0 && uint32_t(x.in(in.operands[size_t(operand)])[0]) != 0;
}

// Checks every granule of rows [first_row, first_row + rows) as read by the warpgroup now.
SharedMatrix locate(Execution const& x, Operand const& operand, char const* name, bool k_major,
                    ElementFormat format, int first_row, int rows) {
  MatrixDescriptor const descriptor = parse_descriptor(uniform(x, operand, name), name);
  Actor const actor = warpgroup_actor(x.thread(0), x.warp.wgmmas_committed + 1);
  SharedMatrix matrix{k_major, {}};
  auto const add = [&](uint32_t offset) {
    matrix.granules.push_back(touch_shared(actor, shared_address_of(x.block(), offset),
                                           kGranuleBytes, Access::kRead, name, false));
  };
  matrix.granules.reserve(size_t(rows * kGranules));
  if (k_major) {
    for (int row = first_row; row < first_row + rows; ++row) {
      for (int granule = 0; granule < kGranules; ++granule) {
        add(descriptor.k_major(row, granule));
      }
    }
    return matrix;
  }
  for (int k = 0; k < kGranules * format.per_granule; ++k) {
    for (int row = first_row; row < first_row + rows; row += format.per_granule) {
      add(descriptor.mn_major(row / format.per_granule, k));
    }
  }
  return matrix;
}

// Whether `warp` will not issue the wgmma that `x` is at, and has not issued it either. (That it left
// with groups in flight is reported at its exit.)
bool takes_no_part(Warp const& warp, Execution const& x) {
  bool const is_ahead = warp.wgmmas_committed > x.warp.wgmmas_committed;
  return warp.live() != kAllLanes && !is_ahead && warp.wgmmas.open.empty();
}

void check_issue(Execution const& x, Instruction const& in) {
  for (auto const& warp : warps_of_group(x, in)) {
    if (takes_no_part(*warp, x)) {
      fault("wgmma",
            "mma_async needs the 4 whole warps of a warpgroup; of warp %d there are lanes %s",
            warp->index, describe_lanes(warp->live()).c_str());
    }
  }
  if (!x.warp.wgmma_fenced) {
    report("wgmma", "the first wgmma.mma_async of the warp comes without a wgmma.fence before it");
  }
}

void read_scales(Execution const& x, Instruction const& in, Product& product) {
  bool const scale_d = uniform(x, in.operands[3], "scale-d") != 0;
  product.accumulate = scale_d != in.operands[3].negated;
  if (!product.detail->has_scales) {
    return;
  }
  for (size_t operand : {4, 5}) {
    auto const scale = int32_t(x.in(in.operands[operand])[0]);
    if (scale != 1 && scale != -1) {
      fault("wgmma", "imm-scale is %d, expected 1 or -1", scale);
    }
    product.sign *= scale;
  }
}

void read_operands(Execution const& x, Instruction const& in, Product& product) {
  WgmmaDetail const& detail = *product.detail;
  Operand const& a = in.operands[1];
  if (detail.a_in_registers) {
    std::array<Row const*, 4> rows;
    std::transform(a.elements.begin(), a.elements.end(), rows.begin(),
                   [&](Operand const& element) { return &x.in(element); });
    read_fragment_a(detail.a, rows.data(), int(rows.size()), product.a_registers);
  } else {
    int const first_row = x.warp.index % kWarpsPerGroup * kTileRows;
    bool const k_major = !immediate_flag(x, in, detail.transpose_a_operand);
    product.a = locate(x, a, "wgmma A", k_major, detail.a, first_row, kTileRows);
  }
  bool const k_major = !immediate_flag(x, in, detail.transpose_b_operand);
  product.b = locate(x, in.operands[2], "wgmma B", k_major, detail.b, 0, detail.columns);
}

Flow run_mma_async(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  check_issue(x, in);
  ++x.grid().matrix_instructions;
  auto product = std::make_shared<Product>();
  product->detail = &in.as<WgmmaDetail>();
  read_scales(x, in, *product);
  read_operands(x, in, *product);
  for (Operand const& accumulator : in.operands[0].elements) {
    product->accumulators.push_back(&x.out(accumulator));
  }
  // Products of one warp run in order, since they may share accumulators.
  Warp& warp = x.warp;
  AsyncRef const op = issue([product, previous = warp.last_wgmma] {
    if (previous != nullptr) {
      complete(previous);
    }
    run_product(*product);
  });
  warp.last_wgmma = op;
  warp.wgmmas.open.push_back(op);
  return Flow::kNext;
}

// ---- Order ----------------------------------------------------------------------------------------

Flow run_fence(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  x.warp.wgmma_fenced = true;
  return Flow::kNext;
}

auto& waiting_for_warpgroup(Execution const& x) {
  return x.block().waiting_for_warpgroup[size_t(x.warp.index / kWarpsPerGroup)];
}

Flow run_commit_group(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  Warp& warp = x.warp;
  ++warp.wgmmas_committed;
  AsyncGroup group;
  group.ops = std::exchange(warp.wgmmas.open, {});
  group.epoch = warp.wgmmas_committed;
  warp.wgmmas.committed.push_back(std::move(group));
  ++machine().progress;
  wake_all(waiting_for_warpgroup(x));
  return Flow::kNext;
}

void complete_groups(Warp const& warp, uint32_t last) {
  for (AsyncGroup const& group : warp.wgmmas.committed) {
    if (group.epoch <= last) {
      std::for_each(group.ops.begin(), group.ops.end(), complete);
    }
  }
}

// Whether `warps` have all committed their group number `group`.
bool all_committed(std::span<std::unique_ptr<Warp> const> warps, uint32_t group) {
  for (auto const& warp : warps) {
    if (warp->wgmmas_committed < group && warp->live() == 0) {
      fault("wgmma", "wait_group waits for group %u of the warpgroup, but warp %d exited after %u",
            group, warp->index, warp->wgmmas_committed);
    }
  }
  return std::all_of(warps.begin(), warps.end(),
                     [&](auto const& warp) { return warp->wgmmas_committed >= group; });
}

Flow run_wait_group(Execution& x, Instruction const& in, Lanes lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  Warp& warp = x.warp;
  auto const may_remain = uint32_t(x.in(in.operands[0])[0]);
  if (warp.wgmmas_committed <= may_remain) {
    return Flow::kNext;
  }
  auto const warps = warps_of_group(x, in);
  uint32_t const last = warp.wgmmas_committed - may_remain;
  if (!all_committed(warps, last)) {
    waiting_for_warpgroup(x).push_back({&warp, lanes});
    return x.retry("wgmma.wait_group, for the other warps of the warpgroup", kAllLanes);
  }
  for (auto const& member : warps) {
    complete_groups(*member, last);
  }
  auto& committed = warp.wgmmas.committed;
  while (!committed.empty() && committed.front().epoch <= last) {
    committed.pop_front();
  }
  SyncClock done;
  done.add(warpgroup_actor(x.thread(0), last).agent, last);
  for_each_lane(lanes, [&](int lane) { done.acquire(x.thread(lane)); });
  return Flow::kNext;
}

// ---- Binders --------------------------------------------------------------------------------------

void take_aligned(Modifiers& modifiers) {
  if (!modifiers.take("sync") || !modifiers.take("aligned")) {
    modifiers.unsupported("the .sync.aligned form is expected");
  }
}

void bind_order(Instruction& in, Handler handler, size_t num_operands) {
  Modifiers modifiers(in);
  modifiers.take(in.opcode[1]);
  take_aligned(modifiers);
  modifiers.finish();
  if (in.operands.size() != num_operands) {
    modifiers.unsupported("it has " + std::to_string(in.operands.size()) + " operands, not " +
                          std::to_string(num_operands));
  }
  in.run = handler;
  in.splits = true;
}

void bind_fence(Instruction& in) { bind_order(in, run_fence, 0); }
void bind_commit_group(Instruction& in) { bind_order(in, run_commit_group, 0); }
void bind_wait_group(Instruction& in) { bind_order(in, run_wait_group, 1); }

// Takes the shape "m64nNkK", and returns N.
int take_columns(Modifiers& modifiers, int depth, bool integers) {
  std::string const shape = modifiers.take_prefixed("m64n");
  for (int columns = kTileColumns; columns <= kMaxColumns; columns += kTileColumns) {
    bool const exists = !integers || columns < 32 || columns % 16 == 0;
    if (exists && shape == "m64n" + std::to_string(columns) + "k" + std::to_string(depth)) {
      return columns;
    }
  }
  modifiers.unsupported("these types have no shape '" + shape + "'");
}

// Which operands there are depends on the types and on where A is.
void check_operands(Instruction const& in, Modifiers const& modifiers, WgmmaDetail& detail,
                    bool transposable) {
  size_t count = detail.has_scales ? 6 : 4;
  if (transposable) {
    detail.transpose_a_operand = detail.a_in_registers ? 0 : int(count++);
    detail.transpose_b_operand = int(count++);
  }
  int const results = detail.tiles() * accumulator_registers(detail.accumulator);
  if (in.operands.size() != count || in.operands[0].elements.size() != size_t(results) ||
      (detail.a_in_registers && in.operands[1].elements.size() != 4)) {
    modifiers.unsupported("expected " + std::to_string(count) +
                          " operands, of which the first of " + std::to_string(results) +
                          " registers");
  }
}

void bind_mma_async(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("mma_async");
  take_aligned(modifiers);
  Type const b_type = modifiers.take_type();
  Type const a_type = modifiers.take_type();
  bool const saturate = modifiers.take("satfinite");
  Type const d_type = modifiers.take_type();
  auto const accumulator = accumulator_format(a_type, b_type, d_type, saturate);
  if (!accumulator || in.operands.size() < 4) {
    modifiers.unsupported("these types do not go together, or are not known");
  }
  auto detail = std::make_unique<WgmmaDetail>();
  detail->a = element_format(a_type);
  detail->b = element_format(b_type);
  detail->accumulator = *accumulator;
  detail->has_scales = d_type != Type::kS32;
  detail->a_in_registers = in.operands[1].is(Operand::Kind::kVector);
  detail->columns = take_columns(modifiers, detail->depth(), d_type == Type::kS32);
  modifiers.finish();
  check_operands(in, modifiers, *detail, a_type == Type::kBF16 || a_type == Type::kF16);
  in.detail = std::move(detail);
  in.run = run_mma_async;
  in.splits = true;
}

}  // namespace

void add_wgmma(BinderTable& table) {
  table["wgmma.mma_async"] = bind_mma_async;
  table["wgmma.fence"] = bind_fence;
  table["wgmma.commit_group"] = bind_commit_group;
  table["wgmma.wait_group"] = bind_wait_group;
}

}  // namespace hostsim
