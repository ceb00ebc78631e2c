#include "reduction.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace hostsim {
namespace {

template <class Element, Element (*combine)(Element, Element)>
void reduce(char* memory, char const* source, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(Element)) {
    Element ours;
    Element theirs;
    std::memcpy(&ours, memory + i, sizeof ours);
    std::memcpy(&theirs, source + i, sizeof theirs);
    ours = combine(ours, theirs);
    std::memcpy(memory + i, &ours, sizeof ours);
  }
}

// ---- Integers -----------------------------------------------------------------------------------

template <class T>
T add(T a, T b) {
  return T(a + b);
}
template <class T>
T smaller(T a, T b) {
  return std::min(a, b);
}
template <class T>
T larger(T a, T b) {
  return std::max(a, b);
}
template <class T>
T both(T a, T b) {
  return a & b;
}
template <class T>
T either(T a, T b) {
  return a | b;
}
template <class T>
T exclusive(T a, T b) {
  return a ^ b;
}
// A counter modulo b + 1.
uint32_t increment(uint32_t a, uint32_t b) { return a >= b ? 0 : a + 1; }
uint32_t decrement(uint32_t a, uint32_t b) { return a == 0 || a > b ? b : a - 1; }

// ---- Floating point -----------------------------------------------------------------------------

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
// cp.reduce.async.bulk.add.f32 "flushes subnormal inputs and results to sign-preserving zero".
float add_flushed(float a, float b) { return flush(flush(a) + flush(b)); }

// The sum of two halves is exact in double precision, or so far from a tie that it rounds the same.
template <Type type>
uint16_t add_half(uint16_t a, uint16_t b) {
  return uint16_t(encode(type, decode(type, a) + decode(type, b)));
}

// min and max: a NaN loses against a number, and +0 > -0.
template <Type type, bool wants_larger>
uint16_t choose_half(uint16_t a, uint16_t b) {
  double const x = decode(type, a);
  double const y = decode(type, b);
  if (std::isnan(x) || std::isnan(y)) {
    return !std::isnan(x) ? a : !std::isnan(y) ? b : uint16_t(kNanHalf);
  }
  bool const a_is_less = x < y || (x == y && std::signbit(x) && !std::signbit(y));
  return a_is_less == wants_larger ? b : a;
}

// ---- Choosing -----------------------------------------------------------------------------------

Reduction find_add(Type type) {
  switch (type) {
    case Type::kU32:
    case Type::kS32: return reduce<uint32_t, add<uint32_t>>;
    case Type::kU64: return reduce<uint64_t, add<uint64_t>>;
    case Type::kF32: return reduce<float, add_flushed>;
    case Type::kF64: return reduce<double, add<double>>;
    case Type::kF16: return reduce<uint16_t, add_half<Type::kF16>>;
    case Type::kBF16: return reduce<uint16_t, add_half<Type::kBF16>>;
    default: return nullptr;
  }
}

Reduction find_min(Type type) {
  switch (type) {
    case Type::kU32: return reduce<uint32_t, smaller<uint32_t>>;
    case Type::kS32: return reduce<int32_t, smaller<int32_t>>;
    case Type::kU64: return reduce<uint64_t, smaller<uint64_t>>;
    case Type::kS64: return reduce<int64_t, smaller<int64_t>>;
    case Type::kF16: return reduce<uint16_t, choose_half<Type::kF16, false>>;
    case Type::kBF16: return reduce<uint16_t, choose_half<Type::kBF16, false>>;
    default: return nullptr;
  }
}

Reduction find_max(Type type) {
  switch (type) {
    case Type::kU32: return reduce<uint32_t, larger<uint32_t>>;
    case Type::kS32: return reduce<int32_t, larger<int32_t>>;
    case Type::kU64: return reduce<uint64_t, larger<uint64_t>>;
    case Type::kS64: return reduce<int64_t, larger<int64_t>>;
    case Type::kF16: return reduce<uint16_t, choose_half<Type::kF16, true>>;
    case Type::kBF16: return reduce<uint16_t, choose_half<Type::kBF16, true>>;
    default: return nullptr;
  }
}

template <uint32_t (*narrow)(uint32_t, uint32_t), uint64_t (*wide)(uint64_t, uint64_t)>
Reduction find_bitwise(Type type) {
  switch (type) {
    case Type::kB32:
    case Type::kU32:
    case Type::kS32: return reduce<uint32_t, narrow>;
    case Type::kB64:
    case Type::kU64:
    case Type::kS64: return reduce<uint64_t, wide>;
    default: return nullptr;
  }
}

}  // namespace

ReductionKind take_reduction_kind(Modifiers& modifiers) {
  return ReductionKind(modifiers.take_one({"add", "min", "max", "inc", "dec", "and", "or", "xor"}));
}

Reduction find_reduction(ReductionKind kind, Type type) {
  switch (kind) {
    case ReductionKind::kAdd: return find_add(type);
    case ReductionKind::kMin: return find_min(type);
    case ReductionKind::kMax: return find_max(type);
    case ReductionKind::kInc: return type == Type::kU32 ? reduce<uint32_t, increment> : nullptr;
    case ReductionKind::kDec: return type == Type::kU32 ? reduce<uint32_t, decrement> : nullptr;
    case ReductionKind::kAnd: return find_bitwise<both<uint32_t>, both<uint64_t>>(type);
    case ReductionKind::kOr: return find_bitwise<either<uint32_t>, either<uint64_t>>(type);
    case ReductionKind::kXor: return find_bitwise<exclusive<uint32_t>, exclusive<uint64_t>>(type);
  }
  return nullptr;
}

bool is_defined_in_shared(ReductionKind kind, Type type) {
  if (is_float(type) || find_reduction(kind, type) == nullptr) {
    return false;
  }
  return bits_of(type) == 32 || (kind == ReductionKind::kAdd && type == Type::kU64);
}

}  // namespace hostsim
