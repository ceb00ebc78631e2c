// From the statements of a function to instructions of a kernel.
#include "inline.h"

#include <utility>

#include "bind.h"
#include "special_registers.h"
#include "symbols.h"

namespace hostsim {

namespace {

using ptx::Expression;
using ptx::Function;
using ptx::Statement;
using ptx::Variable;
using Kind = Expression::Kind;

// One activation of a function: its own registers, variables and labels.
class Frame {
 public:
  Frame(ModuleLink& link, KernelBuilder& builder, Function const& function, Frame const* caller,
        Location const* call_site)
      : link_(link),
        builder_(builder),
        function_(function),
        caller_(caller),
        call_site_(call_site),
        locations_(link.locations(function, call_site)),
        symbols_(link, builder, function) {}

  // The row with the address of a parameter or result, which the caller provides.
  void provide(Variable const* variable, int row) { symbols_.provide(variable, row); }

  void link();

 private:
  void allocate_variables();
  void link_statement(int index);
  void link_return(int index);
  void resolve_labels();
  void resolve_label(Operand& operand) const;

  Instruction start_instruction(Statement const& statement, bool with_guard = true);
  void emit(Instruction in) { builder_.code().push_back(std::move(in)); }
  void emit_jump(Instruction in, int target_statement);

  void link_call(int index);
  void inline_call(int index, Function const& callee, std::vector<int> const& results,
                   std::vector<int> const& arguments);
  bool is_active(Function const& function) const;
  std::vector<int> variable_rows(Statement const& statement, Expression const& list);

  Operand operand(Statement const& statement, Expression const& expression);
  Operand row_operand(Statement const& statement, Expression const& expression);
  Operand memory_operand(Statement const& statement, Expression const& expression);
  int literal_row(Statement const& statement, ptx::Literal literal);
  int plus_offset(Statement const& statement, int row, int64_t offset);

