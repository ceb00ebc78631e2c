#include "matrix_tile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "machine.h"

namespace hostsim {
namespace {

// ---- Elements -------------------------------------------------------------------------------------

double value_of_bf16(uint16_t bits) { return as_float(uint32_t(bits) << 16); }

// An f16 moved to a float's fields lacks only the difference of the exponents' biases: a product
// puts that right, of subnormals too, exactly. Infinity and NaN keep the largest exponent.
double value_of_f16(uint16_t bits) {
  float const scaled = as_float(uint32_t(bits & 0x7fff) << 13) * 0x1p112f;
  uint32_t const largest_exponent = (bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  uint32_t const sign = uint32_t(bits & 0x8000) << 16;
  return as_float(bits_of_float(scaled) | largest_exponent | sign);
}

// Matrix instructions ignore the 13 bits that a float has more than a tf32.
double value_of_tf32(uint32_t bits) { return as_float(bits & 0xffffe000); }

double value_of_s8(uint8_t bits) { return int8_t(bits); }
double value_of_u8(uint8_t bits) { return bits; }

template <class Bits, double (*kValue)(Bits)>
void decode_granule(char const* granule, double* elements) {
  Bits bits[kGranuleBytes / sizeof(Bits)];
  std::memcpy(bits, granule, kGranuleBytes);
  for (size_t i = 0; i < std::size(bits); ++i) {
    elements[i] = kValue(bits[i]);
  }
}

template <Type kType>
void decode_float_bytes(char const* granule, double* elements) {
  static std::array<double, 256> const values = [] {
    std::array<double, 256> of_code{};
    for (uint32_t code = 0; code < 256; ++code) {
      of_code[code] = decode(kType, code);
    }
    return of_code;
  }();
  for (int i = 0; i < kGranuleBytes; ++i) {
    elements[i] = values[uint8_t(granule[i])];
  }
}

// ---- Sums -----------------------------------------------------------------------------------------

// Two rows at a time, so that additions need not wait for one another.
void add_products(TileA const& a, TileB const& b, int depth, TileD& d) {
  for (int row = 0; row < kTileRows; row += 2) {
    double upper[kTileColumns] = {};
    double lower[kTileColumns] = {};
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < kTileColumns; ++column) {
        upper[column] += a.at[row][k] * b.at[k][column];
        lower[column] += a.at[row + 1][k] * b.at[k][column];
      }
    }
    for (int column = 0; column < kTileColumns; ++column) {
      d.at[row][column] += upper[column];
      d.at[row + 1][column] += lower[column];
    }
  }
}

int exponent_of(double value) {
  int exponent = std::numeric_limits<int>::min();
  if (value != 0) {
    std::frexp(value, &exponent);
  }
  return exponent;
}

// The adder of tensor cores as measurements describe it: all terms are aligned to the largest one,
// and what lies more than `fraction_bits` bits below its leading bit is cut off before they are added.
double truncated_sum(double const* terms, int count, int fraction_bits) {
  int largest = std::numeric_limits<int>::min();
  double plain = 0;
  for (int i = 0; i < count; ++i) {
    plain += terms[i];
    largest = std::max(largest, exponent_of(terms[i]));
  }
  if (!std::isfinite(plain) || largest == std::numeric_limits<int>::min()) {
    return plain;  // infinity, NaN or zero
  }
  double const unit = std::ldexp(1.0, largest - 1 - fraction_bits);
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    sum += std::trunc(terms[i] / unit);
  }
  return sum * unit;
}

void add_products_truncated(TileA const& a, TileB const& b, int depth, Accumulator format,
                            TileD& d) {
  int const fraction_bits = machine().settings.mma_fraction_bits;
  for (int row = 0; row < kTileRows; ++row) {
    for (int column = 0; column < kTileColumns; ++column) {
      double terms[kMaxTileDepth + 1];
      for (int k = 0; k < depth; ++k) {
        terms[k] = a.at[row][k] * b.at[k][column];
      }
      terms[depth] = d.at[row][column];
      double const sum = truncated_sum(terms, depth + 1, fraction_bits);
      bool const to_float = format == Accumulator::kF32;
      d.at[row][column] = to_float ? as_float(encode(Type::kF32, sum, Rounding::kZero)) : sum;
    }
  }
}

// ---- Accumulators ---------------------------------------------------------------------------------

uint64_t float_result(double value) {
  return std::isnan(value) ? 0x7fffffff : bits_of_float(float(value));
}

uint64_t integer_result(double value) { return uint32_t(int64_t(value)); }

uint64_t saturated_result(double value) {
  using Limits = std::numeric_limits<int32_t>;
  return uint32_t(int32_t(std::clamp(value, double(Limits::min()), double(Limits::max()))));
}

template <uint64_t (*kResult)(double)>
void write_words(TileD const& d, Row* const* registers) {
  for (int r = 0; r < 4; ++r) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      int const row = lane / 4 + 8 * (r / 2);
      (*registers[r])[lane] = kResult(d.at[row][2 * (lane % 4) + r % 2]);
    }
  }
}

