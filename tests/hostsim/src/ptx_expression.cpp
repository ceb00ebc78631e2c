// The operands of PTX instructions, and literals.
#include "ptx_expression.h"

#include <charconv>
#include <string>

namespace hostsim::ptx {

uint64_t bits_as(Literal literal, Type type) {
  if (literal.kind == Literal::Kind::kFloat64 && type == Type::kF32) {
    return bits_of_float(float(as_double(literal.bits)));
  }
  if (literal.kind == Literal::Kind::kFloat32 && type == Type::kF64) {
    return bits_of_double(as_float(literal.bits));
  }
  return literal.bits;
}

namespace {

using Kind = Expression::Kind;

uint64_t parse_hexadecimal(Token const& number, std::string_view digits) {
  uint64_t value = 0;
  auto const [end, error] = std::from_chars(digits.begin(), digits.end(), value, 16);
  if (error != std::errc() || end != digits.end()) {
    throw SyntaxError(number.line, "no number: " + std::string(number.text));
  }
  return value;
}

double parse_decimal(Token const& number) {
  double value = 0;
  auto const [end, error] = std::from_chars(number.text.begin(), number.text.end(), value);
  if (error != std::errc() || end != number.text.end()) {
    throw SyntaxError(number.line, "no number: " + std::string(number.text));
  }
  return value;
}

// 0f and 0d are followed by the bits of the value in hexadecimal.
Literal parse_unsigned_literal(Token const& number) {
  std::string_view const text = number.text;
  bool const is_bits = text.size() == 10 || text.size() == 18;
  if (is_bits && (text.starts_with("0f") || text.starts_with("0F"))) {
    return {Literal::Kind::kFloat32, parse_hexadecimal(number, text.substr(2))};
  }
  if (is_bits && (text.starts_with("0d") || text.starts_with("0D"))) {
    return {Literal::Kind::kFloat64, parse_hexadecimal(number, text.substr(2))};
  }
  bool const hexadecimal = text.starts_with("0x") || text.starts_with("0X");
  if (!hexadecimal && text.find_first_of(".eE") != std::string_view::npos) {
    return {Literal::Kind::kFloat64, bits_of_double(parse_decimal(number))};
  }
  return {Literal::Kind::kInteger, parse_integer(number)};
}

Literal negate(Literal literal) {
  switch (literal.kind) {
    case Literal::Kind::kInteger: literal.bits = 0 - literal.bits; break;
    case Literal::Kind::kFloat32: literal.bits ^= uint64_t(1) << 31; break;
    case Literal::Kind::kFloat64: literal.bits ^= uint64_t(1) << 63; break;
  }
  return literal;
}

// "+4", "+-4", "-4" after a name; 0 if there is none.
int64_t parse_offset(Cursor& at) {
  if (!at.peek().is('+') && !at.peek().is('-')) {
    return 0;
  }
  at.accept('+');
  bool const minus = at.accept('-');
  uint64_t const value = at.expect_integer();
  return int64_t(minus ? 0 - value : value);
}

// A name, with an offset, or a literal.
Expression parse_value(Cursor& at) {
  Expression value;
  if (at.peek().is(Token::Kind::kWord)) {
    value.kind = Kind::kName;
    value.name = at.next().text;
    value.offset = parse_offset(at);
  } else {
    value.kind = Kind::kLiteral;
    value.literal = parse_literal(at);
  }
  return value;
}

std::vector<Expression> parse_elements(Cursor& at, char close) {
  std::vector<Expression> elements;
  while (!at.accept(close)) {
    if (!elements.empty()) {
      at.expect(',');
    }
    elements.push_back(parse_expression(at));
  }
  return elements;
}

// What follows "[".
Expression parse_memory(Cursor& at) {
  Expression memory;
  memory.kind = Kind::kMemory;
  memory.elements.push_back(parse_value(at));
  std::swap(memory.offset, memory.elements[0].offset);
  if (at.accept(',')) {
    at.expect('{');
    for (Expression& coordinate : parse_elements(at, '}')) {
      memory.elements.push_back(std::move(coordinate));
    }
  }
  at.expect(']');
  return memory;
}

// A register, a predicate or its negation, a literal, "_".
Expression parse_simple(Cursor& at) {
  if (at.accept("_")) {
    return {};
  }
  bool const negated = at.accept('!');
  Expression value = parse_value(at);
  value.negated = negated;
  return value;
}

}  // namespace

Literal parse_literal(Cursor& at) {
  if (at.accept('-')) {
    return negate(parse_literal(at));
  }
  if (!at.peek().is(Token::Kind::kNumber)) {
    at.fail("a value");
  }
  return parse_unsigned_literal(at.next());
}

Expression parse_expression(Cursor& at) {
  Expression result;
  if (at.accept('[')) {
    return parse_memory(at);
  }
  if (at.accept('{')) {
    result.kind = Kind::kVector;
    result.elements = parse_elements(at, '}');
    return result;
  }
  if (at.accept('(')) {
    result.kind = Kind::kList;
    result.elements = parse_elements(at, ')');
    return result;
  }
  Expression first = parse_simple(at);
  if (!at.accept('|')) {
    return first;
  }
  result.kind = Kind::kVector;
  result.elements = {std::move(first), parse_simple(at)};
  return result;
}

}  // namespace hostsim::ptx
