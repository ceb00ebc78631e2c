// Declarations of variables, registers and parameters.
#include "ptx_declaration.h"

#include <array>
#include <bit>
#include <utility>

namespace hostsim::ptx {

namespace {

// What the variables of one declaration have in common.
struct Common {
  Variable::Space space;
  Type type = Type::kB8;
  uint32_t alignment = 0;  // 0: the type's
  uint32_t vector = 1;     // 2 for .v2
  bool is_extern = false;
};

uint32_t parse_alignment(Cursor& at) {
  uint64_t const alignment = at.expect_integer();
  if (!std::has_single_bit(alignment) || alignment > 1u << 20) {
    throw SyntaxError(at.line(), "no alignment: " + std::to_string(alignment));
  }
  return uint32_t(alignment);
}

// ".ptr .global .align 16" of a kernel parameter says what it points to; nothing depends on it.
void skip_pointer_attributes(Cursor& at) {
  Variable::Space space;
  while (at.peek().is(".align") || parse_space(at.peek().text, space)) {
    if (at.next().is(".align")) {
      parse_alignment(at);
    }
  }
}

// Everything between the state space and the first name.
Common parse_common(Cursor& at, Variable::Space space, bool is_extern) {
  Common common;
  common.space = space;
  common.is_extern = is_extern;
  bool has_type = false;
  while (at.peek().is(Token::Kind::kWord) && at.peek().text.starts_with('.')) {
    Token const word = at.next();
    if (word.is(".align")) {
      common.alignment = parse_alignment(at);
    } else if (word.is(".v2") || word.is(".v4")) {
      common.vector = word.is(".v2") ? 2 : 4;
    } else if (word.is(".ptr")) {
      skip_pointer_attributes(at);
    } else if (word.is(".attribute")) {  // .managed, .unified: all memory is the host's anyway
      at.skip_group('(', ')');
    } else if (auto const type = parse_type(word.text.substr(1))) {
      common.type = *type;
      has_type = true;
    } else {
      throw SyntaxError(word.line, "unknown directive " + std::string(word.text));
    }
  }
  if (!has_type) {
    at.fail("a type");
  }
  return common;
}

// "5", "0f3F800000", "sym", "sym+8", "generic(sym)+8", nested lists.
void parse_initializers(Cursor& at, std::vector<Initializer>& list) {
  if (at.accept('{')) {
    for (bool first = true; !at.accept('}'); first = false) {
      if (!first) {
        at.expect(',');
      }
      parse_initializers(at, list);
    }
    return;
  }
  bool const generic = at.accept("generic");
  if (generic) {
    at.expect('(');
  }
  Expression const value = parse_expression(at);
  Initializer item{value.literal, value.name};
  item.literal.bits += uint64_t(value.offset);
  if (generic) {
    at.expect(')');
    if (at.accept('+')) {
      item.literal.bits += parse_literal(at).bits;
    }
  }
  if (!value.is(Expression::Kind::kLiteral) && !value.is(Expression::Kind::kName)) {
    at.fail("a constant");
  }
  list.push_back(item);
}

// A name, its dimensions, and its initialiser.
std::unique_ptr<Variable> parse_declarator(Cursor& at, Common const& common) {
  auto variable = std::make_unique<Variable>();
  variable->line = at.line();
  variable->space = common.space;
  variable->name = at.expect_word();
  variable->type = common.type;
  variable->is_extern = common.is_extern;
  variable->num_elements = common.vector;
  uint32_t const natural = uint32_t(bytes_of(common.type)) * common.vector;
  variable->alignment = common.alignment != 0 ? common.alignment : natural;
  bool unsized = false;
  while (at.accept('[')) {
    if (at.accept(']')) {
      unsized = true;
      continue;
    }
    variable->num_elements *= at.expect_integer();
    at.expect(']');
  }
  if (at.accept('=')) {
    parse_initializers(at, variable->initializers);
  }
  if (unsized) {  // the list gives the first dimension
    uint64_t const row = variable->num_elements;
    variable->num_elements = (variable->initializers.size() + row - 1) / row * row;
  }
  if (variable->initializers.size() > variable->num_elements) {
    throw SyntaxError(variable->line, "too many initialisers");
  }
  return variable;
}

}  // namespace

bool parse_space(std::string_view directive, Variable::Space& space) {
  static constexpr std::array<std::pair<std::string_view, Variable::Space>, 5> kSpaces{{
      {".global", Variable::Space::kGlobal},
      {".const", Variable::Space::kConst},
      {".shared", Variable::Space::kShared},
      {".local", Variable::Space::kLocal},
      {".param", Variable::Space::kParam},
  }};
  for (auto const& [name, value] : kSpaces) {
    if (name == directive) {
      space = value;
      return true;
    }
  }
  return false;
}

std::vector<std::unique_ptr<Variable>> parse_variables(Cursor& at, Variable::Space space,
                                                       bool is_extern) {
  Common const common = parse_common(at, space, is_extern);
  std::vector<std::unique_ptr<Variable>> variables;
  do {
    variables.push_back(parse_declarator(at, common));
  } while (at.accept(','));
  at.expect(';');
  return variables;
}

std::vector<std::unique_ptr<Variable>> parse_parameters(Cursor& at) {
  std::vector<std::unique_ptr<Variable>> parameters;
  while (!at.accept(')')) {
    if (!parameters.empty()) {
      at.expect(',');
    }
    if (!at.accept(".param")) {
      at.fail(".param");  // .reg parameters exist only in code without an ABI
    }
    Common const common = parse_common(at, Variable::Space::kParam, false);
    parameters.push_back(parse_declarator(at, common));
  }
  return parameters;
}

void parse_registers(Cursor& at, Scope& scope) {
  std::string_view const type = at.expect_word();
  if (!type.starts_with('.') || !parse_type(type.substr(1))) {
    throw SyntaxError(at.line(), "unknown type of registers " + std::string(type));
  }
  do {
    std::string_view const name = at.expect_word();
    if (type == ".pred") {
      scope.predicates.insert(name);
    }
    if (at.accept('<')) {
      scope.register_ranges[name] = int(at.expect_integer());
      at.expect('>');
    } else {
      scope.registers.insert(name);
    }
  } while (at.accept(','));
  at.expect(';');
}

}  // namespace hostsim::ptx
