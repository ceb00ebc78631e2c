// What linking the functions of one module has in common: its variables, and source locations.
#pragma once

#include <map>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "program.h"
#include "ptx_parser.h"

namespace hostsim {

class ModuleLink {
 public:
  // Both must outlive this. Gives the variables of `syntax` memory in `module`, initialises them,
  // and registers them as buffers.
  ModuleLink(ptx::ModuleSyntax const& syntax, Module& module);

  Module& module() const { return module_; }
  // nullptr if the module has none of that name. Shared variables are here, too.
  ptx::Variable const* find_variable(std::string_view name) const;
  ptx::Function const* find_function(std::string_view name) const;
  // Of a __device__ or __constant__ variable. Throws Unsupported if another module defines it.
  uint64_t address_of(ptx::Variable const& variable) const;
  // The locations of a function's source lines, all of them inlined at `call_site` (or nullptr).
  std::vector<Location const*> locations(ptx::Function const& function, Location const* call_site);

 private:
  void allocate(ptx::Variable const& variable);
  void initialize(ptx::Variable const& variable);
  uint64_t initial_value(ptx::Variable const& variable, ptx::Initializer const& item) const;
  Location const* location(int file, int line, Location const* outer);
  char const* file_name(int file);

  ptx::ModuleSyntax const& syntax_;
  Module& module_;
  std::unordered_map<std::string_view, ptx::Variable const*> variables_;
  std::map<std::tuple<int, int, Location const*>, Location const*> locations_;
  std::unordered_map<int, char const*> file_names_;
};

}  // namespace hostsim
