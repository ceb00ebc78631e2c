// Every form of cvt between single values. A kernel is called after the types that it converts, the
// result's first, and perhaps what its forms have in common; it has a column of results for each form.
#include "elementwise.cuh"

// One instruction, of the kernel's types: cvt<modifiers>.<to>.<from>.
#define FORM(D, A, types, modifiers)                                                            \
  {                                                                                             \
    D d;                                                                                        \
    asm volatile("cvt" modifiers "." types " %0, %1;" : "=" REGISTER_##D(d) : REGISTER_##A(a)); \
    args.output<D>(0)[column++] = d;                                                            \
  }

#define FORMS(name, num_forms, A, forms) \
  MICRO_KERNEL(name) {                   \
    FOR_EACH_ELEMENT(i) {                \
      A const a = args.input<A>(0)[i];   \
      int column = num_forms * i;        \
      forms                              \
    }                                    \
  }

#define TWO_FORMS(name, D, A, types, first, second) \
  FORMS(name, 2, A, FORM(D, A, types, first) FORM(D, A, types, second))

#define FOUR_FORMS(name, D, A, types, first, second, third, fourth)                 \
  FORMS(name, 4, A,                                                                 \
        FORM(D, A, types, first) FORM(D, A, types, second) FORM(D, A, types, third) \
            FORM(D, A, types, fourth))

#define FROM_WIDER_INTEGERS(CONVERSION, to, D) \
  CONVERSION(to, D, u16, B16)                  \
  CONVERSION(to, D, s16, B16)                  \
  CONVERSION(to, D, u32, B32)                  \
  CONVERSION(to, D, s32, B32)                  \
  CONVERSION(to, D, u64, B64)                  \
  CONVERSION(to, D, s64, B64)

#define FROM_EVERY_INTEGER(CONVERSION, to, D) \
  CONVERSION(to, D, u8, B16)                  \
  CONVERSION(to, D, s8, B16)                  \
  FROM_WIDER_INTEGERS(CONVERSION, to, D)

#define TO_WIDER_INTEGERS(CONVERSION, from, A) \
  CONVERSION(u16, B16, from, A)                \
  CONVERSION(s16, B16, from, A)                \
  CONVERSION(u32, B32, from, A)                \
  CONVERSION(s32, B32, from, A)                \
  CONVERSION(u64, B64, from, A)                \
  CONVERSION(s64, B64, from, A)

#define TO_EVERY_INTEGER(CONVERSION, from, A) \
  CONVERSION(u8, B16, from, A)                \
  CONVERSION(s8, B16, from, A)                \
  TO_WIDER_INTEGERS(CONVERSION, from, A)

// ---- Integers ---------------------------------------------------------------------------------------

#define INTEGER_TO_INTEGER(to, D, from, A) FORMS(to##_##from, 1, A, FORM(D, A, #to "." #from, ""))

TO_EVERY_INTEGER(INTEGER_TO_INTEGER, u8, B16)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, s8, B16)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, u16, B16)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, s16, B16)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, u32, B32)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, s32, B32)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, u64, B64)
TO_EVERY_INTEGER(INTEGER_TO_INTEGER, s64, B64)

// Only where the result's type does not hold all values of the source's.
#define SATURATING(to, D, from, A) FORMS(to##_##from##_sat, 1, A, FORM(D, A, #to "." #from, ".sat"))

SATURATING(s8, B16, u8, B16)
SATURATING(u8, B16, s8, B16)
SATURATING(u32, B32, s8, B16)
SATURATING(u8, B16, u16, B16)
SATURATING(s16, B16, u16, B16)
SATURATING(s8, B16, s16, B16)
SATURATING(u64, B64, s16, B16)
SATURATING(u16, B16, u32, B32)
SATURATING(s32, B32, u32, B32)
SATURATING(u8, B16, s32, B32)
SATURATING(s16, B16, s32, B32)
SATURATING(u64, B64, s32, B32)
SATURATING(u32, B32, u64, B64)
SATURATING(s64, B64, u64, B64)
SATURATING(s32, B32, s64, B64)
SATURATING(u64, B64, s64, B64)

// ---- Floating point and integers --------------------------------------------------------------------

