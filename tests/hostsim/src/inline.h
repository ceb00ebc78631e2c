// From the statements of a function to instructions of a kernel. Functions that it calls are linked
// in place, once for every call.
#pragma once

#include "kernel_builder.h"
#include "module_link.h"

namespace hostsim {

// Appends the code of a kernel. Instructions are not bound yet; those with operands or calls that
// the emulator does not know are marked.
void link_body(ModuleLink& link, KernelBuilder& builder, ptx::Function const& entry,
               std::vector<Parameter> const& parameters);

}  // namespace hostsim
