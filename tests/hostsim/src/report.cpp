#include "report.h"

#include <cxxabi.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>

#include "machine.h"

namespace hostsim {
namespace {

std::vector<Report> g_reports;
std::set<std::string> g_told;  // kind and place of every report so far
int g_num_reports = 0;

std::string format_arguments(char const* format, va_list arguments) {
  char buffer[1024];
  vsnprintf(buffer, sizeof buffer, format, arguments);
  return buffer;
}

char const* base_name(char const* path) {
  char const* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

std::string position(Location const& location) {
  return std::string(base_name(location.file)) + ":" + std::to_string(location.line);
}

std::string describe_dim(Dim3 const& d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

// Where the machine is: "kernel_name, block (0,0,0), thread (3,0,0), a.cu:12".
std::string current_place() {
  Machine const& m = machine();
  if (m.now == nullptr) {
    return "";
  }
  Execution const& x = *m.now;
  int const lane =
      x.fragment != nullptr && x.fragment->lanes != 0 ? std::countr_zero(x.fragment->lanes) : 0;
  Thread const& thread = m.subject != nullptr ? *m.subject : x.thread(lane);
  std::string place = short_kernel_name(x.grid().kernel->name) + ", block " +
                      describe_dim(thread.block().id) + ", thread " + describe_dim(thread.id);
  if (m.instruction != nullptr && m.instruction->location != nullptr) {
    place += ", " + describe(m.instruction->location);
  }
  return place;
}

void record(char const* kind, std::string message) {
  ++g_num_reports;
  Instruction const* instruction = machine().instruction;
  // The same finding by another thread or in another iteration says nothing new.
  std::string key = kind;
  key += instruction != nullptr ? instruction->text + describe(instruction->location) : message;
  if (int(g_reports.size()) < kMaxReports && g_told.insert(key).second) {
    g_reports.push_back({kind, std::move(message), current_place()});
  }
}

}  // namespace

std::string describe(Location const* location) {
  if (location == nullptr || location->line == 0) {
    return "";
  }
  std::string text = position(*location);
  for (Location const* outer = location->outer; outer != nullptr; outer = outer->outer) {
    text += (outer == location->outer ? ", inlined at " : ", ") + position(*outer);
  }
  return text;
}

std::string short_kernel_name(std::string const& mangled) {
  int status = 0;
  std::unique_ptr<char, decltype(&std::free)> const demangled(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), &std::free);
  // The names of CUTLASS kernels can be longer than the demangler takes.
  std::string name = status == 0 ? demangled.get() : mangled.substr(0, 60);
  for (std::string const hidden = "(anonymous namespace)::";
       name.find(hidden) != std::string::npos;) {
    name.erase(name.find(hidden), hidden.size());
  }
  name = name.substr(0, name.find_first_of("<("));
  // "void space::kernel" -> "kernel"
  size_t const start = name.find_last_of(" :");
  return start == std::string::npos ? name : name.substr(start + 1);
}

void report(char const* kind, char const* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(kind, format_arguments(format, arguments));
  va_end(arguments);
}

void fault(char const* kind, char const* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(kind, format_arguments(format, arguments));
  va_end(arguments);
  throw KernelFault();
}

std::vector<Report> const& reports() { return g_reports; }
int num_reports() { return g_num_reports; }

void clear_reports() {
  g_reports.clear();
  g_told.clear();
  g_num_reports = 0;
}

}  // namespace hostsim
