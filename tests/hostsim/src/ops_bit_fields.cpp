// Counting and finding bits, extracting and inserting fields of bits, permuting bytes.
#include <algorithm>
#include <bit>

#include "elementwise.h"

namespace hostsim {

namespace {

template <class T>
constexpr uint32_t kWidth = 8 * sizeof(T);

// ---- Counts and positions; results are u32 ----------------------------------------------------------

constexpr uint32_t kNotFound = ~0u;

struct PopulationCount {
  template <class T>
  uint32_t operator()(T a) const {
    return uint32_t(std::popcount(a));
  }
};

struct LeadingZeros {
  template <class T>
  uint32_t operator()(T a) const {
    return uint32_t(std::countl_zero(a));
  }
};

// The highest bit that differs from the sign: its position, or how far it is from the top.
template <bool kShiftAmount>
struct FindHighest {
  template <class T>
  uint32_t operator()(T a) const {
    auto const bits = std::make_unsigned_t<T>(a < 0 ? ~a : a);
    if (bits == 0) {
      return kNotFound;
    }
    uint32_t const zeros = uint32_t(std::countl_zero(bits));
    return kShiftAmount ? zeros : kWidth<T> - 1 - zeros;
  }
};

// The n-th set bit from bit `base` on, which counts; upwards for n > 0, downwards for n < 0.
struct FindNth {
  static uint64_t apply(uint64_t mask, uint64_t base, uint64_t offset) {
    int const n = int(int32_t(offset));
    int position = int(int32_t(base));
    int left = std::max(n < 0 ? -n : n, 1);
    while (position >= 0 && position < 32) {
      left -= int(mask >> position & 1);
      if (left == 0) {
        return uint64_t(position);
      }
      if (n == 0) {
        break;
      }
      position += n > 0 ? 1 : -1;
    }
    return kNotFound;
  }
};

struct Reverse {
  template <class T>
  T operator()(T a) const {
    uint64_t bits = a;
    bits = swap_groups(bits, 1, 0x5555'5555'5555'5555);
    bits = swap_groups(bits, 2, 0x3333'3333'3333'3333);
    bits = swap_groups(bits, 4, 0x0f0f'0f0f'0f0f'0f0f);
    return T(__builtin_bswap64(bits) >> (64 - kWidth<T>));
  }

 private:
  // Exchanges neighbouring groups of `size` bits; `low` has the lower ones.
  static uint64_t swap_groups(uint64_t bits, int size, uint64_t low) {
    return (bits & low) << size | (bits >> size & low);
  }
};

template <class Function>
void bind_unary(Instruction& in) {
  Modifiers modifiers(in);
  bool const is_64 = modifiers.take_one({"b32", "b64"}) == 1;
  modifiers.finish();
  bind_elementwise(in, is_64 ? elementwise<1, IntegerOp<uint64_t, Function>>()
                             : elementwise<1, IntegerOp<uint32_t, Function>>());
}

void bind_bfind(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const shift_amount = modifiers.take("shiftamt");
  modifiers.finish();
  bind_elementwise(in, shift_amount ? for_wide_integer<1, FindHighest<true>>(type)
                                    : for_wide_integer<1, FindHighest<false>>(type));
}

void bind_fns(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"b32"});
  modifiers.finish();
  bind_elementwise(in, elementwise<3, FindNth>());
}

// ---- Fields -----------------------------------------------------------------------------------------

// Positions and lengths of fields are the low 8 bits of a u32.
struct Extract {
  template <class T>
  T operator()(T a, uint8_t position, uint8_t length) const {
    if (length == 0) {
      return 0;
    }
    T const shifted = position < kWidth<T> ? T(a >> position) : a < 0 ? T(-1) : T(0);
    if (length >= kWidth<T>) {
      return shifted;
    }
    uint32_t const unused = kWidth<T> - length;  // the shift back extends the field's sign
    return T(T(std::make_unsigned_t<T>(shifted) << unused) >> unused);
  }
};

struct Insert {
  template <class T>
  T operator()(T field, T into, uint8_t position, uint8_t length) const {
    if (position >= kWidth<T>) {
      return into;
    }
    T const ones = length < kWidth<T> ? T((T(1) << length) - 1) : T(~T(0));
    T const mask = T(ones << position);
    return T((into & ~mask) | (T(field << position) & mask));
  }
};

template <class T, class Function>
struct ExtractOp {
  static uint64_t apply(uint64_t a, uint64_t position, uint64_t length) {
    return bits_of_integer(Function()(T(a), uint8_t(position), uint8_t(length)));
  }
};

template <class T, class Function>
struct InsertOp {
  static uint64_t apply(uint64_t field, uint64_t into, uint64_t position, uint64_t length) {
    return bits_of_integer(Function()(T(field), T(into), uint8_t(position), uint8_t(length)));
  }
};

void bind_bfe(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  bind_elementwise(in, for_wide_integer<3, Extract, ExtractOp>(type));
}

void bind_bfi(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  bind_elementwise(in, for_wide_integer<4, Insert, InsertOp>(type));
}

// The low `size` bits of a, sign- or zero-extended. Sizes of 32 and more keep all of a with .clamp,
// and count modulo 32 with .wrap.
template <bool kClamp, bool kSigned>
struct Extend {
  static uint64_t apply(uint64_t a, uint64_t size) {
    if (kClamp && uint32_t(size) >= 32) {
      return uint32_t(a);
    }
    uint32_t const n = size & 31;
    uint32_t const high = ~0u << n;
    bool const negative = kSigned && n != 0 && (a >> (n - 1) & 1) != 0;
    return (uint32_t(a) & ~high) | (negative ? high : 0);
  }
};

void bind_szext(Instruction& in) {
  Modifiers modifiers(in);
  bool const clamp = modifiers.take_one({"clamp", "wrap"}) == 0;
  bool const is_signed = modifiers.take_one({"s32", "u32"}) == 0;
  modifiers.finish();
  if (clamp) {
    bind_elementwise(in, is_signed ? elementwise<2, Extend<true, true>>()
                                   : elementwise<2, Extend<true, false>>());
  } else {
    bind_elementwise(in, is_signed ? elementwise<2, Extend<false, true>>()
                                   : elementwise<2, Extend<false, false>>());
  }
}

// `width` ones from bit `position` on; what does not fit in 32 bits is cut off.
template <bool kClamp>
struct Mask {
  static uint64_t apply(uint64_t position, uint64_t width) {
    uint64_t const start = kClamp ? std::min<uint64_t>(uint32_t(position), 32) : position & 31;
    uint64_t const ones = kClamp ? std::min<uint64_t>(uint32_t(width), 32) : width & 31;
    return uint32_t(((uint64_t(1) << ones) - 1) << start);
  }
};

void bind_bmsk(Instruction& in) {
  Modifiers modifiers(in);
  bool const clamp = modifiers.take_one({"clamp", "wrap"}) == 0;
  modifiers.take_one({"b32"});
  modifiers.finish();
  bind_elementwise(in, clamp ? elementwise<2, Mask<true>>() : elementwise<2, Mask<false>>());
}

// ---- Bytes ------------------------------------------------------------------------------------------

// Four selectors of 4 bits, the lowest for the lowest byte of the result: which of the 8 bytes of
// {b, a}, or with its high bit, that byte's sign eight times.
uint64_t permute(uint64_t a, uint64_t b, uint64_t selectors) {
  uint64_t const bytes = b << 32 | uint32_t(a);
  uint64_t result = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t const selector = selectors >> 4 * i;
    uint64_t const byte = bytes >> 8 * (selector & 7) & 0xff;
    uint64_t const sign = 0xff * (byte >> 7);
    result |= ((selector & 8) != 0 ? sign : byte) << 8 * i;
  }
  return result;
}

struct Permute {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t selectors) {
    return permute(a, b, selectors);
  }
};

// The special modes choose among four sets of selectors by the two low bits of c.
enum class PermuteMode { kForward, kBackward, kReplicate8, kEdgeLeft, kEdgeRight, kReplicate16 };

constexpr uint16_t kSelectors[][4] = {
    {0x3210, 0x4321, 0x5432, 0x6543},  // f4e
    {0x5670, 0x6701, 0x7012, 0x0123},  // b4e
    {0x0000, 0x1111, 0x2222, 0x3333},  // rc8
    {0x3210, 0x3211, 0x3222, 0x3333},  // ecl
    {0x0000, 0x1110, 0x2210, 0x3210},  // ecr
    {0x1010, 0x3232, 0x1010, 0x3232},  // rc16
};

template <PermuteMode kMode>
struct PermuteByMode {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t c) {
    return permute(a, b, kSelectors[size_t(kMode)][c & 3]);
  }
};

