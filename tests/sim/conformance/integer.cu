// Integer instructions, of every type they have. A kernel is called as its opcode, with _ for each dot.
#include "elementwise.cuh"

// ---- Arithmetic -------------------------------------------------------------------------------------

// Of the types that all of it has.
#define ARITHMETIC(type, T)                           \
  BINARY(add_##type, T, "add." #type, T, T)           \
  BINARY(sub_##type, T, "sub." #type, T, T)           \
  BINARY(mul_lo_##type, T, "mul.lo." #type, T, T)     \
  BINARY(mul_hi_##type, T, "mul.hi." #type, T, T)     \
  TERNARY(mad_lo_##type, T, "mad.lo." #type, T, T, T) \
  TERNARY(mad_hi_##type, T, "mad.hi." #type, T, T, T) \
  BINARY(div_##type, T, "div." #type, T, T)           \
  BINARY(rem_##type, T, "rem." #type, T, T)           \
  BINARY(min_##type, T, "min." #type, T, T)           \
  BINARY(max_##type, T, "max." #type, T, T)           \
  TERNARY(sad_##type, T, "sad." #type, T, T, T)

ARITHMETIC(u16, B16)
ARITHMETIC(s16, B16)
ARITHMETIC(u32, B32)
ARITHMETIC(s32, B32)
ARITHMETIC(u64, B64)
ARITHMETIC(s64, B64)

#define WIDE_PRODUCTS(type, T, Wide)                     \
  BINARY(mul_wide_##type, Wide, "mul.wide." #type, T, T) \
  TERNARY(mad_wide_##type, Wide, "mad.wide." #type, T, T, Wide)

WIDE_PRODUCTS(u16, B16, B32)
WIDE_PRODUCTS(s16, B16, B32)
WIDE_PRODUCTS(u32, B32, B64)
WIDE_PRODUCTS(s32, B32, B64)

#define SIGNS(type, T)                  \
  UNARY(neg_##type, T, "neg." #type, T) \
  UNARY(abs_##type, T, "abs." #type, T)

SIGNS(s16, B16)
SIGNS(s32, B32)
SIGNS(s64, B64)

#define PRODUCTS_OF_24_BITS(type)                                 \
  BINARY(mul24_lo_##type, B32, "mul24.lo." #type, B32, B32)       \
  BINARY(mul24_hi_##type, B32, "mul24.hi." #type, B32, B32)       \
  TERNARY(mad24_lo_##type, B32, "mad24.lo." #type, B32, B32, B32) \
  TERNARY(mad24_hi_##type, B32, "mad24.hi." #type, B32, B32, B32)

PRODUCTS_OF_24_BITS(u32)
PRODUCTS_OF_24_BITS(s32)

BINARY(add_sat_s32, B32, "add.sat.s32", B32, B32)
BINARY(sub_sat_s32, B32, "sub.sat.s32", B32, B32)
TERNARY(mad_hi_sat_s32, B32, "mad.hi.sat.s32", B32, B32, B32)
TERNARY(mad24_hi_sat_s32, B32, "mad24.hi.sat.s32", B32, B32, B32)
BINARY(min_relu_s32, B32, "min.relu.s32", B32, B32)
BINARY(max_relu_s32, B32, "max.relu.s32", B32, B32)

// Pairs of 16 bits.
BINARY(add_u16x2, B32, "add.u16x2", B32, B32)
BINARY(add_s16x2, B32, "add.s16x2", B32, B32)
BINARY(min_u16x2, B32, "min.u16x2", B32, B32)
BINARY(max_u16x2, B32, "max.u16x2", B32, B32)
BINARY(min_s16x2, B32, "min.s16x2", B32, B32)
BINARY(max_s16x2, B32, "max.s16x2", B32, B32)
BINARY(min_relu_s16x2, B32, "min.relu.s16x2", B32, B32)
BINARY(max_relu_s16x2, B32, "max.relu.s16x2", B32, B32)

#define DOT_PRODUCTS(a, b)                                             \
  TERNARY(dp4a_##a##_##b, B32, "dp4a." #a "." #b, B32, B32, B32)       \
  TERNARY(dp2a_lo_##a##_##b, B32, "dp2a.lo." #a "." #b, B32, B32, B32) \
  TERNARY(dp2a_hi_##a##_##b, B32, "dp2a.hi." #a "." #b, B32, B32, B32)

DOT_PRODUCTS(u32, u32)
DOT_PRODUCTS(u32, s32)
DOT_PRODUCTS(s32, u32)
DOT_PRODUCTS(s32, s32)

// Numbers of more than one register. in0, in1: both numbers, (n, 2), low part first; out0: (n, count).
#define CARRY_CHAIN(name, T, count, assembly)                                                \
  MICRO_KERNEL(name) {                                                                       \
    FOR_EACH_ELEMENT(i) {                                                                    \
      T const* a = args.input<T>(0) + 2 * i;                                                 \
      T const* b = args.input<T>(1) + 2 * i;                                                 \
      T d[4] = {};                                                                           \
      asm volatile(assembly                                                                  \
                   : "+" REGISTER_##T(d[0]), "+" REGISTER_##T(d[1]), "+" REGISTER_##T(d[2]), \
                     "+" REGISTER_##T(d[3])                                                  \
                   : REGISTER_##T(a[0]), REGISTER_##T(a[1]), REGISTER_##T(b[0]),             \
                     REGISTER_##T(b[1]));                                                    \
      for (int k = 0; k < count; ++k) {                                                      \
        args.output<T>(0)[count * i + k] = d[k];                                             \
      }                                                                                      \
    }                                                                                        \
  }

// The third part is the carry of a sum, and of a difference the borrow, as -1.
#define CARRIES(type, T)                                                               \
  CARRY_CHAIN(carry_add_##type, T, 3,                                                  \
              "add.cc." #type " %0, %4, %6; addc.cc." #type " %1, %5, %7; addc." #type \
              " %2, 0, 0;")                                                            \
  CARRY_CHAIN(carry_sub_##type, T, 3,                                                  \
              "sub.cc." #type " %0, %4, %6; subc.cc." #type " %1, %5, %7; subc." #type \
              " %2, 0, 0;")

// The product of two numbers of two registers, in four.
#define CARRY_PRODUCT(type, T)        \
  CARRY_CHAIN(carry_mul_##type, T, 4, \
              "mul.lo." #type         \
              " %0, %4, %6;"          \
              "mul.hi." #type         \
              " %1, %4, %6;"          \
              "mad.lo.cc." #type      \
              " %1, %5, %6, %1;"      \
              "madc.hi." #type        \
              " %2, %5, %6, 0;"       \
              "mad.lo.cc." #type      \
              " %1, %4, %7, %1;"      \
              "madc.hi.cc." #type     \
              " %2, %4, %7, %2;"      \
              "addc." #type           \
              " %3, 0, 0;"            \
              "mad.lo.cc." #type      \
              " %2, %5, %7, %2;"      \
              "madc.hi." #type " %3, %5, %7, %3;")

CARRIES(u32, B32)
CARRIES(s64, B64)
CARRY_PRODUCT(u32, B32)
CARRY_PRODUCT(u64, B64)

// ---- Bits -------------------------------------------------------------------------------------------

#define LOGIC(type, T)                      \
  BINARY(and_##type, T, "and." #type, T, T) \
  BINARY(or_##type, T, "or." #type, T, T)   \
  BINARY(xor_##type, T, "xor." #type, T, T) \
  UNARY(not_##type, T, "not." #type, T)     \
  UNARY(cnot_##type, T, "cnot." #type, T)   \
  BINARY(shl_##type, T, "shl." #type, T, B32)

LOGIC(b16, B16)
LOGIC(b32, B32)
LOGIC(b64, B64)

BINARY(shr_b16, B16, "shr.b16", B16, B32)
BINARY(shr_u16, B16, "shr.u16", B16, B32)
BINARY(shr_s16, B16, "shr.s16", B16, B32)
BINARY(shr_b32, B32, "shr.b32", B32, B32)
BINARY(shr_u32, B32, "shr.u32", B32, B32)
BINARY(shr_s32, B32, "shr.s32", B32, B32)
BINARY(shr_b64, B64, "shr.b64", B64, B32)
BINARY(shr_u64, B64, "shr.u64", B64, B32)
BINARY(shr_s64, B64, "shr.s64", B64, B32)

TERNARY(shf_l_wrap_b32, B32, "shf.l.wrap.b32", B32, B32, B32)
TERNARY(shf_l_clamp_b32, B32, "shf.l.clamp.b32", B32, B32, B32)
TERNARY(shf_r_wrap_b32, B32, "shf.r.wrap.b32", B32, B32, B32)
TERNARY(shf_r_clamp_b32, B32, "shf.r.clamp.b32", B32, B32, B32)

UNARY(popc_b32, B32, "popc.b32", B32)
UNARY(popc_b64, B32, "popc.b64", B64)
UNARY(clz_b32, B32, "clz.b32", B32)
UNARY(clz_b64, B32, "clz.b64", B64)
UNARY(brev_b32, B32, "brev.b32", B32)
UNARY(brev_b64, B64, "brev.b64", B64)

#define FIND(type, T)                                           \
  UNARY(bfind_##type, B32, "bfind." #type, T)                   \
  UNARY(bfind_shiftamt_##type, B32, "bfind.shiftamt." #type, T) \
  TERNARY(bfe_##type, T, "bfe." #type, T, B32, B32)

FIND(u32, B32)
FIND(s32, B32)
FIND(u64, B64)
FIND(s64, B64)

QUATERNARY(bfi_b32, B32, "bfi.b32", B32, B32, B32, B32)
QUATERNARY(bfi_b64, B64, "bfi.b64", B64, B64, B32, B32)
TERNARY(fns_b32, B32, "fns.b32", B32, B32, B32)
BINARY(szext_clamp_u32, B32, "szext.clamp.u32", B32, B32)
BINARY(szext_clamp_s32, B32, "szext.clamp.s32", B32, B32)
BINARY(szext_wrap_u32, B32, "szext.wrap.u32", B32, B32)
BINARY(szext_wrap_s32, B32, "szext.wrap.s32", B32, B32)
BINARY(bmsk_clamp_b32, B32, "bmsk.clamp.b32", B32, B32)
BINARY(bmsk_wrap_b32, B32, "bmsk.wrap.b32", B32, B32)

TERNARY(prmt_b32, B32, "prmt.b32", B32, B32, B32)
TERNARY(prmt_b32_f4e, B32, "prmt.b32.f4e", B32, B32, B32)
TERNARY(prmt_b32_b4e, B32, "prmt.b32.b4e", B32, B32, B32)
TERNARY(prmt_b32_rc8, B32, "prmt.b32.rc8", B32, B32, B32)
TERNARY(prmt_b32_ecl, B32, "prmt.b32.ecl", B32, B32, B32)
TERNARY(prmt_b32_ecr, B32, "prmt.b32.ecr", B32, B32, B32)
TERNARY(prmt_b32_rc16, B32, "prmt.b32.rc16", B32, B32, B32)

namespace {

// Functions kFirst, kFirst + 1, .. kFirst + kCount - 1 of lop3, out[function][element].
template <int kFirst, int kCount>
__device__ void lop3_tables(Args const& args) {
  if constexpr (kCount == 1) {
    FOR_EACH_ELEMENT(i) {
      asm volatile("lop3.b32 %0, %1, %2, %3, %4;"
                   : "=r"(args.output<B32>(0)[kFirst * args.n[0] + i])
                   : "r"(args.input<B32>(0)[i]), "r"(args.input<B32>(1)[i]),
                     "r"(args.input<B32>(2)[i]), "n"(kFirst));
    }
  } else {
    lop3_tables<kFirst, kCount / 2>(args);
    lop3_tables<kFirst + kCount / 2, kCount / 2>(args);
  }
}

}  // namespace

MICRO_KERNEL(lop3_b32) { lop3_tables<0, 256>(args); }

// d|p: p in bit 0 of out1. in3: q.
#define LOP3_PREDICATE(name, combine)                                                           \
  MICRO_KERNEL(name) {                                                                          \
    FOR_EACH_ELEMENT(i) {                                                                       \
      asm volatile(                                                                             \
          "{.reg .pred p, q;\n"                                                                 \
          "setp.ne.u32 q, %5, 0;\n"                                                             \
          "lop3." combine                                                                       \
          ".b32 %0|p, %2, %3, %4, 0x80, q;\n"                                                   \
          "selp.u32 %1, 1, 0, p;}"                                                              \
          : "=r"(args.output<B32>(0)[i]), "=r"(args.output<B32>(1)[i])                          \
          : "r"(args.input<B32>(0)[i]), "r"(args.input<B32>(1)[i]), "r"(args.input<B32>(2)[i]), \
            "r"(args.input<B32>(3)[i]));                                                        \
    }                                                                                           \
  }

LOP3_PREDICATE(lop3_or_b32, "or")
LOP3_PREDICATE(lop3_and_b32, "and")

// ---- Comparison and selection -----------------------------------------------------------------------

// p|q as p + 2 q, for comparison number `index` of out0, (comparison, element).
#define COMPARE(index, opcode, T)                                                         \
  FOR_EACH_ELEMENT(i) {                                                                   \
    asm volatile("{.reg .pred p, q;\n" opcode                                             \
                 " p|q, %1, %2;\n"                                                        \
                 "selp.u32 %0, 1, 0, p;\n"                                                \
                 "@q or.b32 %0, %0, 2;}"                                                  \
                 : "=r"(args.output<B32>(0)[index * args.n[0] + i])                       \
                 : REGISTER_##T(args.input<T>(0)[i]), REGISTER_##T(args.input<T>(1)[i])); \
  }

#define COMPARE_EQUALITY(type, T)   \
  MICRO_KERNEL(setp_##type) {       \
    COMPARE(0, "setp.eq." #type, T) \
    COMPARE(1, "setp.ne." #type, T) \
  }

#define COMPARE_SIGNED(type, T)     \
  MICRO_KERNEL(setp_##type) {       \
    COMPARE(0, "setp.eq." #type, T) \
    COMPARE(1, "setp.ne." #type, T) \
    COMPARE(2, "setp.lt." #type, T) \
    COMPARE(3, "setp.le." #type, T) \
    COMPARE(4, "setp.gt." #type, T) \
    COMPARE(5, "setp.ge." #type, T) \
  }

#define COMPARE_UNSIGNED(type, T)   \
  MICRO_KERNEL(setp_##type) {       \
    COMPARE(0, "setp.eq." #type, T) \
    COMPARE(1, "setp.ne." #type, T) \
    COMPARE(2, "setp.lt." #type, T) \
    COMPARE(3, "setp.le." #type, T) \
    COMPARE(4, "setp.gt." #type, T) \
    COMPARE(5, "setp.ge." #type, T) \
    COMPARE(6, "setp.lo." #type, T) \
    COMPARE(7, "setp.ls." #type, T) \
    COMPARE(8, "setp.hi." #type, T) \
    COMPARE(9, "setp.hs." #type, T) \
  }

COMPARE_EQUALITY(b16, B16)
COMPARE_EQUALITY(b32, B32)
COMPARE_EQUALITY(b64, B64)
COMPARE_UNSIGNED(u16, B16)
COMPARE_UNSIGNED(u32, B32)
COMPARE_UNSIGNED(u64, B64)
COMPARE_SIGNED(s16, B16)
COMPARE_SIGNED(s32, B32)
COMPARE_SIGNED(s64, B64)

// in2: the predicate that the result is combined with.
#define COMBINE(index, opcode, third)                                                          \
  FOR_EACH_ELEMENT(i) {                                                                        \
    asm volatile(                                                                              \
        "{.reg .pred p, q, c;\n"                                                               \
        "setp.ne.u32 c, %3, 0;\n" opcode " p|q, %1, %2, " third                                \
        ";\n"                                                                                  \
        "selp.u32 %0, 1, 0, p;\n"                                                              \
        "@q or.b32 %0, %0, 2;}"                                                                \
        : "=r"(args.output<B32>(0)[index * args.n[0] + i])                                     \
        : "r"(args.input<B32>(0)[i]), "r"(args.input<B32>(1)[i]), "r"(args.input<B32>(2)[i])); \
  }

MICRO_KERNEL(setp_combined){COMBINE(0, "setp.lt.and.s32", "c") COMBINE(1, "setp.lt.and.s32", "!c")
                                COMBINE(2, "setp.lt.or.s32", "c") COMBINE(3, "setp.lt.or.s32", "!c")
                                    COMBINE(4, "setp.lt.xor.s32", "c")
                                        COMBINE(5, "setp.lt.xor.s32", "!c")}

// Only one of the two results, and predicates as such: and, or, xor, not, mov, selp of a negated one.
MICRO_KERNEL(predicates) {
  FOR_EACH_ELEMENT(i) {
    B32 const a = args.input<B32>(0)[i];
    B32 const b = args.input<B32>(1)[i];
    auto* out = args.output<B32>(0) + 7 * i;
    asm volatile(
        "{.reg .pred p, q, r;\n"
        "setp.lt.u32 p|_, %7, %8;\n"
        "setp.eq.u32 _|q, %7, %8;\n"
        "and.pred r, p, q;\n selp.u32 %0, 1, 0, r;\n"
        "or.pred r, p, q;\n selp.u32 %1, 1, 0, r;\n"
        "xor.pred r, p, q;\n selp.u32 %2, 1, 0, r;\n"
        "not.pred r, p;\n selp.u32 %3, 1, 0, r;\n"
        "mov.pred r, q;\n selp.u32 %4, 1, 0, r;\n"
        "selp.u32 %5, %7, %8, p;\n"
        "selp.u32 %6, %7, %8, q;}"
        : "=&r"(out[0]), "=&r"(out[1]), "=&r"(out[2]), "=&r"(out[3]), "=&r"(out[4]), "=&r"(out[5]),
          "=&r"(out[6])
        : "r"(a), "r"(b));
  }
}

BINARY(set_lt_u32_s32, B32, "set.lt.u32.s32", B32, B32)
BINARY(set_hs_u32_u64, B32, "set.hs.u32.u64", B64, B64)
BINARY(set_ne_f32_s32, F32, "set.ne.f32.s32", B32, B32)

TERNARY_ASM(selp_b16, B16, "{.reg .pred p; setp.ne.u32 p, %3, 0; selp.b16 %0, %1, %2, p;}", B16,
            B16, B32)
TERNARY_ASM(selp_b64, B64, "{.reg .pred p; setp.ne.u32 p, %3, 0; selp.b64 %0, %1, %2, p;}", B64,
            B64, B32)
TERNARY(slct_u32_s32, B32, "slct.u32.s32", B32, B32, B32)
TERNARY(slct_b64_s32, B64, "slct.b64.s32", B64, B64, B32)
TERNARY(slct_u32_f32, B32, "slct.u32.f32", B32, B32, F32)
TERNARY(slct_ftz_u32_f32, B32, "slct.ftz.u32.f32", B32, B32, F32)

// ---- Moves ------------------------------------------------------------------------------------------

BINARY_ASM(mov_pack_2_b16, B32, "mov.b32 %0, {%1, %2};", B16, B16)
BINARY_ASM(mov_pack_2_b32, B64, "mov.b64 %0, {%1, %2};", B32, B32)
QUATERNARY_ASM(mov_pack_4_b16, B64, "mov.b64 %0, {%1, %2, %3, %4};", B16, B16, B16, B16)
UNARY_ASM(mov_upper_b32, B32, "{.reg .b32 low; mov.b64 {low, %0}, %1;}", B64)
UNARY_ASM(mov_lower_b16, B16, "{.reg .b16 high; mov.b32 {%0, high}, %1;}", B32)
UNARY_ASM(mov_sink_b32, B32, "mov.b64 {_, %0}, %1;", B64)

// The four halves in reverse; a source is also a result.
UNARY_ASM(mov_swap_b16, B64,
          "{.reg .b16 h<4>; mov.b64 {h0, h1, h2, h3}, %1; mov.b64 %0, {h3, h2, h1, h0};}", B64)
UNARY_ASM(mov_swap_b8, B32,
          "{.reg .b8 c<4>; mov.b32 {c0, c1, c2, c3}, %1; mov.b32 %0, {c3, c2, c1, c0};}", B32)
