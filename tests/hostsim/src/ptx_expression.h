// The operands of PTX instructions, and literals.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "number.h"
#include "ptx_lexer.h"

namespace hostsim::ptx {

struct Literal {
  enum class Kind : uint8_t { kInteger, kFloat32, kFloat64 };  // kFloat64: also decimals
  Kind kind = Kind::kInteger;
  uint64_t bits = 0;  // integers: two's complement, 64 bits
};

// Bits of a literal where a value of `type` is wanted. PTX converts a floating literal to the
// floating type that is wanted; all else stays as it is.
uint64_t bits_as(Literal literal, Type type);

struct Expression {
  enum class Kind : uint8_t {
    kSink,     // _
    kLiteral,  // literal
    kName,     // name, name + offset
    kMemory,   // [elements[0] + offset], [elements[0] + offset, {elements[1..]}]
    kVector,   // {elements}, and the pair p|q
    kList,     // (elements), of calls
  };
  Kind kind = Kind::kSink;
  bool negated = false;  // !name
  std::string_view name;
  int64_t offset = 0;
  Literal literal;
  std::vector<Expression> elements;

  bool is(Kind k) const { return kind == k; }
};

Literal parse_literal(Cursor& at);        // with sign
Expression parse_expression(Cursor& at);  // one operand

}  // namespace hostsim::ptx