void bind_prmt(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"b32"});
  int const mode = modifiers.take_any({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
  modifiers.finish();
  if (mode < 0) {
    bind_elementwise(in, elementwise<3, Permute>());
    return;
  }
  constexpr Elementwise kByMode[] = {
      elementwise<3, PermuteByMode<PermuteMode::kForward>>(),
      elementwise<3, PermuteByMode<PermuteMode::kBackward>>(),
      elementwise<3, PermuteByMode<PermuteMode::kReplicate8>>(),
      elementwise<3, PermuteByMode<PermuteMode::kEdgeLeft>>(),
      elementwise<3, PermuteByMode<PermuteMode::kEdgeRight>>(),
      elementwise<3, PermuteByMode<PermuteMode::kReplicate16>>(),
  };
  bind_elementwise(in, kByMode[mode]);
}

}  // namespace

void add_bit_fields(BinderTable& table) {
  table["popc"] = bind_unary<PopulationCount>;
  table["clz"] = bind_unary<LeadingZeros>;
  table["brev"] = bind_unary<Reverse>;
  table["bfind"] = bind_bfind;
  table["fns"] = bind_fns;
  table["bfe"] = bind_bfe;
  table["bfi"] = bind_bfi;
  table["szext"] = bind_szext;
  table["bmsk"] = bind_bmsk;
  table["prmt"] = bind_prmt;
}

}  // namespace hostsim
