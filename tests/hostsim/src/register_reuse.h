// Maps the registers of a kernel, of which PTX has a fresh one for nearly every value, to as few rows
// as it can.
#pragma once

#include "program.h"

namespace hostsim {

// Renumbers all rows of a linked kernel whose instructions are not bound yet. Rows with a value of
// their own, and results of wgmma, which come later, keep a row to themselves.
void reuse_registers(Kernel& kernel);

}  // namespace hostsim
