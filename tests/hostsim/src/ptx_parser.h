// The syntax of a PTX module: what is declared where, and the statements of every function. Names
// are not looked up yet; that is the linker's work. All string_views refer to the parsed text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "number.h"
#include "ptx_expression.h"

namespace hostsim::ptx {

// Element of an initialiser: bits, or the address of `symbol` plus the bits.
struct Initializer {
  Literal literal;
  std::string_view symbol;
};

struct Variable {
  enum class Space : uint8_t { kGlobal, kConst, kShared, kLocal, kParam };
  Space space = Space::kGlobal;
  std::string_view name;
  Type type = Type::kB8;  // of an element
  uint32_t alignment = 1;
  uint64_t num_elements = 1;  // 0 for extern arrays
  bool is_extern = false;
  std::vector<Initializer> initializers;  // row by row; what is missing is zero
  int line = 0;

  uint64_t size() const { return num_elements * uint64_t(bytes_of(type)); }
};

// .loc: where the statements after it come from.
struct SourceLine {
  int file = 0;
  int line = 0;
  int column = 0;
  int outer = -1;  // index of the SourceLine where this was inlined, -1 if it was not
};

struct Statement {
  int scope = 0;
  int line = 0;            // in the PTX text
  int source_line = -1;    // index into Function::source_lines, -1 if unknown
  std::string_view guard;  // "" for none
  bool guard_negated = false;
  std::vector<std::string> opcode;
  std::vector<Expression> operands;
  std::string text;
};

// What is declared between a pair of braces; scope 0 is the function's.
struct Scope {
  int parent = -1;
  std::unordered_set<std::string_view> registers;
  std::unordered_map<std::string_view, int> register_ranges;  // %r<59>: {"%r", 59}
  std::unordered_set<std::string_view> predicates;            // those of both kinds that are .pred
  std::unordered_map<std::string_view, Variable const*> variables;
  std::unordered_map<std::string_view, int> labels;  // index of the statement that follows
  std::unordered_map<std::string_view, std::vector<std::string_view>> branch_targets;
};

struct Function {
  std::string_view name;
  bool is_entry = false;
  bool is_defined = false;  // has a body
  int line = 0;
  std::vector<Variable const*> results;
  std::vector<Variable const*> parameters;
  std::vector<std::unique_ptr<Variable>> variables;  // all of them; owns
  std::vector<Scope> scopes;
  std::vector<Statement> body;
  std::vector<SourceLine> source_lines;
  int max_threads = 0;              // .maxntid or .reqntid, as a product; 0 if not given
  uint32_t cluster[3] = {0, 0, 0};  // .reqnctapercluster
};

struct ModuleSyntax {
  std::vector<std::unique_ptr<Variable>> variables;
  std::unordered_map<std::string_view, std::unique_ptr<Function>> functions;
  std::unordered_map<int, std::string_view> files;
};

// Throws SyntaxError.
ModuleSyntax parse(std::string_view text);

}  // namespace hostsim::ptx
