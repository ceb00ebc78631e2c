// The forms that floating-point instructions share, and the choice of a handler by form.
#pragma once

#include "float_format.h"

namespace hostsim {

struct FloatForm {
  Type type = Type::kF32;
  Rounding rounding = Rounding::kNearestEven;
  bool flush = false;     // .ftz
  bool saturate = false;  // .sat
  bool rectify = false;   // .relu

  bool is_bfloat() const { return type == Type::kBF16 || type == Type::kBF16x2; }
  bool is_half() const { return is_bfloat() || type == Type::kF16 || type == Type::kF16x2; }
};

// The type, which must be a floating-point one, and {.ftz} where the type has it.
FloatForm take_unrounded_form(Modifiers& modifiers);
// The type and {.rn, .rz, .rm, .rp}{.ftz}.
FloatForm take_rounded_form(Modifiers& modifiers);

// Whether an instruction has .sat and .relu.
enum class Finishes { kNo, kYes };

template <int kSources, Finishes kFinishes, class Function, template <class, class, class> class Op,
          class Format>
Elementwise for_finish(FloatForm const& form) {
  if constexpr (kFinishes == Finishes::kYes) {
    if (form.saturate) {
      return elementwise<kSources, Op<Format, Function, Saturated>>();
    }
    if (form.rectify) {
      return elementwise<kSources, Op<Format, Function, Rectified>>();
    }
  }
  return elementwise<kSources, Op<Format, Function, Unchanged>>();
}

template <int kSources, Finishes kFinishes, class Function, template <class, class, class> class Op,
          class Format>
Elementwise for_flush(FloatForm const& form) {
  return form.flush ? for_finish<kSources, kFinishes, Function, Op, Flushed<Format>>(form)
                    : for_finish<kSources, kFinishes, Function, Op, Format>(form);
}

// Of f16, bf16, f16x2, bf16x2.
template <int kSources, class Function, Finishes kFinishes = Finishes::kNo>
Elementwise for_half(FloatForm const& form) {
  switch (form.type) {
    case Type::kF16: return for_flush<kSources, kFinishes, Function, FloatOp, F16>(form);
    case Type::kBF16: return for_flush<kSources, kFinishes, Function, FloatOp, BF16>(form);
    case Type::kF16x2: return for_flush<kSources, kFinishes, Function, PackedFloatOp, F16>(form);
    case Type::kBF16x2: return for_flush<kSources, kFinishes, Function, PackedFloatOp, BF16>(form);
    default: return {};
  }
}

// Of f32 and f64.
template <int kSources, class Function, Finishes kFinishes = Finishes::kNo>
Elementwise for_single_or_double(FloatForm const& form) {
  switch (form.type) {
    case Type::kF64: return elementwise<kSources, FloatOp<F64, Function>>();
    case Type::kF32: return for_flush<kSources, kFinishes, Function, FloatOp, F32>(form);
    default: return {};
  }
}

// Of any type.
template <int kSources, class Function, Finishes kFinishes = Finishes::kNo>
Elementwise for_float(FloatForm const& form) {
  return form.is_half() ? for_half<kSources, Function, kFinishes>(form)
                        : for_single_or_double<kSources, Function, kFinishes>(form);
}

// Of f32 and f64, in any rounding mode.
template <int kSources, template <Rounding> class Function, Finishes kFinishes = Finishes::kNo>
Elementwise for_rounding(FloatForm const& form) {
  switch (form.rounding) {
    case Rounding::kNearestEven:
      return for_single_or_double<kSources, Function<Rounding::kNearestEven>, kFinishes>(form);
    case Rounding::kZero:
      return for_single_or_double<kSources, Function<Rounding::kZero>, kFinishes>(form);
    case Rounding::kDown:
      return for_single_or_double<kSources, Function<Rounding::kDown>, kFinishes>(form);
    case Rounding::kUp:
      return for_single_or_double<kSources, Function<Rounding::kUp>, kFinishes>(form);
    default: return {};
  }
}

// In ops_float_functions.cpp, of opcodes that have no other binder.
void bind_float_div(Instruction& in);
void bind_float_ex2(Instruction& in);
void bind_float_tanh(Instruction& in);

}  // namespace hostsim