void write_halves(TileD const& d, Row* const* registers) {
  for (int r = 0; r < 2; ++r) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      double const* const pair = &d.at[lane / 4 + 8 * r][2 * (lane % 4)];
      (*registers[r])[lane] = encode(Type::kF16, pair[0]) | encode(Type::kF16, pair[1]) << 16;
    }
  }
}

template <double (*kValue)(uint32_t)>
void read_words(Row const* const* registers, TileD& d) {
  for (int r = 0; r < 4; ++r) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      int const row = lane / 4 + 8 * (r / 2);
      d.at[row][2 * (lane % 4) + r % 2] = kValue(uint32_t((*registers[r])[lane]));
    }
  }
}

void read_halves(Row const* const* registers, TileD& d) {
  for (int r = 0; r < 2; ++r) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      uint32_t const bits = uint32_t((*registers[r])[lane]);
      double* const pair = &d.at[lane / 4 + 8 * r][2 * (lane % 4)];
      pair[0] = value_of_f16(uint16_t(bits));
      pair[1] = value_of_f16(uint16_t(bits >> 16));
    }
  }
}

double value_of_f32(uint32_t bits) { return as_float(bits); }
double value_of_s32(uint32_t bits) { return int32_t(bits); }

// The 4 lanes of a quad together hold one granule.
void decode_quad(ElementFormat format, Row const& row, int quad, double* elements) {
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) {
    words[i] = uint32_t(row[4 * quad + i]);
  }
  format.decode(reinterpret_cast<char const*>(words), elements);
}

bool is_one_of(Type type, std::initializer_list<Type> types) {
  return std::find(types.begin(), types.end(), type) != types.end();
}

}  // namespace

ElementFormat element_format(Type type) {
  switch (type) {
    case Type::kBF16: return {decode_granule<uint16_t, value_of_bf16>, 8};
    case Type::kF16: return {decode_granule<uint16_t, value_of_f16>, 8};
    case Type::kTF32: return {decode_granule<uint32_t, value_of_tf32>, 4};
    case Type::kE4M3: return {decode_float_bytes<Type::kE4M3>, 16};
    case Type::kE5M2: return {decode_float_bytes<Type::kE5M2>, 16};
    case Type::kS8: return {decode_granule<uint8_t, value_of_s8>, 16};
    case Type::kU8: return {decode_granule<uint8_t, value_of_u8>, 16};
    default: return {};
  }
}

std::optional<Accumulator> accumulator_format(Type a, Type b, Type d, bool saturate) {
  bool const bytes = is_one_of(a, {Type::kS8, Type::kU8}) && is_one_of(b, {Type::kS8, Type::kU8});
  if (bytes && d == Type::kS32) {
    return saturate ? Accumulator::kSaturatedS32 : Accumulator::kS32;
  }
  bool const fp8 =
      is_one_of(a, {Type::kE4M3, Type::kE5M2}) && is_one_of(b, {Type::kE4M3, Type::kE5M2});
  bool const same = a == b && is_one_of(a, {Type::kBF16, Type::kF16, Type::kTF32});
  if (saturate || (!fp8 && !same)) {
    return std::nullopt;
  }
  if (d == Type::kF16 && (fp8 || a == Type::kF16)) {
    return Accumulator::kF16;
  }
  return d == Type::kF32 ? std::optional(Accumulator::kF32) : std::nullopt;
}

void read_fragment_a(ElementFormat format, Row const* const* registers, int num_registers,
                     TileA& a) {
  for (int r = 0; r < num_registers; ++r) {
    for (int quad = 0; quad < 8; ++quad) {
      decode_quad(format, *registers[r], quad,
                  &a.at[quad + 8 * (r % 2)][r / 2 * format.per_granule]);
    }
  }
}

void read_fragment_b(ElementFormat format, Row const* const* registers, int num_registers,
                     TileB& b) {
  for (int r = 0; r < num_registers; ++r) {
    for (int quad = 0; quad < kTileColumns; ++quad) {
      double elements[kGranuleBytes];
      decode_quad(format, *registers[r], quad, elements);
      for (int i = 0; i < format.per_granule; ++i) {
        b.at[r * format.per_granule + i][quad] = elements[i];
      }
    }
  }
}

void read_accumulators(Accumulator format, Row const* const* registers, TileD& d) {
  switch (format) {
    case Accumulator::kF32: return read_words<value_of_f32>(registers, d);
    case Accumulator::kF16: return read_halves(registers, d);
    case Accumulator::kS32:
    case Accumulator::kSaturatedS32: return read_words<value_of_s32>(registers, d);
  }
}

void write_accumulators(Accumulator format, TileD const& d, Row* const* registers) {
  switch (format) {
    case Accumulator::kF32: return write_words<float_result>(d, registers);
    case Accumulator::kF16: return write_halves(d, registers);
    case Accumulator::kS32: return write_words<integer_result>(d, registers);
    case Accumulator::kSaturatedS32: return write_words<saturated_result>(d, registers);
  }
}

void multiply_accumulate(TileA const& a, TileB const& b, int depth, Accumulator format, TileD& d) {
  bool const floating = format == Accumulator::kF32 || format == Accumulator::kF16;
  if (floating && machine().settings.mma_fraction_bits > 0) {
    add_products_truncated(a, b, depth, format, d);
  } else {
    add_products(a, b, depth, d);
  }
}

}  // namespace hostsim
