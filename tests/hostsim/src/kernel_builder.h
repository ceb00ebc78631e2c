// Collects the instructions of one kernel, and gives a row to every value they name.
#pragma once

#include <map>
#include <string>

#include "program.h"
#include "ptx_parser.h"

namespace hostsim {

class KernelBuilder {
 public:
  explicit KernelBuilder(Kernel& kernel) : kernel_(kernel) {}

  int new_row() { return kernel_.num_rows++; }
  // Rows with a value of their own; one row for each value.
  int constant(uint64_t value);
  int special(Special special);
  int shared_address(ptx::Variable const& variable);
  int local_address(uint32_t offset);
  int parameter_address(uint32_t offset);

  // Local memory is a stack: functions that are not active at the same time share it.
  uint32_t local_top() const { return local_top_; }
  void set_local_top(uint32_t top) { local_top_ = top; }
  uint32_t allocate_local(ptx::Variable const& variable);

  std::vector<Instruction>& code() { return kernel_.code; }
  int next_pc() const { return int(kernel_.code.size()); }
  // Appends `in`, which the emulator does not know: executing it is a fault.
  void emit_unsupported(Instruction in, std::string const& why);

 private:
  Kernel& kernel_;
  std::map<uint64_t, int> constants_;
  std::map<Special, int> specials_;
  std::map<ptx::Variable const*, int> shared_;
  std::map<uint32_t, int> locals_;
  std::map<uint32_t, int> parameters_;
  uint32_t local_top_ = 0;
};

// Makes `in` a fault and adds it to what a launch of the kernel reports.
void mark_unsupported(Kernel& kernel, Instruction& in, std::string const& why);

}  // namespace hostsim
