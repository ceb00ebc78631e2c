// Moves and selections: mov, which also packs and unpacks vectors, selp, slct.
#include "elementwise.h"
#include "float_format.h"

namespace hostsim {

namespace {

template <int kBits>
uint64_t low_bits(uint64_t value) {
  return kBits == 64 ? value : value & ((uint64_t(1) << kBits % 64) - 1);
}

// ---- mov --------------------------------------------------------------------------------------------

template <int kBits>
struct Copy {
  static uint64_t apply(uint64_t value) { return low_bits<kBits>(value); }
};

Flow run_copy_predicate(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = x.predicate(in.operands[1], lane); });
  return Flow::kNext;
}

Elementwise copy(Type type) {
  switch (bits_of(type)) {
    case 1: return {&run_copy_predicate, 1};
    case 8: return elementwise<1, Copy<8>>();
    case 16: return elementwise<1, Copy<16>>();
    case 32: return elementwise<1, Copy<32>>();
    case 64: return elementwise<1, Copy<64>>();
    default: return {};
  }
}

// mov d, {a, b, ...}: the first element has the lowest bits.
template <int kBits>
Flow run_pack(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0]);
  auto const& elements = in.operands[1].elements;
  for_each_lane(lanes, [&](int lane) {
    uint64_t packed = 0;
    for (size_t i = 0; i < elements.size(); ++i) {
      packed |= low_bits<kBits>(x.in(elements[i])[lane]) << kBits * i;
    }
    result[lane] = packed;
  });
  return Flow::kNext;
}

template <int kBits>
Flow run_unpack(Execution& x, Instruction const& in, Lanes lanes) {
  Row const packed = x.in(in.operands[1]);  // a copy: it may be one of the results
  int shift = 0;
  for (Operand const& element : in.operands[0].elements) {
    Row& result = x.out(element);
    for_each_lane(lanes, [&](int lane) { result[lane] = low_bits<kBits>(packed[lane] >> shift); });
    shift += kBits;
  }
  return Flow::kNext;
}

Handler pack(int bits) {
  switch (bits) {
    case 8: return &run_pack<8>;
    case 16: return &run_pack<16>;
    case 32: return &run_pack<32>;
    default: return nullptr;
  }
}

Handler unpack(int bits) {
  switch (bits) {
    case 8: return &run_unpack<8>;
    case 16: return &run_unpack<16>;
    case 32: return &run_unpack<32>;
    default: return nullptr;
  }
}

void bind_mov(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  if (in.operands.size() != 2) {
    modifiers.unsupported("expected two operands");
  }
  bool const unpacks = in.operands[0].is(Operand::Kind::kVector);
  bool const packs = in.operands[1].is(Operand::Kind::kVector);
  if (!packs && !unpacks) {
    bind_elementwise(in, copy(type));
    return;
  }
  int const count = int(in.operands[unpacks ? 0 : 1].elements.size());
  int const bits = bits_of(type) / count;
  if (bits_of(type) > 64 || bits * count != bits_of(type) || (packs && unpacks)) {
    modifiers.unsupported("vectors of such elements are not supported");
  }
  in.run = packs ? pack(bits) : unpack(bits);
  if (in.run == nullptr) {
    modifiers.unsupported("vectors of such elements are not supported");
  }
}

// ---- selp, slct -------------------------------------------------------------------------------------

template <int kBits>
Flow run_selp(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& a = x.in(in.operands[1]);
  Row const& b = x.in(in.operands[2]);
  Row const& condition = x.in(in.operands[3]);
  bool const negated = in.operands[3].negated;
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    bool const first = (condition[lane] != 0) != negated;
    result[lane] = low_bits<kBits>(first ? a[lane] : b[lane]);
  });
  return Flow::kNext;
}

void bind_selp(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  switch (bits_of(type)) {
    case 16: bind_elementwise(in, {&run_selp<16>, 3}); return;
    case 32: bind_elementwise(in, {&run_selp<32>, 3}); return;
    case 64: bind_elementwise(in, {&run_selp<64>, 3}); return;
    default: modifiers.unsupported("expected a type of 16, 32 or 64 bits");
  }
}

// a if c >= 0, else b; also b if c is NaN.
template <int kBits, class Format>
struct Select {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t c) {
    return low_bits<kBits>(Format::load(c) >= 0 ? a : b);
  }
};

struct SignedFormat {
  static int32_t load(uint64_t bits) { return int32_t(bits); }
};

template <class Format>
Elementwise select(Type type) {
  switch (bits_of(type)) {
    case 16: return elementwise<3, Select<16, Format>>();
    case 32: return elementwise<3, Select<32, Format>>();
    case 64: return elementwise<3, Select<64, Format>>();
    default: return {};
  }
}

void bind_slct(Instruction& in) {
  Modifiers modifiers(in);
  Type const condition = modifiers.take_type();
  Type const type = modifiers.take_type();
  bool const flush = condition == Type::kF32 && modifiers.take("ftz");
  modifiers.finish();
  if (condition == Type::kS32) {
    bind_elementwise(in, select<SignedFormat>(type));
  } else if (condition == Type::kF32) {
    bind_elementwise(in, flush ? select<Flushed<F32>>(type) : select<F32>(type));
  } else {
    modifiers.unsupported("expected .s32 or .f32");
  }
}

}  // namespace

void add_move(BinderTable& table) {
  table["mov"] = bind_mov;
  table["selp"] = bind_selp;
  table["slct"] = bind_slct;
}

}  // namespace hostsim
