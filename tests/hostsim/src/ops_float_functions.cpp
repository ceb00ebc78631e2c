// Division, reciprocals, roots and transcendental functions of f32 and f64. Where PTX only promises an
// approximation, results are those of the host's functions, which are at least as exact: a kernel that
// needs the errors of a real GPU to be right is not tested here.
#include <cmath>

#include "arithmetic.h"
#include "float_arithmetic.h"
#include "float_format.h"
#include "ops_float.h"

namespace hostsim {

namespace {

// ---- div, rcp, sqrt: correctly rounded, or approximate ----------------------------------------------

// div.approx multiplies with the reciprocal of the divisor, which above 2^126 is flushed to zero.
struct DivideApproximately {
  float operator()(float a, float b) const {
    float const size = std::fabs(b);
    if (size > 0x1p126f && !std::isinf(size)) {
      return a * std::copysign(0.0f, b);
    }
    return a / b;
  }
};

// The .approx forms of f32 are within 1 ulp, so the nearest will do.
template <template <Rounding> class Function>
void bind_unary(Instruction& in) {
  Modifiers modifiers(in);
  bool const approximate = modifiers.take("approx");
  FloatForm const form =
      approximate ? take_unrounded_form(modifiers) : take_rounded_form(modifiers);
  modifiers.finish();
  if (approximate && form.type != Type::kF32) {
    modifiers.unsupported("expected .f32");
  }
  bind_elementwise(in, for_rounding<1, Function>(form));
}

// ---- .approx.ftz.f64: only the upper halves of the sources and results count ------------------------

template <class Function>
struct UpperHalfOp {
  static constexpr uint64_t kUpper = uint64_t(0xffff'ffff) << 32;
  static uint64_t apply(uint64_t bits) {
    double const source = Flushed<F64>::load(bits & kUpper);
    return Flushed<F64>::store(Function()(source)) & kUpper;
  }
};

struct InverseRoot {
  float operator()(float a) const { return float(1 / std::sqrt(double(a))); }
  double operator()(double a) const { return 1 / std::sqrt(a); }
};

void bind_rcp(Instruction& in) {
  if (in.opcode == std::vector<std::string>{"rcp", "approx", "ftz", "f64"}) {
    bind_elementwise(in, elementwise<1, UpperHalfOp<Reciprocal<Rounding::kNearestEven>>>());
  } else {
    bind_unary<Reciprocal>(in);
  }
}

void bind_rsqrt(Instruction& in) {
  if (in.opcode == std::vector<std::string>{"rsqrt", "approx", "ftz", "f64"}) {
    bind_elementwise(in, elementwise<1, UpperHalfOp<InverseRoot>>());
    return;
  }
  Modifiers modifiers(in);
  modifiers.take_one({"approx"});
  FloatForm const form = take_unrounded_form(modifiers);
  modifiers.finish();
  bind_elementwise(in, for_single_or_double<1, InverseRoot>(form));
}

// ---- Approximate functions -------------------------------------------------------------------

struct Sine {
  template <class Value>
  Value operator()(Value a) const {
    return std::sin(a);
  }
};

struct Cosine {
  template <class Value>
  Value operator()(Value a) const {
    return std::cos(a);
  }
};

struct Log2 {
  template <class Value>
  Value operator()(Value a) const {
    return std::log2(a);
  }
};

struct Exp2 {
  template <class Value>
  Value operator()(Value a) const {
    return std::exp2(a);
  }
};

struct HyperbolicTangent {
  template <class Value>
  Value operator()(Value a) const {
    return std::tanh(a);
  }
};

template <class Function>
void bind_approximate(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"approx"});
  FloatForm const form = take_unrounded_form(modifiers);
  modifiers.finish();
  if (form.type != Type::kF32) {
    modifiers.unsupported("expected .f32");
  }
  bind_elementwise(in, for_single_or_double<1, Function>(form));
}

// ex2 and tanh, which half precision has too. The only .ftz of bf16 is that of ex2.
template <class Function>
void bind_half_approximate(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"approx"});
  FloatForm form = take_unrounded_form(modifiers);
  form.flush = form.flush || (form.is_bfloat() && in.opcode[0] == "ex2" && modifiers.take("ftz"));
  modifiers.finish();
  bind_elementwise(in, for_half<1, Function>(form));
}

template <class Function>
void bind_by_precision(Instruction& in) {
  if (in.opcode.back() == "f32") {
    bind_approximate<Function>(in);
  } else {
    bind_half_approximate<Function>(in);
  }
}

}  // namespace

void bind_float_div(Instruction& in) {
  Modifiers modifiers(in);
  bool const approximate = modifiers.take("approx");
  bool const full_range = modifiers.take("full");  // within 2 ulp: the nearest will do
  FloatForm const form =
      full_range || approximate ? take_unrounded_form(modifiers) : take_rounded_form(modifiers);
  modifiers.finish();
  if (form.type != Type::kF32 && (approximate || full_range)) {
    modifiers.unsupported("expected .f32");
  }
  bind_elementwise(in, approximate ? for_single_or_double<2, DivideApproximately>(form)
                                   : for_rounding<2, Div>(form));
}

void bind_float_ex2(Instruction& in) { bind_by_precision<Exp2>(in); }
void bind_float_tanh(Instruction& in) { bind_by_precision<HyperbolicTangent>(in); }

void add_float_functions(BinderTable& table) {
  table["rcp"] = bind_rcp;
  table["sqrt"] = bind_unary<SquareRoot>;
  table["rsqrt"] = bind_rsqrt;
  table["sin"] = bind_approximate<Sine>;
  table["cos"] = bind_approximate<Cosine>;
  table["lg2"] = bind_approximate<Log2>;
}

}  // namespace hostsim
