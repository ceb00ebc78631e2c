// Tensor maps as instructions see them.
#pragma once

#include "bind.h"
#include "machine.h"
#include "tensor_map.h"

namespace hostsim {

// The valid tensor map at a generic address.
TensorMap read_tensor_map(Thread& thread, uint64_t address, char const* what);

void add_tensor_map(BinderTable& table);  // tensormap.*, its prefetch and fence

}  // namespace hostsim
