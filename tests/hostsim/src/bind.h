// How opcodes find their handlers. Each family of instructions has one file, which offers a
// function void add_<family>(BinderTable&); a binder looks at one instruction, checks every
// modifier, and sets `run`, `detail` and `splits`.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "instruction.h"
#include "number.h"

namespace hostsim {

// Thrown by binders: the emulator does not know this form. What it does not know is an error.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The modifiers of an opcode (all but its first word), which a binder takes one by one; what is
// left at finish() is something the binder does not know.
class Modifiers {
 public:
  explicit Modifiers(Instruction const& in)
      : words_(in.opcode.begin() + 1, in.opcode.end()), text_(in.text) {}

  // True if `word` is among the modifiers not yet taken; takes it.
  bool take(std::string_view word);
  // Takes whichever of `words` is present and returns its index, -1 if none is.
  int take_any(std::initializer_list<std::string_view> words);
  // The same, but one must be present.
  int take_one(std::initializer_list<std::string_view> words);
  // Takes the last modifier, which must be a type; throws otherwise.
  Type take_type();
  // Takes the first modifier that starts with `prefix` and returns it whole, "" if none does.
  std::string take_prefixed(std::string_view prefix);
  // Takes modifiers that change neither results nor order: cache operators, eviction priorities,
  // .L2::128B and the like, .aligned, .weak, .uni.
  void take_hints();
  // Throws Unsupported if anything is left.
  void finish() const;
  [[noreturn]] void unsupported(std::string const& why) const;

 private:
  std::vector<std::string> words_;
  std::string text_;
};

using Binder = void (*)(Instruction& in);
// Keyed by the first word of the opcode, or by more of them ("cp.async.bulk"); the longest key
// that is a prefix of the opcode, word by word, wins.
using BinderTable = std::unordered_map<std::string, Binder>;

void add_arithmetic(BinderTable& table);       // ops_arithmetic.cpp: add, mul, min .. of any type
void add_integer(BinderTable& table);          // ops_integer.cpp
void add_carry(BinderTable& table);            // ops_carry.cpp
void add_bits(BinderTable& table);             // ops_bits.cpp
void add_bit_fields(BinderTable& table);       // ops_bit_fields.cpp
void add_compare(BinderTable& table);          // ops_compare.cpp
void add_move(BinderTable& table);             // ops_move.cpp
void add_float(BinderTable& table);            // ops_float.cpp
void add_float_functions(BinderTable& table);  // ops_float_functions.cpp
void add_convert(BinderTable& table);          // ops_convert.cpp
void add_control(BinderTable& table);          // ops_control.cpp
void add_call(BinderTable& table);             // ops_call.cpp
void add_memory(BinderTable& table);           // ops_memory.cpp
void add_atomic(BinderTable& table);           // ops_atomic.cpp
void add_grid(BinderTable& table);             // ops_grid.cpp
void add_warp(BinderTable& table);             // ops_warp.cpp
void add_matrix(BinderTable& table);           // ops_matrix.cpp
void add_wgmma(BinderTable& table);            // ops_wgmma.cpp
void add_tcgen05(BinderTable& table);          // ops_tcgen05.cpp
void add_barrier(BinderTable& table);          // ops_barrier.cpp
void add_mbarrier(BinderTable& table);         // ops_mbarrier.cpp
void add_async_copy(BinderTable& table);       // ops_async_copy.cpp
void add_tensor_copy(BinderTable& table);      // ops_tensor_copy.cpp

// Finds the handler of `in`; throws Unsupported, with the text of the instruction.
void bind(Instruction& in);

}  // namespace hostsim
