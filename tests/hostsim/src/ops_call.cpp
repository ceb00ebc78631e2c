// Calls of functions that the CUDA driver provides: vprintf, which device code's printf becomes, and
// __assertfail. Their parameters are .param variables, so all operands are addresses.

#include <cstdio>
#include <cstring>
#include <string>

#include "bind.h"
#include "machine.h"

namespace hostsim {
namespace {

// ---- What a thread passes -------------------------------------------------------------------------

template <class T>
T load(Thread& thread, uint64_t address, char const* what) {
  T value;
  char const* const from = touch(plain_actor(thread), address, sizeof value, Access::kRead, what);
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::string load_string(Thread& thread, uint64_t address, char const* what) {
  if (address == 0) {
    return "(null)";
  }
  std::string text;
  for (;; ++address) {
    char const c = load<char>(thread, address, what);
    if (c == '\0') {
      return text;
    }
    text += c;
  }
}

// The variadic arguments of printf: one after the other, each aligned to its size.
class Arguments {
 public:
  Arguments(Thread& thread, uint64_t address) : thread_(thread), address_(address) {}

  template <class T>
  T next() {
    address_ = (address_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T const value = load<T>(thread_, address_, "printf argument");
    address_ += sizeof(T);
    ++count_;
    return value;
  }
  int count() const { return count_; }
  Thread& thread() const { return thread_; }

 private:
  Thread& thread_;
  uint64_t address_;
  int count_ = 0;
};

// ---- printf ---------------------------------------------------------------------------------------

// One "%..." of a format.
struct Conversion {
  std::string flags;     // with width and precision, numbers by now
  bool is_long = false;  // l, ll, j, z, t: 8 bytes, as on the host
  char letter = '\0';
};

Conversion parse_conversion(std::string const& format, size_t& at, Arguments& arguments) {
  Conversion result;
  for (; at < format.size() && std::strchr("-+ #0123456789.*", format[at]) != nullptr; ++at) {
    result.flags +=
        format[at] == '*' ? std::to_string(arguments.next<int>()) : std::string(1, format[at]);
  }
  for (; at < format.size() && std::strchr("hljzt", format[at]) != nullptr; ++at) {
    result.is_long |= format[at] != 'h';
  }
  result.letter = at < format.size() ? format[at++] : '\0';
  return result;
}

template <class T>
std::string print(std::string const& format, T value) {
  int const size = std::snprintf(nullptr, 0, format.c_str(), value);
  std::string text(size_t(std::max(size, 0)), '\0');
  std::snprintf(text.data(), text.size() + 1, format.c_str(), value);
  return text;
}

std::string convert(Conversion const& conversion, Arguments& arguments) {
  std::string const start = "%" + conversion.flags;
  char const letter = conversion.letter;
  switch (letter) {
    case '%': return "%";
    case 'c': return print(start + letter, arguments.next<int>());
    case 'd':
    case 'i':
    case 'u':
    case 'o':
    case 'x':
    case 'X':
      return conversion.is_long ? print(start + "ll" + letter, arguments.next<long long>())
                                : print(start + letter, arguments.next<int>());
    case 'a':
    case 'A':
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': return print(start + letter, arguments.next<double>());
    case 'p': return print(start + letter, arguments.next<void*>());
    case 's': {
      uint64_t const address = arguments.next<uint64_t>();
      std::string const text = load_string(arguments.thread(), address, "printf string");
      return print(start + letter, text.c_str());
    }
    default: fault("ptx", "printf conversion %%%c is not supported", letter);
  }
}

std::string format_message(std::string const& format, Arguments& arguments) {
  std::string text;
  for (size_t at = 0; at < format.size();) {
    if (format[at] != '%') {
      text += format[at++];
      continue;
    }
    ++at;
    text += convert(parse_conversion(format, at, arguments), arguments);
  }
  return text;
}

// call (result), vprintf, (format, arguments). The result is the number of arguments.
Flow print_message(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) {
    Thread& thread = x.thread(lane);
    auto const parameter = [&](size_t index) {
      return load<uint64_t>(thread, x.address(in.operands[index], lane), "vprintf");
    };
    std::string const format = load_string(thread, parameter(1), "printf format");
    Arguments arguments(thread, parameter(2));
    std::string const text = format_message(format, arguments);
    std::fwrite(text.data(), 1, text.size(), stdout);
    uint32_t const count = uint32_t(arguments.count());
    std::memcpy(touch(plain_actor(thread), x.address(in.operands[0], lane), sizeof count,
                      Access::kWrite, "vprintf"),
                &count, sizeof count);
  });
  std::fflush(stdout);
  return Flow::kNext;
}

// ---- assert ---------------------------------------------------------------------------------------

// call __assertfail, (message, file, line, function, size of a character)
Flow fail_assertion(Execution& x, Instruction const& in, Lanes lanes) {
  int const lane = std::countr_zero(lanes);
  Thread& thread = x.thread(lane);
  auto const text = [&](size_t index) {
    uint64_t const pointer =
        load<uint64_t>(thread, x.address(in.operands[index], lane), "__assertfail");
    return load_string(thread, pointer, "text of an assertion");
  };
  uint32_t const line = load<uint32_t>(thread, x.address(in.operands[2], lane), "__assertfail");
  machine().subject = &thread;
  fault("trap", "assertion `%s` failed, %s:%u, %s", text(0).c_str(), text(1).c_str(), line,
        text(3).c_str());
}

void bind_with_operands(Instruction& in, Handler run, size_t count) {
  Modifiers modifiers(in);
  modifiers.take(in.opcode[1]);  // the function
  modifiers.finish();
  if (in.operands.size() != count) {
    modifiers.unsupported("needs " + std::to_string(count) + " parameters and results");
  }
  in.run = run;
}

void bind_print(Instruction& in) { bind_with_operands(in, print_message, 3); }
void bind_assertion(Instruction& in) { bind_with_operands(in, fail_assertion, 5); }
void bind_unknown_call(Instruction& in) {
  Modifiers(in).unsupported("the function is not in the module");
}

}  // namespace

void add_call(BinderTable& table) {
  table["call.vprintf"] = bind_print;
  table["call.__assertfail"] = bind_assertion;
  table["call"] = bind_unknown_call;
}

}  // namespace hostsim
