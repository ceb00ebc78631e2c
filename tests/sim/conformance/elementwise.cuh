// Micro-kernels of one instruction that computes each element of out0 from the elements of in0, in1 ..
// at the same place; n0 is how many there are. The assembly names the result %0 and the sources %1,
// %2 .., and operands have one of the types below.
#pragma once

#include <cstdint>

#include "conformance.cuh"

using B16 = uint16_t;
using B32 = uint32_t;
using B64 = uint64_t;
using F32 = float;
using F64 = double;

// The letters of inline assembly for registers of these types.
#define REGISTER_B16 "h"
#define REGISTER_B32 "r"
#define REGISTER_B64 "l"
#define REGISTER_F32 "f"
#define REGISTER_F64 "d"

// Not unrolled, because there are hundreds of these loops to compile.
#define FOR_EACH_ELEMENT(i) \
  _Pragma("unroll 1") for (int i = int(threadIdx.x); i < args.n[0]; i += int(blockDim.x))

#define UNARY_ASM(name, D, assembly, A)                               \
  MICRO_KERNEL(name) {                                                \
    FOR_EACH_ELEMENT(i) {                                             \
      A const a = args.input<A>(0)[i];                                \
      D d;                                                            \
      asm volatile(assembly : "=" REGISTER_##D(d) : REGISTER_##A(a)); \
      args.output<D>(0)[i] = d;                                       \
    }                                                                 \
  }

#define BINARY_ASM(name, D, assembly, A, B)                                            \
  MICRO_KERNEL(name) {                                                                 \
    FOR_EACH_ELEMENT(i) {                                                              \
      A const a = args.input<A>(0)[i];                                                 \
      B const b = args.input<B>(1)[i];                                                 \
      D d;                                                                             \
      asm volatile(assembly : "=" REGISTER_##D(d) : REGISTER_##A(a), REGISTER_##B(b)); \
      args.output<D>(0)[i] = d;                                                        \
    }                                                                                  \
  }

#define TERNARY_ASM(name, D, assembly, A, B, C)                          \
  MICRO_KERNEL(name) {                                                   \
    FOR_EACH_ELEMENT(i) {                                                \
      A const a = args.input<A>(0)[i];                                   \
      B const b = args.input<B>(1)[i];                                   \
      C const c = args.input<C>(2)[i];                                   \
      D d;                                                               \
      asm volatile(assembly                                              \
                   : "=" REGISTER_##D(d)                                 \
                   : REGISTER_##A(a), REGISTER_##B(b), REGISTER_##C(c)); \
      args.output<D>(0)[i] = d;                                          \
    }                                                                    \
  }

#define QUATERNARY_ASM(name, D, assembly, A, B, C, E)                                     \
  MICRO_KERNEL(name) {                                                                    \
    FOR_EACH_ELEMENT(i) {                                                                 \
      A const a = args.input<A>(0)[i];                                                    \
      B const b = args.input<B>(1)[i];                                                    \
      C const c = args.input<C>(2)[i];                                                    \
      E const e = args.input<E>(3)[i];                                                    \
      D d;                                                                                \
      asm volatile(assembly                                                               \
                   : "=" REGISTER_##D(d)                                                  \
                   : REGISTER_##A(a), REGISTER_##B(b), REGISTER_##C(c), REGISTER_##E(e)); \
      args.output<D>(0)[i] = d;                                                           \
    }                                                                                     \
  }

// The same, given the opcode only.
#define UNARY(name, D, opcode, A) UNARY_ASM(name, D, opcode " %0, %1;", A)
#define BINARY(name, D, opcode, A, B) BINARY_ASM(name, D, opcode " %0, %1, %2;", A, B)
#define TERNARY(name, D, opcode, A, B, C) TERNARY_ASM(name, D, opcode " %0, %1, %2, %3;", A, B, C)
#define QUATERNARY(name, D, opcode, A, B, C, E) \
  QUATERNARY_ASM(name, D, opcode " %0, %1, %2, %3, %4;", A, B, C, E)
