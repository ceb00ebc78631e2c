// Floating-point instructions. A kernel is called as its opcode, with _ for each dot.
#include "elementwise.cuh"

#define ARITHMETIC(rounding, suffix)                                 \
  BINARY(add_##suffix, F32, "add." #rounding ".f32", F32, F32)       \
  BINARY(sub_##suffix, F32, "sub." #rounding ".f32", F32, F32)       \
  BINARY(mul_##suffix, F32, "mul." #rounding ".f32", F32, F32)       \
  BINARY(div_##suffix, F32, "div." #rounding ".f32", F32, F32)       \
  TERNARY(fma_##suffix, F32, "fma." #rounding ".f32", F32, F32, F32) \
  UNARY(rcp_##suffix, F32, "rcp." #rounding ".f32", F32)             \
  UNARY(sqrt_##suffix, F32, "sqrt." #rounding ".f32", F32)

ARITHMETIC(rn, rn)
ARITHMETIC(rz, rz)
ARITHMETIC(rm, rm)
ARITHMETIC(rp, rp)

BINARY(add_ftz, F32, "add.ftz.f32", F32, F32)
BINARY(mul_sat, F32, "mul.sat.f32", F32, F32)
BINARY(min_f32, F32, "min.f32", F32, F32)
BINARY(max_f32, F32, "max.f32", F32, F32)
BINARY(max_NaN_f32, F32, "max.NaN.f32", F32, F32)
UNARY(neg_f32, F32, "neg.f32", F32)
UNARY(abs_f32, F32, "abs.f32", F32)
BINARY(copysign_f32, F32, "copysign.f32", F32, F32)

UNARY(ex2_approx, F32, "ex2.approx.f32", F32)
UNARY(lg2_approx, F32, "lg2.approx.f32", F32)
UNARY(rcp_approx, F32, "rcp.approx.f32", F32)
UNARY(rsqrt_approx, F32, "rsqrt.approx.f32", F32)
UNARY(sqrt_approx, F32, "sqrt.approx.f32", F32)
UNARY(tanh_approx, F32, "tanh.approx.f32", F32)
UNARY(sin_approx, F32, "sin.approx.f32", F32)
UNARY(cos_approx, F32, "cos.approx.f32", F32)
BINARY(div_approx, F32, "div.approx.f32", F32, F32)

BINARY(add_f64, F64, "add.rn.f64", F64, F64)
TERNARY(fma_f64, F64, "fma.rn.f64", F64, F64, F64)
UNARY(sqrt_f64, F64, "sqrt.rn.f64", F64)

// 16 bits, alone and in pairs.
#define SMALL(type)                                                 \
  BINARY(add_##type, B16, "add.rn." #type, B16, B16)                \
  BINARY(mul_##type, B16, "mul.rn." #type, B16, B16)                \
  TERNARY(fma_##type, B16, "fma.rn." #type, B16, B16, B16)          \
  BINARY(max_##type, B16, "max." #type, B16, B16)                   \
  BINARY(add_##type##x2, B32, "add.rn." #type "x2", B32, B32)       \
  BINARY(mul_##type##x2, B32, "mul.rn." #type "x2", B32, B32)       \
  TERNARY(fma_##type##x2, B32, "fma.rn." #type "x2", B32, B32, B32) \
  BINARY(max_##type##x2, B32, "max." #type "x2", B32, B32)          \
  UNARY(neg_##type##x2, B32, "neg." #type "x2", B32)

SMALL(f16)
SMALL(bf16)

// Comparisons that differ when a NaN is involved.
#define COMPARE(op)          \
  BINARY_ASM(setp_##op, B32, \
             "{ .reg .pred p; setp." #op ".f32 p, %1, %2; selp.u32 %0, 1, 0, p; }", F32, F32)

COMPARE(eq)
COMPARE(ne)
COMPARE(lt)
COMPARE(ge)
COMPARE(equ)
COMPARE(neu)
COMPARE(ltu)
COMPARE(num)
COMPARE(nan)
