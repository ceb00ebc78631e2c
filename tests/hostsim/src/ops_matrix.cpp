// The warp's matrix instructions: mma.sync, and those that bring 8x8 matrices of 16-bit elements
// from and to shared memory (ldmatrix, stmatrix) or transpose one in registers (movmatrix).

#include <algorithm>
#include <array>
#include <cstring>

#include "bind.h"
#include "matrix_tile.h"
#include "warp_collective.h"

namespace hostsim {
namespace {

// ---- mma ------------------------------------------------------------------------------------------

struct MmaDetail : Detail {
  ElementFormat a, b;
  Accumulator accumulator = Accumulator::kF32;
  int depth = 0;
};

using FragmentRows = std::array<Row const*, 4>;

FragmentRows rows_of(Execution const& x, Operand const& fragment) {
  FragmentRows rows{};
  for (size_t i = 0; i < fragment.elements.size(); ++i) {
    rows[i] = &x.in(fragment.elements[i]);
  }
  return rows;
}

Flow run_mma(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  ++x.grid().matrix_instructions;
  auto const& mma = in.as<MmaDetail>();
  Operand const& result = in.operands[0];
  Operand const& left = in.operands[1];
  Operand const& right = in.operands[2];
  TileA a;
  TileB b;
  TileD d;
  read_fragment_a(mma.a, rows_of(x, left).data(), int(left.elements.size()), a);
  read_fragment_b(mma.b, rows_of(x, right).data(), int(right.elements.size()), b);
  read_accumulators(mma.accumulator, rows_of(x, in.operands[3]).data(), d);
  multiply_accumulate(a, b, mma.depth, mma.accumulator, d);
  std::array<Row*, 4> rows{};
  for (size_t i = 0; i < result.elements.size(); ++i) {
    rows[i] = &x.out(result.elements[i]);
  }
  write_accumulators(mma.accumulator, d, rows.data());
  return Flow::kNext;
}

// K in elements, of a shape that the types have.
int take_depth(Modifiers& modifiers, Type element) {
  static constexpr int kDepths[] = {4, 8, 16, 32};
  int const depth = kDepths[modifiers.take_one({"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32"})];
  int const bytes = depth * bytes_of(element);
  if (bytes != kGranuleBytes && bytes != 2 * kGranuleBytes) {
    modifiers.unsupported("this type has no such shape");
  }
  return depth;
}

void bind_mma(Instruction& in) {
  Modifiers modifiers(in);
  if (!modifiers.take("sync") || !modifiers.take("aligned")) {
    modifiers.unsupported("only mma.sync.aligned and dense operands are known");
  }
  Type const c_type = modifiers.take_type();
  Type const b_type = modifiers.take_type();
  Type const a_type = modifiers.take_type();
  Type const d_type = modifiers.take_type();
  bool const saturate = modifiers.take("satfinite");
  auto const accumulator = accumulator_format(a_type, b_type, d_type, saturate);
  if (!accumulator || c_type != d_type) {
    modifiers.unsupported("these types do not go together, or are not known");
  }
  modifiers.take_one({"row"});
  modifiers.take_one({"col"});
  auto detail = std::make_unique<MmaDetail>();
  detail->depth = take_depth(modifiers, a_type);
  modifiers.finish();
  detail->a = element_format(a_type);
  detail->b = element_format(b_type);
  detail->accumulator = *accumulator;
  size_t const granules = size_t(detail->depth / detail->a.per_granule);
  size_t const results = size_t(accumulator_registers(*accumulator));
  size_t const expected[] = {results, 2 * granules, granules, results};
  bool const fits = in.operands.size() == 4 &&
                    std::equal(in.operands.begin(), in.operands.end(), expected,
                               [](Operand const& o, size_t n) { return o.elements.size() == n; });
  if (!fits) {
    modifiers.unsupported("the operands are not vectors of the right lengths");
  }
  in.detail = std::move(detail);
  in.run = run_mma;
  in.splits = true;
}

// ---- 8x8 matrices of 16-bit elements --------------------------------------------------------------

// Lane 4r+c holds elements 2c and 2c+1 of row r.
constexpr int kMatrixRows = 8;
using Matrix = std::array<uint32_t, kWarpSize>;

Matrix transposed(Matrix const& matrix) {
  uint16_t from[kMatrixRows][kMatrixRows];
  uint16_t to[kMatrixRows][kMatrixRows];
  std::memcpy(from, matrix.data(), sizeof from);
  for (int row = 0; row < kMatrixRows; ++row) {
    for (int column = 0; column < kMatrixRows; ++column) {
      to[column][row] = from[row][column];
    }
  }
  Matrix result;
  std::memcpy(result.data(), to, sizeof to);
  return result;
}

void store(Matrix const& matrix, Row& row) {
  std::copy(matrix.begin(), matrix.end(), row.lane.begin());
}

Matrix load(Row const& row) {
  Matrix matrix;
  std::transform(row.lane.begin(), row.lane.end(), matrix.begin(),
                 [](uint64_t value) { return uint32_t(value); });
  return matrix;
}

struct MatrixMove : Detail {
  int count = 1;  // of matrices
  bool transpose = false;
  bool generic = false;  // the addresses are generic
};

// Where row `row` of matrix `index` lies: lane 8 index + row has its address.
char* touch_row(Execution const& x, Instruction const& in, Operand const& memory, int index,
                int row, Access access) {
  int const lane = kMatrixRows * index + row;
  char const* const name = in.opcode[0].c_str();
  uint64_t const given = x.address(memory, lane);
  uint32_t const address = in.as<MatrixMove>().generic ? to_shared(given) : uint32_t(given);
  Thread& thread = x.thread(lane);
  machine().subject = &thread;
  if (address % kGranuleBytes != 0) {
    fault("align",
          "%s: row %d of matrix %d (lane %d) is at shared offset 0x%x, not a multiple of %d", name,
          row, index, lane, shared_offset(address), kGranuleBytes);
  }
  return touch_shared(plain_actor(thread), address, kGranuleBytes, access, name, false);
}

Flow run_ldmatrix(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  auto const& move = in.as<MatrixMove>();
  std::array<Matrix, 4> matrices;  // all of them first: a result may be the address register
  for (int i = 0; i < move.count; ++i) {
    for (int row = 0; row < kMatrixRows; ++row) {
      char const* const bytes = touch_row(x, in, in.operands[1], i, row, Access::kRead);
      std::memcpy(&matrices[size_t(i)][size_t(4 * row)], bytes, kGranuleBytes);
    }
  }
  for (int i = 0; i < move.count; ++i) {
    Matrix const& matrix = matrices[size_t(i)];
    store(move.transpose ? transposed(matrix) : matrix, x.out(in.operands[0].elements[size_t(i)]));
  }
  return Flow::kNext;
}

Flow run_stmatrix(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  auto const& move = in.as<MatrixMove>();
  for (int i = 0; i < move.count; ++i) {
    Matrix const held = load(x.in(in.operands[1].elements[size_t(i)]));
    Matrix const matrix = move.transpose ? transposed(held) : held;
    for (int row = 0; row < kMatrixRows; ++row) {
      char* const bytes = touch_row(x, in, in.operands[0], i, row, Access::kWrite);
      std::memcpy(bytes, &matrix[size_t(4 * row)], kGranuleBytes);
    }
  }
  return Flow::kNext;
}

Flow run_movmatrix(Execution& x, Instruction const& in, Lanes) {
  if (!whole_warp(x, in)) {
    return Flow::kConverge;
  }
  store(transposed(load(x.in(in.operands[1]))), x.out(in.operands[0]));
  return Flow::kNext;
}

// What the three have in common.
void take_matrix(Modifiers& modifiers) {
  if (!modifiers.take("sync") || !modifiers.take("aligned")) {
    modifiers.unsupported("the .sync.aligned form is expected");
  }
  modifiers.take_one({"m8n8"});
  modifiers.take_one({"b16"});
}

void bind_matrix_move(Instruction& in, Handler handler, size_t vector_operand) {
  Modifiers modifiers(in);
  take_matrix(modifiers);
  auto detail = std::make_unique<MatrixMove>();
  detail->count = 1 << modifiers.take_one({"x1", "x2", "x4"});
  detail->transpose = modifiers.take("trans");
  detail->generic = modifiers.take_any({"shared", "shared::cta"}) < 0;
  modifiers.finish();
  bool const fits = in.operands.size() == 2 &&
                    in.operands[vector_operand].elements.size() == size_t(detail->count) &&
                    in.operands[1 - vector_operand].is(Operand::Kind::kMemory);
  if (!fits) {
    modifiers.unsupported("the operands are not an address and a vector of the right length");
  }
  in.detail = std::move(detail);
  in.run = handler;
  in.splits = true;
}

void bind_ldmatrix(Instruction& in) { bind_matrix_move(in, run_ldmatrix, 0); }
void bind_stmatrix(Instruction& in) { bind_matrix_move(in, run_stmatrix, 1); }

void bind_movmatrix(Instruction& in) {
  Modifiers modifiers(in);
  take_matrix(modifiers);
  if (!modifiers.take("trans") || in.operands.size() != 2) {
    modifiers.unsupported("movmatrix transposes one register into another");
  }
  modifiers.finish();
  in.run = run_movmatrix;
  in.splits = true;
}

}  // namespace

void add_matrix(BinderTable& table) {
  table["mma"] = bind_mma;
  table["ldmatrix"] = bind_ldmatrix;
  table["stmatrix"] = bind_stmatrix;
  table["movmatrix"] = bind_movmatrix;
}

}  // namespace hostsim
