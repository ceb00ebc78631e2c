// What linking the functions of one module has in common: its variables, and source locations.
#include "module_link.h"

#include <cstring>
#include <new>

#include "bind.h"
#include "memory.h"

namespace hostsim {

using ptx::Variable;

void VariableMemory::operator()(char* data) const {
  unregister_buffer(data);
  ::operator delete[](data, std::align_val_t(kAlignment));
}

ModuleLink::ModuleLink(ptx::ModuleSyntax const& syntax, Module& module)
    : syntax_(syntax), module_(module) {
  for (auto const& variable : syntax.variables) {
    // A declaration may precede the definition.
    Variable const*& known = variables_[variable->name];
    if (known == nullptr || known->is_extern) {
      known = variable.get();
    }
  }
  for (auto const& [name, variable] : variables_) {
    bool const in_memory =
        variable->space == Variable::Space::kGlobal || variable->space == Variable::Space::kConst;
    if (in_memory && !variable->is_extern) {
      allocate(*variable);
    }
  }
  for (auto const& [name, variable] : variables_) {
    initialize(*variable);
  }
}

void ModuleLink::allocate(Variable const& variable) {
  GlobalVariable memory;
  memory.name = variable.name;
  memory.size = variable.size();
  memory.constant = variable.space == Variable::Space::kConst;
  size_t const bytes = std::max<size_t>(memory.size, 1);
  auto const alignment = std::align_val_t(VariableMemory::kAlignment);
  memory.data.reset(static_cast<char*>(::operator new[](bytes, alignment)));
  std::memset(memory.data.get(), 0, bytes);
  register_buffer(memory.name, memory.data.get(), memory.size, memory.constant, true);
  module_.variables[memory.name] = std::move(memory);
}

void ModuleLink::initialize(Variable const& variable) {
  size_t const element = size_t(bytes_of(variable.type));
  for (size_t i = 0; i < variable.initializers.size(); ++i) {
    char* const data = module_.variables.at(std::string(variable.name)).data.get();
    uint64_t const value = initial_value(variable, variable.initializers[i]);
    std::memcpy(data + i * element, &value, std::min(element, sizeof value));
  }
}

uint64_t ModuleLink::initial_value(Variable const& variable, ptx::Initializer const& item) const {
  if (item.symbol.empty()) {
    return bits_as(item.literal, variable.type);
  }
  if (Variable const* const target = find_variable(item.symbol)) {
    return address_of(*target) + item.literal.bits;
  }
  if (find_function(item.symbol) != nullptr) {
    return 0;  // only an indirect call could use it, and that is an error of its own
  }
  throw ptx::SyntaxError(variable.line, "unknown variable " + std::string(item.symbol));
}

Variable const* ModuleLink::find_variable(std::string_view name) const {
  auto const found = variables_.find(name);
  return found == variables_.end() ? nullptr : found->second;
}

ptx::Function const* ModuleLink::find_function(std::string_view name) const {
  auto const found = syntax_.functions.find(name);
  return found == syntax_.functions.end() ? nullptr : found->second.get();
}

uint64_t ModuleLink::address_of(Variable const& variable) const {
  auto const found = module_.variables.find(std::string(variable.name));
  if (found == module_.variables.end()) {
    throw Unsupported(std::string(variable.name) + " has no address known when linking");
  }
  return reinterpret_cast<uint64_t>(found->second.data.get());
}

std::vector<Location const*> ModuleLink::locations(ptx::Function const& function,
                                                   Location const* call_site) {
  std::vector<Location const*> result;
  for (ptx::SourceLine const& source : function.source_lines) {  // the outer ones come first
    Location const* const outer =
        source.outer < 0 ? call_site : result[static_cast<size_t>(source.outer)];
    result.push_back(location(source.file, source.line, outer));
  }
  return result;
}

Location const* ModuleLink::location(int file, int line, Location const* outer) {
  Location const*& known = locations_[{file, line, outer}];
  if (known == nullptr) {
    module_.locations.push_back(std::make_unique<Location>(Location{file_name(file), line, outer}));
    known = module_.locations.back().get();
  }
  return known;
}

char const* ModuleLink::file_name(int file) {
  char const*& name = file_names_[file];
  if (name == nullptr) {
    auto const found = syntax_.files.find(file);
    std::string_view const text = found == syntax_.files.end() ? "unknown file" : found->second;
    module_.file_names.push_back(std::make_unique<std::string>(text));
    name = module_.file_names.back()->c_str();
  }
  return name;
}

}  // namespace hostsim
