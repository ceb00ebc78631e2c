// The report when no thread can go on: who waits where, and for what.
#pragma once

namespace hostsim {

[[noreturn]] void report_stuck(char const* kind, char const* summary);

}  // namespace hostsim
