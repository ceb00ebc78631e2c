// What the names in a function mean.
#pragma once

#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "kernel_builder.h"
#include "module_link.h"

namespace hostsim {

struct Symbol {
  enum class Kind : uint8_t {
    kRegister,  // row
    kValue,     // row: the address of a variable, a special register
    kGlobal,    // address, of a variable in global memory
    kLabel,     // statement that follows it
    kTable,     // labels, of .branchtargets
  };
  Kind kind = Kind::kValue;
  int row = -1;
  bool is_predicate = false;  // a register declared .pred
  uint64_t address = 0;
  int statement = -1;
  std::vector<std::string_view> const* labels = nullptr;
};

// Of one activation of a function: its registers and variables have rows of their own.
class Symbols {
 public:
  Symbols(ModuleLink& link, KernelBuilder& builder, ptx::Function const& function)
      : link_(link), builder_(builder), function_(function) {}

  // The row with the address of a variable of the function.
  void provide(ptx::Variable const* variable, int row) { variable_rows_[variable] = row; }
  bool is_provided(ptx::Variable const* variable) const {
    return variable_rows_.contains(variable);
  }

  // As seen from a scope of the function. Throws Unsupported for unknown names.
  Symbol find(int scope, std::string_view name);
  int register_row(int scope, std::string_view name);

 private:
  bool find_in_scope(int scope, std::string_view name, Symbol& symbol);
  bool find_in_module(std::string_view name, Symbol& symbol);
  int row_of_register(int scope, std::string_view name);

  ModuleLink& link_;
  KernelBuilder& builder_;
  ptx::Function const& function_;
  std::map<std::pair<int, std::string_view>, int> register_rows_;  // by scope and name
  std::map<ptx::Variable const*, int> variable_rows_;              // with their addresses
};

}  // namespace hostsim
