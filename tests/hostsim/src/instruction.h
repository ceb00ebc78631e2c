// A PTX instruction, ready to run on the 32 lanes of a warp.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "report.h"

namespace hostsim {

struct Execution;
struct Instruction;

inline constexpr int kWarpSize = 32;

using Lanes = uint32_t;  // a set of lanes, one bit each
inline constexpr Lanes kAllLanes = ~Lanes(0);

template <class F>
inline void for_each_lane(Lanes lanes, F&& f) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      f(lane);
    }
    return;
  }
  for (; lanes != 0; lanes &= lanes - 1) {
    f(std::countr_zero(lanes));
  }
}

// One register of a warp: a value per lane. A value sits in the low bits of its type's width. Who
// reads a register looks at no more bits than the type of the instruction has; who writes one
// stores zeros above (or, for a signed load narrower than the register, the sign).
struct alignas(64) Row {
  std::array<uint64_t, kWarpSize> lane;
  uint64_t& operator[](int i) { return lane[size_t(i)]; }
  uint64_t operator[](int i) const { return lane[size_t(i)]; }
};

// After linking, every value an instruction can name is a row of the warp's register file:
// registers, and also immediates, addresses of variables and special registers such as %tid.x,
// whose rows are filled in before the warp starts.
struct Operand {
  enum class Kind : uint8_t {
    kNone,    // "_": a result nobody wants, or no operand
    kRow,     // row
    kMemory,  // [row + offset], or [row + offset, elements...] for tensor coordinates
    kVector,  // {elements...}, and the pair p|q
    kLabel,   // target: index of an instruction
  };
  Kind kind = Kind::kNone;
  bool negated = false;       // !p
  bool is_predicate = false;  // a register declared .pred
  int row = -1;
  int64_t offset = 0;
  int target = -1;
  std::vector<Operand> elements;

  bool is(Kind k) const { return kind == k; }
};

// What becomes of the lanes that ran an instruction.
enum class Flow : uint8_t {
  kNext,      // they go on with the next instruction
  kJumped,    // the handler has set fragment.pc, and split the fragment where the lanes part
  kSleep,     // the instruction is done, and they go on after it once wake() has been called
  kRetry,     // it is not done: wake() makes them execute it again
  kConverge,  // it is not done: it waits for other lanes of the warp to come to this instruction
  kYield,     // done; a polling loop, so others should run before they go on
  kExit,      // they leave the kernel
};

// Executes `in` for `lanes`, which all passed the guard. Called only with lanes != 0.
using Handler = Flow (*)(Execution& x, Instruction const& in, Lanes lanes);

// What a binder worked out beyond the handler; each handler knows its own subclass.
struct Detail {
  virtual ~Detail() = default;
};

struct Instruction {
  Handler run = nullptr;
  int guard = -1;              // predicate row, -1 for none
  bool guard_negated = false;  // @!p
  bool splits = false;         // the guarded-off lanes go their own way first, as for barriers
  bool is_target = false;      // some branch leads here, so lanes may meet again
  std::vector<Operand> operands;
  std::vector<std::string> opcode;  // "ld.global.v4.u32" -> {"ld", "global", "v4", "u32"}
  std::string text;                 // as in the PTX file, for reports
  Location const* location = nullptr;
  std::unique_ptr<Detail> detail;

  template <class T>
  T const& as() const {
    return static_cast<T const&>(*detail);
  }
};

}  // namespace hostsim
