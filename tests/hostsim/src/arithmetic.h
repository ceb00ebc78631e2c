// "add", "min" and others name an integer or a floating-point instruction, by the type that follows.
// Both have a table of binders, keyed by the opcode's first word; ops_arithmetic.cpp chooses.
#pragma once

#include "bind.h"

namespace hostsim {

BinderTable const& integer_arithmetic();  // ops_integer.cpp: also packed pairs of 16 bits
BinderTable const& float_arithmetic();    // ops_float.cpp: also half precision and its packed pairs

}  // namespace hostsim
