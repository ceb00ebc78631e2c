// Collects the instructions of one kernel, and gives a row to every value they name.
#include "kernel_builder.h"

#include <algorithm>

namespace hostsim {

namespace {

Flow run_unsupported(Execution&, Instruction const& in, Lanes) {
  fault("ptx", "%s: not supported", in.text.c_str());
}

uint32_t round_up(uint32_t value, uint32_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

int KernelBuilder::constant(uint64_t value) {
  auto const [entry, is_new] = constants_.try_emplace(value, kernel_.num_rows);
  if (is_new) {
    kernel_.constants.push_back({new_row(), value});
  }
  return entry->second;
}

int KernelBuilder::special(Special special) {
  auto const [entry, is_new] = specials_.try_emplace(special, kernel_.num_rows);
  if (is_new) {
    kernel_.specials.push_back({new_row(), special});
  }
  return entry->second;
}

int KernelBuilder::shared_address(ptx::Variable const& variable) {
  auto const [entry, is_new] = shared_.try_emplace(&variable, kernel_.num_rows);
  if (is_new) {
    kernel_.shared_addresses.push_back({new_row(), int(kernel_.shared_variables.size())});
    kernel_.shared_variables.push_back(
        {std::string(variable.name), uint32_t(variable.size()), variable.alignment});
  }
  return entry->second;
}

int KernelBuilder::local_address(uint32_t offset) {
  auto const [entry, is_new] = locals_.try_emplace(offset, kernel_.num_rows);
  if (is_new) {
    kernel_.local_addresses.push_back({new_row(), offset});
  }
  return entry->second;
}

int KernelBuilder::parameter_address(uint32_t offset) {
  auto const [entry, is_new] = parameters_.try_emplace(offset, kernel_.num_rows);
  if (is_new) {
    kernel_.parameter_addresses.push_back({new_row(), offset});
  }
  return entry->second;
}

uint32_t KernelBuilder::allocate_local(ptx::Variable const& variable) {
  uint32_t const offset = round_up(local_top_, variable.alignment);
  local_top_ = offset + uint32_t(variable.size());
  kernel_.local_bytes = std::max(kernel_.local_bytes, local_top_);
  return offset;
}

void KernelBuilder::emit_unsupported(Instruction in, std::string const& why) {
  mark_unsupported(kernel_, in, why);
  kernel_.code.push_back(std::move(in));
}

void mark_unsupported(Kernel& kernel, Instruction& in, std::string const& why) {
  in.run = run_unsupported;
  std::string const where = in.location != nullptr ? " (" + describe(in.location) + ")" : "";
  bool const names_it = why.find(in.text) != std::string::npos;
  kernel.unsupported.push_back((names_it ? "" : in.text + ": ") + why + where);
}

}  // namespace hostsim
