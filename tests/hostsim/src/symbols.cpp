// What the names in a function mean.
#include "symbols.h"

#include <charconv>

#include "bind.h"
#include "special_registers.h"

namespace hostsim {

namespace {

using ptx::Variable;

// "%r12" is declared by "%r<59>".
bool is_in_range(ptx::Scope const& scope, std::string_view name) {
  size_t const prefix = name.find_last_not_of("0123456789") + 1;
  auto const range = scope.register_ranges.find(name.substr(0, prefix));
  if (range == scope.register_ranges.end() || prefix == name.size()) {
    return false;
  }
  int number = 0;
  auto const [end, error] =
      std::from_chars(name.data() + prefix, name.data() + name.size(), number);
  return error == std::errc() && number < range->second;
}

bool is_predicate(ptx::Scope const& scope, std::string_view name) {
  size_t const prefix = name.find_last_not_of("0123456789") + 1;
  return scope.predicates.contains(scope.registers.contains(name) ? name : name.substr(0, prefix));
}

}  // namespace

Symbol Symbols::find(int scope, std::string_view name) {
  Symbol symbol;
  for (int at = scope; at >= 0; at = function_.scopes[size_t(at)].parent) {
    if (find_in_scope(at, name, symbol)) {
      return symbol;
    }
  }
  if (!find_in_module(name, symbol)) {
    throw Unsupported("unknown name " + std::string(name));
  }
  return symbol;
}

bool Symbols::find_in_scope(int index, std::string_view name, Symbol& symbol) {
  ptx::Scope const& scope = function_.scopes[size_t(index)];
  if (scope.registers.contains(name) || is_in_range(scope, name)) {
    symbol.kind = Symbol::Kind::kRegister;
    symbol.is_predicate = is_predicate(scope, name);
    symbol.row = row_of_register(index, name);
    return true;
  }
  if (auto const found = scope.variables.find(name); found != scope.variables.end()) {
    Variable const* const variable = found->second;
    bool const shared = variable->space == Variable::Space::kShared;
    symbol.kind = Symbol::Kind::kValue;
    symbol.row = shared ? builder_.shared_address(*variable) : variable_rows_.at(variable);
    return true;
  }
  if (auto const label = scope.labels.find(name); label != scope.labels.end()) {
    symbol.kind = Symbol::Kind::kLabel;
    symbol.statement = label->second;
    return true;
  }
  if (auto const table = scope.branch_targets.find(name); table != scope.branch_targets.end()) {
    symbol.kind = Symbol::Kind::kTable;
    symbol.labels = &table->second;
    return true;
  }
  return false;
}

bool Symbols::find_in_module(std::string_view name, Symbol& symbol) {
  if (Variable const* const variable = link_.find_variable(name)) {
    if (variable->space == Variable::Space::kShared) {
      symbol.row = builder_.shared_address(*variable);
    } else {
      symbol.kind = Symbol::Kind::kGlobal;
      symbol.address = link_.address_of(*variable);
    }
    return true;
  }
  if (auto const special = parse_special(name)) {
    symbol.row = builder_.special(*special);
    return true;
  }
  if (name == "WARP_SZ") {
    symbol.row = builder_.constant(kWarpSize);
    return true;
  }
  return false;
}

int Symbols::row_of_register(int scope, std::string_view name) {
  auto const [entry, is_new] = register_rows_.try_emplace({scope, name}, 0);
  if (is_new) {
    entry->second = builder_.new_row();
  }
  return entry->second;
}

int Symbols::register_row(int scope, std::string_view name) {
  Symbol const symbol = find(scope, name);
  if (symbol.kind != Symbol::Kind::kRegister) {
    throw Unsupported(std::string(name) + " is no register");
  }
  return symbol.row;
}

}  // namespace hostsim
