// The names of PTX's special registers.
#pragma once

#include <optional>
#include <string_view>

#include "program.h"

namespace hostsim {

std::optional<Special> parse_special(std::string_view name);  // "%tid.x"
bool is_clock(std::string_view name);                         // those that change while a warp runs

}  // namespace hostsim
