// Every form of floating-point arithmetic. A kernel is called as its opcode, with _ for each dot.
#include "elementwise.cuh"

// ---- f32 and f64 ------------------------------------------------------------------------------------

#define ARITHMETIC_F32(rounding, suffix, modifiers)                            \
  BINARY(add_##suffix##_f32, F32, "add." #rounding modifiers ".f32", F32, F32) \
  BINARY(sub_##suffix##_f32, F32, "sub." #rounding modifiers ".f32", F32, F32) \
  BINARY(mul_##suffix##_f32, F32, "mul." #rounding modifiers ".f32", F32, F32) \
  TERNARY(fma_##suffix##_f32, F32, "fma." #rounding modifiers ".f32", F32, F32, F32)

#define QUOTIENTS_F32(rounding, suffix, modifiers)                             \
  BINARY(div_##suffix##_f32, F32, "div." #rounding modifiers ".f32", F32, F32) \
  UNARY(rcp_##suffix##_f32, F32, "rcp." #rounding modifiers ".f32", F32)       \
  UNARY(sqrt_##suffix##_f32, F32, "sqrt." #rounding modifiers ".f32", F32)

#define ARITHMETIC_F64(rounding)                                             \
  BINARY(add_##rounding##_f64, F64, "add." #rounding ".f64", F64, F64)       \
  BINARY(sub_##rounding##_f64, F64, "sub." #rounding ".f64", F64, F64)       \
  BINARY(mul_##rounding##_f64, F64, "mul." #rounding ".f64", F64, F64)       \
  TERNARY(fma_##rounding##_f64, F64, "fma." #rounding ".f64", F64, F64, F64) \
  BINARY(div_##rounding##_f64, F64, "div." #rounding ".f64", F64, F64)       \
  UNARY(rcp_##rounding##_f64, F64, "rcp." #rounding ".f64", F64)             \
  UNARY(sqrt_##rounding##_f64, F64, "sqrt." #rounding ".f64", F64)

#define ALL_OF_A_ROUNDING(rounding)                        \
  ARITHMETIC_F32(rounding, rounding, "")                   \
  ARITHMETIC_F32(rounding, rounding##_ftz, ".ftz")         \
  ARITHMETIC_F32(rounding, rounding##_sat, ".sat")         \
  ARITHMETIC_F32(rounding, rounding##_ftz_sat, ".ftz.sat") \
  QUOTIENTS_F32(rounding, rounding, "")                    \
  QUOTIENTS_F32(rounding, rounding##_ftz, ".ftz")          \
  ARITHMETIC_F64(rounding)

ALL_OF_A_ROUNDING(rn)
ALL_OF_A_ROUNDING(rz)
ALL_OF_A_ROUNDING(rm)
ALL_OF_A_ROUNDING(rp)

// ---- f16 and bf16, alone and in pairs ---------------------------------------------------------------

#define HALF(suffix, type, T, modifiers)                         \
  BINARY(add_rn_##suffix, T, "add.rn" modifiers "." #type, T, T) \
  BINARY(sub_rn_##suffix, T, "sub.rn" modifiers "." #type, T, T) \
  BINARY(mul_rn_##suffix, T, "mul.rn" modifiers "." #type, T, T) \
  TERNARY(fma_rn_##suffix, T, "fma.rn" modifiers "." #type, T, T, T)

#define HALF_FORMS(type, T)                 \
  HALF(ftz_##type, type, T, ".ftz")         \
  HALF(sat_##type, type, T, ".sat")         \
  HALF(ftz_sat_##type, type, T, ".ftz.sat") \
  TERNARY(fma_rn_ftz_relu_##type, T, "fma.rn.ftz.relu." #type, T, T, T)

HALF(f16, f16, B16, "")
HALF(f16x2, f16x2, B32, "")
HALF(bf16, bf16, B16, "")
HALF(bf16x2, bf16x2, B32, "")
HALF_FORMS(f16, B16)
HALF_FORMS(f16x2, B32)
TERNARY(fma_rn_relu_f16, B16, "fma.rn.relu.f16", B16, B16, B16)
TERNARY(fma_rn_relu_f16x2, B32, "fma.rn.relu.f16x2", B32, B32, B32)
TERNARY(fma_rn_relu_bf16, B16, "fma.rn.relu.bf16", B16, B16, B16)
TERNARY(fma_rn_relu_bf16x2, B32, "fma.rn.relu.bf16x2", B32, B32, B32)

// ---- Minimum, maximum, signs ------------------------------------------------------------------------

#define EXTREMA(suffix, type, T, modifiers)                \
  BINARY(min_##suffix, T, "min" modifiers "." #type, T, T) \
  BINARY(max_##suffix, T, "max" modifiers "." #type, T, T)

#define EXTREMA_FORMS(type, T)                         \
  EXTREMA(type, type, T, "")                           \
  EXTREMA(NaN_##type, type, T, ".NaN")                 \
  EXTREMA(xorsign_abs_##type, type, T, ".xorsign.abs") \
  EXTREMA(NaN_xorsign_abs_##type, type, T, ".NaN.xorsign.abs")

EXTREMA_FORMS(f32, F32)
EXTREMA_FORMS(f16, B16)
EXTREMA_FORMS(bf16, B16)
EXTREMA_FORMS(f16x2, B32)
EXTREMA_FORMS(bf16x2, B32)
EXTREMA(f64, f64, F64, "")
EXTREMA(ftz_f32, f32, F32, ".ftz")
EXTREMA(ftz_NaN_f32, f32, F32, ".ftz.NaN")
EXTREMA(ftz_f16, f16, B16, ".ftz")
EXTREMA(ftz_f16x2, f16x2, B32, ".ftz")

#define SIGNS(suffix, type, T, modifiers)              \
  UNARY(neg_##suffix, T, "neg" modifiers "." #type, T) \
  UNARY(abs_##suffix, T, "abs" modifiers "." #type, T)

SIGNS(f32, f32, F32, "")
SIGNS(ftz_f32, f32, F32, ".ftz")
SIGNS(f64, f64, F64, "")
SIGNS(f16, f16, B16, "")
SIGNS(ftz_f16, f16, B16, ".ftz")
SIGNS(f16x2, f16x2, B32, "")
SIGNS(bf16, bf16, B16, "")
SIGNS(bf16x2, bf16x2, B32, "")
BINARY(copysign_f32, F32, "copysign.f32", F32, F32)
BINARY(copysign_f64, F64, "copysign.f64", F64, F64)

// ---- Comparisons ------------------------------------------------------------------------------------

// p + 2 q for comparison number `index`, out0 is (comparison, element). Scalars of 16 bits have no q.
#define COMPARE(index, opcode, results, T)                                       \
  FOR_EACH_ELEMENT(i) {                                                          \
    asm volatile(                                                                \
        "{.reg .pred p, q;\n"                                                    \
        "setp.ne.u32 q, 0, 0;\n" opcode " " results                              \
        ", %1, %2;\n"                                                            \
        "selp.u32 %0, 1, 0, p;\n"                                                \
        "@q or.b32 %0, %0, 2;}"                                                  \
        : "=r"(args.output<B32>(0)[index * args.n[0] + i])                       \
        : REGISTER_##T(args.input<T>(0)[i]), REGISTER_##T(args.input<T>(1)[i])); \
  }

#define COMPARISONS(suffix, type, results, T) \
  MICRO_KERNEL(setp_##suffix) {               \
    COMPARE(0, "setp.eq" type, results, T)    \
    COMPARE(1, "setp.ne" type, results, T)    \
    COMPARE(2, "setp.lt" type, results, T)    \
    COMPARE(3, "setp.le" type, results, T)    \
    COMPARE(4, "setp.gt" type, results, T)    \
    COMPARE(5, "setp.ge" type, results, T)    \
    COMPARE(6, "setp.equ" type, results, T)   \
    COMPARE(7, "setp.neu" type, results, T)   \
    COMPARE(8, "setp.ltu" type, results, T)   \
    COMPARE(9, "setp.leu" type, results, T)   \
    COMPARE(10, "setp.gtu" type, results, T)  \
    COMPARE(11, "setp.geu" type, results, T)  \
    COMPARE(12, "setp.num" type, results, T)  \
    COMPARE(13, "setp.nan" type, results, T)  \
  }

COMPARISONS(f32, ".f32", "p|q", F32)
COMPARISONS(ftz_f32, ".ftz.f32", "p|q", F32)
COMPARISONS(f64, ".f64", "p|q", F64)
COMPARISONS(f16, ".f16", "p", B16)
COMPARISONS(ftz_f16, ".ftz.f16", "p", B16)
COMPARISONS(bf16, ".bf16", "p", B16)
COMPARISONS(f16x2, ".f16x2", "p|q", B32)
COMPARISONS(bf16x2, ".bf16x2", "p|q", B32)

BINARY(set_lt_f32_f32, F32, "set.lt.f32.f32", F32, F32)
BINARY(set_gtu_u32_f64, B32, "set.gtu.u32.f64", F64, F64)
BINARY(set_ge_f16_f16, B16, "set.ge.f16.f16", B16, B16)
BINARY(set_lt_bf16_bf16, B16, "set.lt.bf16.bf16", B16, B16)
BINARY(set_eq_f16x2_f16x2, B32, "set.eq.f16x2.f16x2", B32, B32)
BINARY(set_neu_bf16x2_bf16x2, B32, "set.neu.bf16x2.bf16x2", B32, B32)
BINARY(set_lt_u32_f16x2, B32, "set.lt.u32.f16x2", B32, B32)

#define PROPERTY(name, type, T)         \
  UNARY_ASM(testp_##name##_##type, B32, \
            "{.reg .pred p; testp." #name "." #type " p, %1; selp.u32 %0, 1, 0, p;}", T)

#define PROPERTIES(type, T)     \
  PROPERTY(finite, type, T)     \
  PROPERTY(infinite, type, T)   \
  PROPERTY(number, type, T)     \
  PROPERTY(notanumber, type, T) \
  PROPERTY(normal, type, T)     \
  PROPERTY(subnormal, type, T)

PROPERTIES(f32, F32)
PROPERTIES(f64, F64)

// ---- Approximations ---------------------------------------------------------------------------------

UNARY(ex2_approx_f32, F32, "ex2.approx.f32", F32)
UNARY(lg2_approx_f32, F32, "lg2.approx.f32", F32)
UNARY(rcp_approx_f32, F32, "rcp.approx.f32", F32)
UNARY(rsqrt_approx_f32, F32, "rsqrt.approx.f32", F32)
UNARY(sqrt_approx_f32, F32, "sqrt.approx.f32", F32)
UNARY(tanh_approx_f32, F32, "tanh.approx.f32", F32)
UNARY(sin_approx_f32, F32, "sin.approx.f32", F32)
UNARY(cos_approx_f32, F32, "cos.approx.f32", F32)
BINARY(div_approx_f32, F32, "div.approx.f32", F32, F32)
UNARY(ex2_approx_ftz_f32, F32, "ex2.approx.ftz.f32", F32)
UNARY(lg2_approx_ftz_f32, F32, "lg2.approx.ftz.f32", F32)
UNARY(sqrt_approx_ftz_f32, F32, "sqrt.approx.ftz.f32", F32)
UNARY(rsqrt_approx_ftz_f32, F32, "rsqrt.approx.ftz.f32", F32)
UNARY(rcp_approx_ftz_f32, F32, "rcp.approx.ftz.f32", F32)
BINARY(div_full_f32, F32, "div.full.f32", F32, F32)
BINARY(div_approx_ftz_f32, F32, "div.approx.ftz.f32", F32, F32)
UNARY(rcp_approx_ftz_f64, F64, "rcp.approx.ftz.f64", F64)
UNARY(rsqrt_approx_ftz_f64, F64, "rsqrt.approx.ftz.f64", F64)
UNARY(rsqrt_approx_f64, F64, "rsqrt.approx.f64", F64)
UNARY(ex2_approx_f16, B16, "ex2.approx.f16", B16)
UNARY(ex2_approx_f16x2, B32, "ex2.approx.f16x2", B32)
UNARY(ex2_approx_ftz_bf16, B16, "ex2.approx.ftz.bf16", B16)
UNARY(ex2_approx_ftz_bf16x2, B32, "ex2.approx.ftz.bf16x2", B32)
UNARY(tanh_approx_f16, B16, "tanh.approx.f16", B16)
UNARY(tanh_approx_f16x2, B32, "tanh.approx.f16x2", B32)
UNARY(tanh_approx_bf16, B16, "tanh.approx.bf16", B16)
UNARY(tanh_approx_bf16x2, B32, "tanh.approx.bf16x2", B32)