  ModuleLink& link_;
  KernelBuilder& builder_;
  Function const& function_;
  Frame const* caller_;  // nullptr for the kernel
  Location const* call_site_;
  std::vector<Location const*> locations_;
  Symbols symbols_;
  std::vector<int> starts_;  // first instruction of every statement, and the end
  std::vector<int> jumps_;   // instructions whose labels are still indices of statements
};

// ---- Statements -----------------------------------------------------------------------------------

void Frame::link() {
  uint32_t const top = builder_.local_top();
  allocate_variables();
  int const size = int(function_.body.size());
  for (int i = 0; i < size; ++i) {
    starts_.push_back(builder_.next_pc());
    link_statement(i);
  }
  starts_.push_back(builder_.next_pc());
  resolve_labels();
  builder_.set_local_top(top);
}

// All at once, before any call: what a callee uses must not overlap with what is live here.
void Frame::allocate_variables() {
  for (auto const& variable : function_.variables) {
    bool const own = !symbols_.is_provided(variable.get());
    if (own && variable->space != Variable::Space::kShared) {
      provide(variable.get(), builder_.local_address(builder_.allocate_local(*variable)));
    }
  }
}

void Frame::link_statement(int index) {
  Statement const& statement = function_.body[size_t(index)];
  std::string const& name = statement.opcode[0];
  try {
    if (name == "call") {
      link_call(index);
      return;
    }
    if (name == "ret" && caller_ != nullptr) {
      link_return(index);
      return;
    }
    Instruction in = start_instruction(statement);
    bool const reads_clock =
        name == "mov" && statement.operands.size() == 2 && is_clock(statement.operands[1].name);
    if (reads_clock) {
      in.opcode = {std::string(statement.operands[1].name)};
    }
    for (size_t i = 0; i < statement.operands.size() - size_t(reads_clock); ++i) {
      in.operands.push_back(operand(statement, statement.operands[i]));
    }
    if (name == "bra" || name == "brx") {
      jumps_.push_back(builder_.next_pc());
    }
    emit(std::move(in));
  } catch (Unsupported const& error) {
    builder_.emit_unsupported(start_instruction(statement, false), error.what());
  }
}

Instruction Frame::start_instruction(Statement const& statement, bool with_guard) {
  Instruction in;
  in.opcode = statement.opcode;
  in.text = statement.text;
  in.location = statement.source_line < 0 ? call_site_ : locations_[size_t(statement.source_line)];
  if (with_guard && !statement.guard.empty()) {
    in.guard = symbols_.register_row(statement.scope, statement.guard);
    in.guard_negated = statement.guard_negated;
  }
  return in;
}

// In an inlined function: a jump to its end.
void Frame::link_return(int index) {
  Statement const& statement = function_.body[size_t(index)];
  bool const falls_out = index + 1 == int(function_.body.size()) && statement.guard.empty();
  if (!falls_out) {
    emit_jump(start_instruction(statement), int(function_.body.size()));
  }
}

void Frame::emit_jump(Instruction in, int target_statement) {
  in.opcode = {"bra"};
  in.operands = {Operand{}};
  in.operands[0].kind = Operand::Kind::kLabel;
  in.operands[0].target = target_statement;
  jumps_.push_back(builder_.next_pc());
  emit(std::move(in));
}

void Frame::resolve_label(Operand& operand) const {
  if (operand.is(Operand::Kind::kLabel)) {
    operand.target = starts_[size_t(operand.target)];
  }
}

// Labels so far hold statements; now they become instructions. A label at the very end leads to
// whatever the caller emits next; a kernel ends with one more `ret`.
void Frame::resolve_labels() {
  for (int const jump : jumps_) {
    for (Operand& operand : builder_.code()[size_t(jump)].operands) {
      resolve_label(operand);
      for (Operand& element : operand.elements) {
        resolve_label(element);
      }
    }
  }
}

// ---- Calls ----------------------------------------------------------------------------------------

// call (results), name, (arguments); the lists may be absent.
void Frame::link_call(int index) {
  Statement const& statement = function_.body[size_t(index)];
  std::vector<Expression> const& operands = statement.operands;
  bool const has_results = !operands.empty() && operands[0].is(Kind::kList);
  size_t const callee_at = has_results ? 1 : 0;
  if (callee_at >= operands.size() || !operands[callee_at].is(Kind::kName)) {
    throw Unsupported("a call of this form");
  }
  std::string_view const name = operands[callee_at].name;
  Function const* const callee = link_.find_function(name);
  bool const has_arguments =
      operands.size() == callee_at + 2 && operands[callee_at + 1].is(Kind::kList);
  if (callee == nullptr || operands.size() > callee_at + 1 + size_t(has_arguments)) {
    throw Unsupported("an indirect call");
  }
  std::vector<int> results;
  std::vector<int> arguments;
  if (has_results) {
    results = variable_rows(statement, operands[0]);
  }
  if (has_arguments) {
    arguments = variable_rows(statement, operands[callee_at + 1]);
  }
  if (results.size() != callee->results.size() || arguments.size() != callee->parameters.size()) {
    throw Unsupported("a call with another number of parameters than the declaration");
  }
  if (callee->is_defined) {
    inline_call(index, *callee, results, arguments);
    return;
  }
  // A function of the CUDA run-time system: an instruction "call.name" on its parameters.
  Instruction in = start_instruction(statement);
  in.opcode = {"call", std::string(name)};
  for (std::vector<int> const* const rows : {&results, &arguments}) {
    for (int const row : *rows) {
      in.operands.emplace_back().kind = Operand::Kind::kMemory;
      in.operands.back().row = row;
    }
  }
  emit(std::move(in));
}

void Frame::inline_call(int index, Function const& callee, std::vector<int> const& results,
                        std::vector<int> const& arguments) {
  if (is_active(callee)) {
    throw Unsupported("a recursive call");
  }
  Statement const& statement = function_.body[size_t(index)];
  Instruction skip = start_instruction(statement);
  Location const* const here = skip.location;
  if (skip.guard >= 0) {
    skip.guard_negated = !skip.guard_negated;
    emit_jump(std::move(skip), index + 1);
  }
  Frame frame(link_, builder_, callee, this, here);
  for (size_t i = 0; i < results.size(); ++i) {
    frame.provide(callee.results[i], results[i]);
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    frame.provide(callee.parameters[i], arguments[i]);
  }
  frame.link();
}

bool Frame::is_active(Function const& function) const {
  return &function_ == &function || (caller_ != nullptr && caller_->is_active(function));
}

// The addresses of the .param variables that a call passes.
std::vector<int> Frame::variable_rows(Statement const& statement, Expression const& list) {
  std::vector<int> rows;
  for (Expression const& element : list.elements) {
    Symbol const found = symbols_.find(statement.scope, element.name);
    if (!element.is(Kind::kName) || found.kind != Symbol::Kind::kValue) {
      throw Unsupported("a call with parameters that are no .param variables");
    }
    rows.push_back(found.row);
  }
  return rows;
}

// ---- Operands -------------------------------------------------------------------------------------

Operand Frame::operand(Statement const& statement, Expression const& expression) {
  Operand result;
  switch (expression.kind) {
    case Kind::kSink: break;
    case Kind::kLiteral:
    case Kind::kName: result = row_operand(statement, expression); break;
    case Kind::kMemory: result = memory_operand(statement, expression); break;
    case Kind::kVector:
      result.kind = Operand::Kind::kVector;
      for (Expression const& element : expression.elements) {
        result.elements.push_back(operand(statement, element));
      }
      break;
    case Kind::kList: throw Unsupported("an operand in parentheses");
  }
  result.negated = expression.negated;
  return result;
}

Operand Frame::row_operand(Statement const& statement, Expression const& expression) {
  Operand result;
  result.kind = Operand::Kind::kRow;
  if (expression.is(Kind::kLiteral)) {
    result.row = literal_row(statement, expression.literal);
    return result;
  }
  Symbol const found = symbols_.find(statement.scope, expression.name);
  switch (found.kind) {
    case Symbol::Kind::kRegister:
    case Symbol::Kind::kValue:
      result.row = plus_offset(statement, found.row, expression.offset);
      result.is_predicate = found.is_predicate;
      break;
    case Symbol::Kind::kGlobal:
      result.row = builder_.constant(found.address + uint64_t(expression.offset));
      break;
    case Symbol::Kind::kLabel:
      result.kind = Operand::Kind::kLabel;
      result.target = found.statement;
      break;
    case Symbol::Kind::kTable:
      result.kind = Operand::Kind::kVector;
      for (std::string_view const label : *found.labels) {
        Expression element;
        element.kind = Kind::kName;
        element.name = label;
        result.elements.push_back(row_operand(statement, element));
      }
      break;
  }
  return result;
}

Operand Frame::memory_operand(Statement const& statement, Expression const& expression) {
  Operand base = row_operand(statement, expression.elements[0]);
  if (!base.is(Operand::Kind::kRow)) {
    throw Unsupported("an address that is no value");
  }
  base.kind = Operand::Kind::kMemory;
  base.offset = expression.offset;
  for (size_t i = 1; i < expression.elements.size(); ++i) {
    base.elements.push_back(operand(statement, expression.elements[i]));
  }
  return base;
}

// A literal takes the type of the instruction, which is the last one of the opcode: in a cvt that
// is the type of the source.
int Frame::literal_row(Statement const& statement, ptx::Literal literal) {
  for (auto word = statement.opcode.rbegin(); word != statement.opcode.rend(); ++word) {
    if (auto const type = parse_type(*word)) {
      return builder_.constant(bits_as(literal, *type));
    }
  }
  return builder_.constant(literal.bits);
}

// "name + offset" as a value: an addition of its own.
int Frame::plus_offset(Statement const& statement, int row, int64_t offset) {
  if (offset == 0) {
    return row;
  }
  Instruction add = start_instruction(statement);
  add.opcode = {"add", "s64"};
  for (int const operand : {builder_.new_row(), row, builder_.constant(uint64_t(offset))}) {
    add.operands.emplace_back().kind = Operand::Kind::kRow;
    add.operands.back().row = operand;
  }
  int const sum = add.operands[0].row;
  emit(std::move(add));
  return sum;
}

}  // namespace

void link_body(ModuleLink& link, KernelBuilder& builder, Function const& entry,
               std::vector<Parameter> const& parameters) {
  Frame frame(link, builder, entry, nullptr, nullptr);
  for (size_t i = 0; i < parameters.size(); ++i) {
    frame.provide(entry.parameters[i], builder.parameter_address(parameters[i].offset));
  }
  frame.link();
  Instruction end;
  end.opcode = {"ret"};
  end.text = "ret";
  builder.code().push_back(std::move(end));
}

}  // namespace hostsim
