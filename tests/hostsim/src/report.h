// Everything the emulator has to say against a kernel. A report names the kind of error, what
// happened, the thread and the source line; the same error at the same place is told once.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace hostsim {

// A source position. `outer` is where that function was inlined, nullptr at the kernel itself.
struct Location {
  char const* file = "";
  int line = 0;
  Location const* outer = nullptr;
};

std::string describe(Location const* location);  // "a.cuh:12, inlined at b.cu:80"; "" for nullptr
std::string short_kernel_name(std::string const& mangled);  // without namespaces and arguments

struct Report {
  std::string kind;     // "race", "memory", "deadlock", ...; see README.md
  std::string message;  // with names and numbers
  std::string where;    // kernel, block, thread, source line
};

// Thrown by fault(): the kernel cannot go on. The launch ends, the process does not.
struct KernelFault : std::exception {
  char const* what() const noexcept override { return "the kernel cannot go on"; }
};

// Records a report at the place of the current instruction; the kernel goes on.
[[gnu::format(printf, 2, 3)]] void report(char const* kind, char const* format, ...);

// The same, and ends the launch.
[[noreturn, gnu::format(printf, 2, 3)]] void fault(char const* kind, char const* format, ...);

std::vector<Report> const& reports();  // at most kMaxReports of them
int num_reports();                     // including those not kept
void clear_reports();

inline constexpr int kMaxReports = 20;

}  // namespace hostsim
