// The arithmetic of mma.sync and wgmma. Both consist of one kind of tile per warp,
// D[16 x 8] = A[16 x K] B[K x 8] + C, and keep it in registers in the same places; a wgmma has a row
// of such tiles. Elements come in granules of 16 bytes along K, or for transposed operands of wgmma
// along the rows of A or the columns of B.
#pragma once

#include <cstdint>
#include <optional>

#include "instruction.h"
#include "number.h"

namespace hostsim {

inline constexpr int kTileRows = 16;
inline constexpr int kTileColumns = 8;
inline constexpr int kMaxTileDepth = 32;  // K: 32 bytes at most
inline constexpr int kGranuleBytes = 16;

// Elements as doubles, in which a product of two of them is exact.
struct TileA {
  alignas(64) double at[kTileRows][kMaxTileDepth];  // [row][k]
};
struct TileB {
  alignas(64) double at[kMaxTileDepth][kTileColumns];  // [k][column]
};
struct TileD {
  alignas(64) double at[kTileRows][kTileColumns];
};

// The format of A's or B's elements.
struct ElementFormat {
  void (*decode)(char const* granule, double* elements) = nullptr;
  int per_granule = 0;
};
ElementFormat element_format(Type type);  // bf16, f16, tf32, e4m3, e5m2, s8, u8

enum class Accumulator : uint8_t { kF32, kF16, kS32, kSaturatedS32 };

// Registers of a tile of D: f16 comes in pairs.
inline int accumulator_registers(Accumulator format) { return format == Accumulator::kF16 ? 2 : 4; }

// Whether the matrix instructions multiply `a` by `b` into accumulators of type `d`, and as what.
std::optional<Accumulator> accumulator_format(Type a, Type b, Type d, bool saturate);

// Registers of a fragment: register r of lane 4g+t holds 4 bytes of K from 16(r/2) + 4t on, of row
// g + 8(r%2); for B, 4 bytes of K from 16r + 4t on, of column g.
void read_fragment_a(ElementFormat format, Row const* const* registers, int num_registers,
                     TileA& a);
void read_fragment_b(ElementFormat format, Row const* const* registers, int num_registers,
                     TileB& b);

// Lane 4g+t holds columns 2t and 2t+1 of row g, then of row g+8.
void read_accumulators(Accumulator format, Row const* const* registers, TileD& d);
void write_accumulators(Accumulator format, TileD const& d, Row* const* registers);

// D += A B, with `depth` elements of K: in double, so that writing the accumulators rounds once; or
// by the adder of Settings::mma_fraction_bits.
void multiply_accumulate(TileA const& a, TileB const& b, int depth, Accumulator format, TileD& d);

}  // namespace hostsim
