// Instructions that compute a lane's result from that lane's sources alone: most of PTX. An operation
// is a class with a static apply(), from the bits of the sources to the bits of the result; here are
// the loop over the lanes, and what makes operations of functions on integers.
#pragma once

#include <type_traits>
#include <utility>

#include "bind.h"
#include "machine.h"

namespace hostsim {

// A handler with one result, operand 0, and so many sources after it.
struct Elementwise {
  Handler run = nullptr;  // nullptr: there is no such instruction for the type
  int num_sources = 0;
};

// Throws Unsupported if there is no handler, or if the operands are not what it takes.
void bind_elementwise(Instruction& in, Elementwise const& handler);

template <class Op, size_t... kSource>
inline void apply_to_lanes(Execution& x, Instruction const& in, Lanes lanes,
                           std::index_sequence<kSource...>) {
  Row const* const sources[] = {&x.in(in.operands[kSource + 1])...};
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = Op::apply((*sources[kSource])[lane]...); });
}

template <class Op, int kSources>
Flow run_elementwise(Execution& x, Instruction const& in, Lanes lanes) {
  apply_to_lanes<Op>(x, in, lanes, std::make_index_sequence<size_t(kSources)>());
  return Flow::kNext;
}

template <int kSources, class Op>
constexpr Elementwise elementwise() {
  return {&run_elementwise<Op, kSources>, kSources};
}

// ---- Integers ---------------------------------------------------------------------------------------

// The bits of an integer in a register: zeros above its width.
template <class T>
inline uint64_t bits_of_integer(T value) {
  return uint64_t(std::make_unsigned_t<T>(value));
}

// The operation that Function does on values of type T.
template <class T, class Function>
struct IntegerOp {
  template <class... Bits>
  static uint64_t apply(Bits... bits) {
    return bits_of_integer(Function()(T(bits)...));
  }
};

// The same on both 16-bit halves of a register.
template <class T, class Function>
struct PackedIntegerOp {
  template <class... Bits>
  static uint64_t apply(Bits... bits) {
    uint64_t const low = bits_of_integer(T(Function()(T(bits)...)));
    uint64_t const high = bits_of_integer(T(Function()(T(bits >> 16)...)));
    return high << 16 | low;
  }
};

// The handler for integers of 16, 32 or 64 bits; untyped bits are unsigned.
template <int kSources, class Function, template <class, class> class Op = IntegerOp>
Elementwise for_integer(Type type) {
  switch (type) {
    case Type::kB16:
    case Type::kU16: return elementwise<kSources, Op<uint16_t, Function>>();
    case Type::kS16: return elementwise<kSources, Op<int16_t, Function>>();
    case Type::kB32:
    case Type::kU32: return elementwise<kSources, Op<uint32_t, Function>>();
    case Type::kS32: return elementwise<kSources, Op<int32_t, Function>>();
    case Type::kB64:
    case Type::kU64: return elementwise<kSources, Op<uint64_t, Function>>();
    case Type::kS64: return elementwise<kSources, Op<int64_t, Function>>();
    default: return {};
  }
}

// The handler for integers of 32 or 64 bits.
template <int kSources, class Function, template <class, class> class Op = IntegerOp>
Elementwise for_wide_integer(Type type) {
  return bits_of(type) < 32 ? Elementwise() : for_integer<kSources, Function, Op>(type);
}

template <int kSources, class Function>
Elementwise for_packed_integer(Type type) {
  switch (type) {
    case Type::kU16x2: return elementwise<kSources, PackedIntegerOp<uint16_t, Function>>();
    case Type::kS16x2: return elementwise<kSources, PackedIntegerOp<int16_t, Function>>();
    default: return {};
  }
}

}  // namespace hostsim
