// Makes kernels that can run of PTX text: parse, link, allocate registers, bind.
#include <cstdlib>

#include "bind.h"
#include "inline.h"
#include "ptx_parser.h"
#include "register_reuse.h"

namespace hostsim {

namespace {

// To compare with, when a kernel behaves as if registers were mixed up.
bool may_reuse_registers() { return std::getenv("HOSTSIM_NO_REGISTER_REUSE") == nullptr; }

// Lays out the parameters as the launch passes them: in order, each at its own alignment.
void lay_out_parameters(Kernel& kernel, ptx::Function const& entry) {
  uint32_t top = 0;
  for (ptx::Variable const* const parameter : entry.parameters) {
    uint32_t const size = uint32_t(parameter->size());
    top = (top + parameter->alignment - 1) / parameter->alignment * parameter->alignment;
    kernel.parameters.push_back({top, size});
    top += size;
  }
  kernel.parameter_bytes = top;
}

void mark_targets(Kernel& kernel) {
  auto const mark = [&](Operand const& operand) {
    if (operand.is(Operand::Kind::kLabel)) {
      kernel.code[size_t(operand.target)].is_target = true;
    }
  };
  for (Instruction const& in : kernel.code) {
    for (Operand const& operand : in.operands) {
      mark(operand);
      for (Operand const& element : operand.elements) {
        mark(element);
      }
    }
  }
}

void bind_all(Kernel& kernel) {
  for (Instruction& in : kernel.code) {
    if (in.run != nullptr) {
      continue;  // the linker already knows that it is unsupported
    }
    try {
      bind(in);
    } catch (Unsupported const& error) {
      mark_unsupported(kernel, in, error.what());
    }
  }
}

std::unique_ptr<Kernel> link_kernel(ModuleLink& link, ptx::Function const& entry) {
  auto kernel = std::make_unique<Kernel>();
  kernel->name = entry.name;
  if (entry.max_threads > 0) {
    kernel->max_threads = entry.max_threads;
  }
  std::copy(std::begin(entry.cluster), std::end(entry.cluster), kernel->cluster);
  lay_out_parameters(*kernel, entry);
  KernelBuilder builder(*kernel);
  link_body(link, builder, entry, kernel->parameters);
  mark_targets(*kernel);
  if (may_reuse_registers()) {
    reuse_registers(*kernel);
  }
  bind_all(*kernel);
  return kernel;
}

}  // namespace

std::unique_ptr<Module> load_module(std::string const& ptx) {
  ptx::ModuleSyntax const syntax = ptx::parse(ptx);
  auto module = std::make_unique<Module>();
  ModuleLink link(syntax, *module);
  for (auto const& [name, function] : syntax.functions) {
    if (function->is_entry && function->is_defined) {
      module->kernels[std::string(name)] = link_kernel(link, *function);
    }
  }
  return module;
}

}  // namespace hostsim
