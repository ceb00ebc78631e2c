// The reductions of bulk copies: memory op= source, element by element.
#pragma once

#include <cstddef>

#include "bind.h"

namespace hostsim {

enum class ReductionKind : int { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor };
ReductionKind take_reduction_kind(Modifiers& modifiers);

// On `bytes` bytes, a multiple of the element's size.
using Reduction = void (*)(char* memory, char const* source, size_t bytes);

// For global memory; nullptr where PTX defines none. Types of bits stand for unsigned integers.
Reduction find_reduction(ReductionKind kind, Type type);

// Those that PTX also defines for shared memory.
bool is_defined_in_shared(ReductionKind kind, Type type);

}  // namespace hostsim
