// Arithmetic of floats: add, sub, mul, fma, neg, abs, min, max, copysign, testp of f64, f32, f16, bf16
// and packed pairs. Division, roots and transcendental functions are in ops_float_functions.cpp.
#include "ops_float.h"

#include "arithmetic.h"
#include "float_arithmetic.h"
#include "float_format.h"

namespace hostsim {

namespace {

// ---- add, sub, mul: {.rnd}{.ftz}{.sat}; fma also {.relu} in half precision --------------------------

void take_sat(Modifiers& modifiers, FloatForm& form) {
  bool const has_sat = form.type != Type::kF64 && !form.is_bfloat();
  form.saturate = has_sat && modifiers.take("sat");
}

template <template <Rounding> class Function>
void bind_binary(Instruction& in) {
  Modifiers modifiers(in);
  FloatForm form = take_rounded_form(modifiers);
  take_sat(modifiers, form);
  modifiers.finish();
  if (form.is_half()) {
    // f32 has more than twice the bits, so that its rounding does no harm.
    using Nearest = Function<Rounding::kNearestEven>;
    bind_elementwise(in, for_half<2, Nearest, Finishes::kYes>(form));
  } else {
    bind_elementwise(in, for_rounding<2, Function, Finishes::kYes>(form));
  }
}

void bind_fma(Instruction& in) {
  Modifiers modifiers(in);
  FloatForm form = take_rounded_form(modifiers);
  take_sat(modifiers, form);
  form.rectify = form.is_half() && !form.saturate && modifiers.take("relu");
  modifiers.finish();
  bind_elementwise(in, form.is_half() ? for_half<3, FmaToOdd, Finishes::kYes>(form)
                                      : for_rounding<3, Fma, Finishes::kYes>(form));
}

// ---- neg, abs ---------------------------------------------------------------------------------------

template <class Function>
void bind_sign(Instruction& in) {
  Modifiers modifiers(in);
  FloatForm const form = take_unrounded_form(modifiers);
  modifiers.finish();
  bind_elementwise(in, for_float<1, Function>(form));
}

// ---- min, max: {.ftz}{.NaN}{.xorsign.abs} of two sources, {.ftz}{.NaN}{.abs} of three ---------------

template <class Extremum>
void bind_two(Instruction& in, Modifiers& modifiers, FloatForm const& form) {
  bool const xor_sign = modifiers.take("xorsign");
  if (xor_sign) {
    modifiers.take_one({"abs"});
  }
  modifiers.finish();
  bind_elementwise(
      in, xor_sign ? for_float<2, XorSignAbs<Extremum>>(form) : for_float<2, Extremum>(form));
}

template <class Extremum>
void bind_three(Instruction& in, Modifiers& modifiers, FloatForm const& form) {
  using Function = OfThree<Extremum>;
  bool const magnitudes = modifiers.take("abs");
  modifiers.finish();
  bind_elementwise(
      in, magnitudes ? for_float<3, OfMagnitudes<Function>>(form) : for_float<3, Function>(form));
}

template <class Extremum>
void bind_by_sources(Instruction& in, Modifiers& modifiers, FloatForm const& form) {
  if (in.operands.size() == 4) {
    bind_three<Extremum>(in, modifiers, form);
  } else {
    bind_two<Extremum>(in, modifiers, form);
  }
}

template <template <bool> class Extremum>
void bind_extremum(Instruction& in) {
  Modifiers modifiers(in);
  FloatForm const form = take_unrounded_form(modifiers);
  if (form.type == Type::kF64) {
    modifiers.finish();
    bind_elementwise(in, for_float<2, Extremum<false>>(form));
  } else if (modifiers.take("NaN")) {
    bind_by_sources<Extremum<true>>(in, modifiers, form);
  } else {
    bind_by_sources<Extremum<false>>(in, modifiers, form);
  }
}

// ---- Of the bits ------------------------------------------------------------------------------------

template <class Format>
struct CopySign {
  static uint64_t apply(uint64_t sign, uint64_t value) {
    return (value & (Format::kSign - 1)) | (sign & Format::kSign);
  }
};

void bind_copysign(Instruction& in) {
  Modifiers modifiers(in);
  bool const is_double = modifiers.take_one({"f32", "f64"}) == 1;
  modifiers.finish();
  bind_elementwise(in,
                   is_double ? elementwise<2, CopySign<F64>>() : elementwise<2, CopySign<F32>>());
}

enum class Property { kFinite, kInfinite, kNumber, kNotANumber, kNormal, kSubnormal };

template <class Format, Property kProperty>
struct Test {
  static uint64_t apply(uint64_t bits) {
    uint64_t const magnitude = bits & (Format::kSign - 1);
    bool const finite = magnitude < Format::kExponent;
    bool const nan = magnitude > Format::kExponent;
    bool const subnormal = (magnitude & Format::kExponent) == 0 && magnitude != 0;
    switch (kProperty) {
      case Property::kFinite: return finite;
      case Property::kInfinite: return !finite && !nan;
      case Property::kNumber: return !nan;
      case Property::kNotANumber: return nan;
      case Property::kNormal: return finite && !subnormal;  // zero counts as normal
      case Property::kSubnormal: return subnormal;
    }
  }
};

template <class Format>
constexpr Elementwise kTests[] = {
    elementwise<1, Test<Format, Property::kFinite>>(),
    elementwise<1, Test<Format, Property::kInfinite>>(),
    elementwise<1, Test<Format, Property::kNumber>>(),
    elementwise<1, Test<Format, Property::kNotANumber>>(),
    elementwise<1, Test<Format, Property::kNormal>>(),
    elementwise<1, Test<Format, Property::kSubnormal>>(),
};

void bind_testp(Instruction& in) {
  Modifiers modifiers(in);
  bool const is_double = modifiers.take_one({"f32", "f64"}) == 1;
  int const property =
      modifiers.take_one({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  modifiers.finish();
  bind_elementwise(in, is_double ? kTests<F64>[property] : kTests<F32>[property]);
}

}  // namespace

FloatForm take_unrounded_form(Modifiers& modifiers) {
  FloatForm form;
  form.type = modifiers.take_type();
  if (!form.is_half() && form.type != Type::kF32 && form.type != Type::kF64) {
    modifiers.unsupported("expected a floating-point type");
  }
  bool const has_ftz = form.type != Type::kF64 && !form.is_bfloat();
  form.flush = has_ftz && modifiers.take("ftz");
  return form;
}

FloatForm take_rounded_form(Modifiers& modifiers) {
  constexpr Rounding kRoundings[] = {Rounding::kNearestEven, Rounding::kZero, Rounding::kDown,
                                     Rounding::kUp};
  FloatForm form = take_unrounded_form(modifiers);
  int const rounding =
      form.is_half() ? modifiers.take_any({"rn"}) : modifiers.take_any({"rn", "rz", "rm", "rp"});
  form.rounding = kRoundings[rounding < 0 ? 0 : rounding];
  return form;
}

BinderTable const& float_arithmetic() {
  static BinderTable const table = {
      {"add", bind_binary<Add>},   {"sub", bind_binary<Sub>},   {"mul", bind_binary<Mul>},
      {"fma", bind_fma},           {"mad", bind_fma},  // fused on every GPU since sm_20
      {"div", bind_float_div},     {"neg", bind_sign<Negate>},  {"abs", bind_sign<Magnitude>},
      {"min", bind_extremum<Min>}, {"max", bind_extremum<Max>}, {"ex2", bind_float_ex2},
      {"tanh", bind_float_tanh},
  };
  return table;
}

void add_float(BinderTable& table) {
  table["copysign"] = bind_copysign;
  table["testp"] = bind_testp;
}

}  // namespace hostsim