#define INTEGER_TO_FLOAT(to, D, from, A) \
  FOUR_FORMS(to##_##from, D, A, #to "." #from, ".rn", ".rz", ".rm", ".rp")

FROM_EVERY_INTEGER(INTEGER_TO_FLOAT, f16, B16)
FROM_WIDER_INTEGERS(INTEGER_TO_FLOAT, bf16, B16)
FROM_EVERY_INTEGER(INTEGER_TO_FLOAT, f32, B32)
FROM_EVERY_INTEGER(INTEGER_TO_FLOAT, f64, B64)

#define INTEGER_TO_FRACTION(to, D, from, A) \
  TWO_FORMS(to##_##from##_sat, D, A, #to "." #from, ".rn.sat", ".rz.sat")

INTEGER_TO_FRACTION(f16, B16, s16, B16)
INTEGER_TO_FRACTION(f32, B32, s32, B32)
INTEGER_TO_FRACTION(f64, B64, u64, B64)

#define FLOAT_TO_INTEGER(to, D, from, A) \
  FOUR_FORMS(to##_##from, D, A, #to "." #from, ".rni", ".rzi", ".rmi", ".rpi")

TO_EVERY_INTEGER(FLOAT_TO_INTEGER, f16, B16)
TO_WIDER_INTEGERS(FLOAT_TO_INTEGER, bf16, B16)
TO_EVERY_INTEGER(FLOAT_TO_INTEGER, f32, B32)
TO_EVERY_INTEGER(FLOAT_TO_INTEGER, f64, B64)

TWO_FORMS(s32_f32_ftz, B32, B32, "s32.f32", ".rmi.ftz", ".rpi.ftz")
TWO_FORMS(u64_f32_ftz, B64, B32, "u64.f32", ".rmi.ftz", ".rpi.ftz")

// ---- Floating point ---------------------------------------------------------------------------------

#define NARROWING(to, D, from, A)                                          \
  FOUR_FORMS(to##_##from, D, A, #to "." #from, ".rn", ".rz", ".rm", ".rp") \
  FOUR_FORMS(to##_##from##_sat, D, A, #to "." #from, ".rn.sat", ".rz.sat", ".rm.sat", ".rp.sat")

NARROWING(f16, B16, f32, B32)
NARROWING(f16, B16, f64, B64)
NARROWING(f32, B32, f64, B64)
FOUR_FORMS(f16_f32_ftz, B16, B32, "f16.f32", ".rn.ftz", ".rz.ftz", ".rm.ftz", ".rp.ftz")
FOUR_FORMS(f32_f64_ftz, B32, B64, "f32.f64", ".rn.ftz", ".rz.ftz", ".rm.ftz", ".rp.ftz.sat")
FOUR_FORMS(bf16_f32, B16, B32, "bf16.f32", ".rn", ".rz", ".rn.relu", ".rz.relu")
TWO_FORMS(f16_f32_relu, B16, B32, "f16.f32", ".rn.relu", ".rz.relu")
FOUR_FORMS(bf16_f64, B16, B64, "bf16.f64", ".rn", ".rz", ".rm", ".rp")
FOUR_FORMS(bf16_f16, B16, B16, "bf16.f16", ".rn", ".rz", ".rm", ".rp")
FOUR_FORMS(f16_bf16, B16, B16, "f16.bf16", ".rn", ".rz", ".rm", ".rp")
FORMS(tf32_f32, 5, B32,
      FORM(B32, B32, "tf32.f32", ".rna") FORM(B32, B32, "tf32.f32", ".rn")
          FORM(B32, B32, "tf32.f32", ".rz") FORM(B32, B32, "tf32.f32", ".rn.relu")
              FORM(B32, B32, "tf32.f32", ".rz.relu"))

#define WIDENING(to, D, from, A) TWO_FORMS(to##_##from, D, A, #to "." #from, "", ".sat")

WIDENING(f32, B32, f16, B16)
WIDENING(f64, B64, f16, B16)
WIDENING(f64, B64, f32, B32)
FORMS(f32_bf16, 1, B16, FORM(B32, B16, "f32.bf16", ""))
FORMS(f64_bf16, 1, B16, FORM(B64, B16, "f64.bf16", ""))
TWO_FORMS(f64_f32_ftz, B64, B32, "f64.f32", ".ftz", ".ftz.sat")

// To a whole number of the same format.
#define TO_INTEGRAL(type, T) \
  FOUR_FORMS(type##_##type, T, T, #type "." #type, ".rni", ".rzi", ".rmi", ".rpi")

TO_INTEGRAL(f16, B16)
TO_INTEGRAL(f32, B32)
TO_INTEGRAL(f64, B64)
TWO_FORMS(f32_f32_ftz, B32, B32, "f32.f32", ".rpi.ftz", ".rmi.ftz.sat")

// ---- Pairs of integers ------------------------------------------------------------------------------

BINARY(pack_u16, B32, "cvt.pack.sat.u16.s32", B32, B32)
BINARY(pack_s16, B32, "cvt.pack.sat.s16.s32", B32, B32)
TERNARY(pack_u8, B32, "cvt.pack.sat.u8.s32.b32", B32, B32, B32)
TERNARY(pack_s8, B32, "cvt.pack.sat.s8.s32.b32", B32, B32, B32)
