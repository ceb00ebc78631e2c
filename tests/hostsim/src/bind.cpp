// Finds the handler of an instruction.
#include "bind.h"

#include <algorithm>
#include <array>

namespace hostsim {

namespace {

// Modifiers that say how to cache, or what threads promise, and change no result.
bool is_hint(std::string_view word) {
  static constexpr std::array<std::string_view, 22> kHints{
      "ca",
      "cg",
      "cs",
      "lu",
      "cv",
      "wb",
      "wt",
      "aligned",
      "weak",
      "uni",
      "L1::evict_normal",
      "L1::evict_unchanged",
      "L1::evict_first",
      "L1::evict_last",
      "L1::no_allocate",
      "L2::evict_normal",
      "L2::evict_first",
      "L2::evict_last",
      "L2::cache_hint",
      "L2::64B",
      "L2::128B",
      "L2::256B",
  };
  return std::find(kHints.begin(), kHints.end(), word) != kHints.end();
}

BinderTable make_table() {
  BinderTable table;
  for (auto* const add_family : {
           add_arithmetic,      add_integer,    add_carry,       add_bits,
           add_bit_fields,      add_compare,    add_move,        add_float,
           add_float_functions, add_convert,    add_control,     add_call,
           add_memory,          add_atomic,     add_grid,        add_warp,
           add_matrix,          add_wgmma,      add_tcgen05,     add_barrier,
           add_mbarrier,        add_async_copy, add_tensor_copy,
       }) {
    add_family(table);
  }
  return table;
}

// The longest prefix of the opcode, word by word, that is a key.
Binder find_binder(std::vector<std::string> const& opcode) {
  static BinderTable const table = make_table();
  std::string key;
  for (std::string const& word : opcode) {
    key += (key.empty() ? "" : ".") + word;
  }
  for (;;) {
    if (auto const found = table.find(key); found != table.end()) {
      return found->second;
    }
    size_t const dot = key.rfind('.');
    if (dot == std::string::npos) {
      return nullptr;
    }
    key.resize(dot);
  }
}

}  // namespace

bool Modifiers::take(std::string_view word) {
  auto const found = std::find(words_.begin(), words_.end(), word);
  if (found == words_.end()) {
    return false;
  }
  words_.erase(found);
  return true;
}

int Modifiers::take_any(std::initializer_list<std::string_view> words) {
  int index = 0;
  for (std::string_view const word : words) {
    if (take(word)) {
      return index;
    }
    ++index;
  }
  return -1;
}

int Modifiers::take_one(std::initializer_list<std::string_view> words) {
  int const index = take_any(words);
  if (index < 0) {
    std::string list;
    for (std::string_view const word : words) {
      list += (list.empty() ? "." : ", .") + std::string(word);
    }
    unsupported("needs one of " + list);
  }
  return index;
}

Type Modifiers::take_type() {
  auto const type = words_.empty() ? std::nullopt : parse_type(words_.back());
  if (!type) {
    unsupported("does not end with a type");
  }
  words_.pop_back();
  return *type;
}

std::string Modifiers::take_prefixed(std::string_view prefix) {
  auto const found = std::find_if(words_.begin(), words_.end(), [&](std::string const& word) {
    return word.starts_with(prefix);
  });
  if (found == words_.end()) {
    return "";
  }
  std::string word = std::move(*found);
  words_.erase(found);
  return word;
}

void Modifiers::take_hints() { std::erase_if(words_, is_hint); }

void Modifiers::finish() const {
  if (!words_.empty()) {
    unsupported("unknown modifier ." + words_[0]);
  }
}

void Modifiers::unsupported(std::string const& why) const { throw Unsupported(text_ + ": " + why); }

void bind(Instruction& in) {
  Binder const binder = find_binder(in.opcode);
  if (binder == nullptr) {
    throw Unsupported(in.text + ": unknown instruction");
  }
  binder(in);
}

}  // namespace hostsim
