// Collects what the lanes of the current instruction touch; count_requests() turns it into traffic.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.h"

namespace hostsim {

void count_global(Buffer& buffer, size_t offset, size_t size, Access access);
void count_shared(uint32_t address, size_t size);
void drop_requests();  // after a fault

}  // namespace hostsim
