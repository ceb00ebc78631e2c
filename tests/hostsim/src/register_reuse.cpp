// Register allocation: liveness by data flow, then a linear scan over intervals.
//
// A lane never sees what other lanes do to their part of a row, so liveness is that of one thread,
// however the lanes of the warp diverge. A row belongs to a register from the first to the last
// instruction at which the register is live or mentioned.
#include "register_reuse.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <string_view>
#include <unordered_set>
#include <utility>

namespace hostsim {

namespace {

// ---- What an instruction does to rows -------------------------------------------------------------

template <class Visit>
void visit_rows(Operand const& operand, Visit&& visit) {
  if (operand.row >= 0) {
    visit(operand.row);
  }
  for (Operand const& element : operand.elements) {
    visit_rows(element, visit);
  }
}

// Instructions whose first operand is a result, written whole and not read. All others count as
// readers of all they mention, which at worst keeps a row longer than needed.
bool defines_first_operand(Instruction const& in) {
  static std::unordered_set<std::string_view> const opcodes{
      "abs",          "add",        "addc",     "and",        "atom",     "bfe",      "bfi",
      "bfind",        "bmsk",       "brev",     "clz",        "cnot",     "copysign", "cos",
      "createpolicy", "cvt",        "cvta",     "div",        "dp2a",     "dp4a",     "elect",
      "ex2",          "fma",        "fns",      "getctarank", "isspacep", "ld",       "ldmatrix",
      "ldu",          "lg2",        "lop3",     "mad",        "mad24",    "madc",     "mapa",
      "match",        "max",        "mbarrier", "min",        "mma",      "mov",      "movmatrix",
      "mul",          "mul24",      "neg",      "not",        "or",       "popc",     "prmt",
      "rcp",          "redux",      "rem",      "rsqrt",      "sad",      "selp",     "set",
      "setp",         "shf",        "shfl",     "shl",        "shr",      "sin",      "slct",
      "sqrt",         "sub",        "subc",     "szext",      "tanh",     "testp",    "vote",
      "xor",          "activemask",
  };
  // Of mbarrier, only the forms with a result do not begin with an address.
  return in.guard < 0 && !in.operands.empty() && !in.operands[0].is(Operand::Kind::kMemory) &&
         opcodes.contains(in.opcode[0]);
}

// wgmma.mma_async, tcgen05.ld
bool writes_registers_later(Instruction const& in) {
  return in.opcode.size() > 1 && ((in.opcode[0] == "wgmma" && in.opcode[1] == "mma_async") ||
                                  (in.opcode[0] == "tcgen05" && in.opcode[1] == "ld"));
}

// ---- Blocks ---------------------------------------------------------------------------------------

class RowSet {
 public:
  explicit RowSet(int num_rows) : words_((size_t(num_rows) + 63) / 64) {}

  bool contains(int row) const { return (words_[size_t(row) / 64] >> (row % 64) & 1) != 0; }
  void insert(int row) { words_[size_t(row) / 64] |= uint64_t(1) << (row % 64); }
  // Adds `other` without `removed`; true if that changed anything.
  bool insert_all(RowSet const& other, RowSet const* removed = nullptr) {
    uint64_t changed = 0;
    for (size_t i = 0; i < words_.size(); ++i) {
      uint64_t const added = other.words_[i] & (removed != nullptr ? ~removed->words_[i] : ~0ull);
      changed |= added & ~words_[i];
      words_[i] |= added;
    }
    return changed != 0;
  }
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (size_t i = 0; i < words_.size(); ++i) {
      for (uint64_t word = words_[i]; word != 0; word &= word - 1) {
        visit(int(i) * 64 + std::countr_zero(word));
      }
    }
  }

 private:
  std::vector<uint64_t> words_;
};

struct BasicBlock {
  int begin = 0;
  int end = 0;
  std::vector<int> successors;  // blocks
  RowSet read_first;            // read before the block writes them
  RowSet defined;               // written whole by the block
  RowSet live_in;
  RowSet live_out;

  BasicBlock(int begin_, int end_, int num_rows)
      : begin(begin_),
        end(end_),
        read_first(num_rows),
        defined(num_rows),
        live_in(num_rows),
        live_out(num_rows) {}
};

template <class Visit>
void visit_targets(Instruction const& in, Visit&& visit) {
  for (Operand const& operand : in.operands) {
    if (operand.is(Operand::Kind::kLabel)) {
      visit(operand.target);
    }
    for (Operand const& element : operand.elements) {
      if (element.is(Operand::Kind::kLabel)) {
        visit(element.target);
      }
    }
  }
}

bool is_branch(Instruction const& in) { return in.opcode[0] == "bra" || in.opcode[0] == "brx"; }
bool leaves(Instruction const& in) { return in.opcode[0] == "exit" || in.opcode[0] == "ret"; }

class Liveness {
 public:
  explicit Liveness(Kernel const& kernel) : kernel_(kernel) {
    find_blocks();
    connect_blocks();
    for (BasicBlock& block : blocks_) {
      summarize(block);
    }
    propagate();
  }

  std::vector<BasicBlock> const& blocks() const { return blocks_; }

 private:
  void find_blocks() {
    std::vector<Instruction> const& code = kernel_.code;
    std::vector<bool> starts(code.size() + 1);
    starts[0] = starts[code.size()] = true;
    for (size_t i = 0; i < code.size(); ++i) {
      visit_targets(code[i], [&](int target) { starts[size_t(target)] = true; });
      if (is_branch(code[i]) || leaves(code[i])) {
        starts[i + 1] = true;
      }
    }
    block_at_.resize(code.size());
    for (size_t begin = 0; begin < code.size();) {
      size_t end = begin + 1;
      while (!starts[end]) {
        ++end;
      }
      block_at_[begin] = int(blocks_.size());
      blocks_.emplace_back(int(begin), int(end), kernel_.num_rows);
      begin = end;
    }
  }

  void connect_blocks() {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      BasicBlock& block = blocks_[i];
      Instruction const& last = kernel_.code[size_t(block.end - 1)];
      visit_targets(last,
                    [&](int target) { block.successors.push_back(block_at_[size_t(target)]); });
      bool const falls_through = last.guard >= 0 || (!is_branch(last) && !leaves(last));
      if (falls_through && i + 1 < blocks_.size()) {
        block.successors.push_back(int(i) + 1);
      }
    }
  }

  void summarize(BasicBlock& block) const {
    auto const read = [&](int row) {
      if (!block.defined.contains(row)) {
        block.read_first.insert(row);
      }
    };
    for (int i = block.begin; i < block.end; ++i) {
      Instruction const& in = kernel_.code[size_t(i)];
      if (in.guard >= 0) {
        read(in.guard);
      }
      size_t const num_results = defines_first_operand(in) ? 1 : 0;
      for (size_t k = num_results; k < in.operands.size(); ++k) {
        visit_rows(in.operands[k], read);
      }
      if (num_results > 0) {
        visit_rows(in.operands[0], [&](int row) { block.defined.insert(row); });
      }
    }
  }

  void propagate() {
    for (bool changed = true; changed;) {
      changed = false;
      for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
        for (int const successor : block->successors) {
          block->live_out.insert_all(blocks_[size_t(successor)].live_in);
        }
        changed |= block->live_in.insert_all(block->read_first);
        changed |= block->live_in.insert_all(block->live_out, &block->defined);
      }
    }
  }

  Kernel const& kernel_;
  std::vector<BasicBlock> blocks_;
  std::vector<int> block_at_;  // block that begins at an instruction
};

// ---- Intervals ------------------------------------------------------------------------------------

struct Interval {
  int row = 0;
  int first = -1;  // instruction; -1: never mentioned
  int last = -1;

  void extend(int at) {
    first = first < 0 ? at : std::min(first, at);
    last = std::max(last, at);
  }
};

std::vector<Interval> find_intervals(Kernel const& kernel) {
  std::vector<Interval> intervals(size_t(kernel.num_rows));
  auto const extend = [&](int row, int at) { intervals[size_t(row)].extend(at); };
  for (size_t i = 0; i < intervals.size(); ++i) {
    intervals[i].row = int(i);
  }
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    Instruction const& in = kernel.code[i];
    if (in.guard >= 0) {
      extend(in.guard, int(i));
    }
    for (Operand const& operand : in.operands) {
      visit_rows(operand, [&](int row) { extend(row, int(i)); });
    }
  }
  Liveness const liveness(kernel);
  for (BasicBlock const& block : liveness.blocks()) {
    block.live_in.for_each([&](int row) { extend(row, block.begin); });
    block.live_out.for_each([&](int row) { extend(row, block.end - 1); });
  }
  return intervals;
}

std::vector<bool> find_unshared_rows(Kernel const& kernel) {
  std::vector<bool> unshared(size_t(kernel.num_rows));
  auto const keep = [&](auto const& list) {
    for (auto const& entry : list) {
      unshared[size_t(entry.row)] = true;
    }
  };
  keep(kernel.constants);
  keep(kernel.specials);
  keep(kernel.shared_addresses);
  keep(kernel.local_addresses);
  keep(kernel.parameter_addresses);
  for (Instruction const& in : kernel.code) {
    if (writes_registers_later(in) && !in.operands.empty()) {
      visit_rows(in.operands[0], [&](int row) { unshared[size_t(row)] = true; });
    }
  }
  return unshared;
}

// New rows by old ones; -1 for registers that no instruction mentions.
std::vector<int> assign_rows(std::vector<Interval> intervals, std::vector<bool> const& unshared,
                             int& num_rows) {
  std::vector<int> assigned(intervals.size(), -1);
  num_rows = 0;
  for (size_t row = 0; row < unshared.size(); ++row) {
    if (unshared[row]) {
      assigned[row] = num_rows++;
    }
  }
  std::erase_if(intervals, [&](Interval const& interval) {
    return interval.first < 0 || unshared[size_t(interval.row)];
  });
  std::sort(intervals.begin(), intervals.end(),
            [](Interval const& a, Interval const& b) { return a.first < b.first; });
  using Ending = std::pair<int, int>;  // last instruction, new row
  std::priority_queue<Ending, std::vector<Ending>, std::greater<>> active;
  std::vector<int> free;
  for (Interval const& interval : intervals) {
    // Strictly before: the results of an instruction never take a row that it still reads.
    while (!active.empty() && active.top().first < interval.first) {
      free.push_back(active.top().second);
      active.pop();
    }
    if (free.empty()) {
      free.push_back(num_rows++);
    }
    assigned[size_t(interval.row)] = free.back();
    active.emplace(interval.last, free.back());
    free.pop_back();
  }
  return assigned;
}

// ---- Renumbering ----------------------------------------------------------------------------------

void renumber(Operand& operand, std::vector<int> const& rows) {
  if (operand.row >= 0) {
    operand.row = rows[size_t(operand.row)];
  }
  for (Operand& element : operand.elements) {
    renumber(element, rows);
  }
}

void renumber(Kernel& kernel, std::vector<int> const& rows) {
  for (Instruction& in : kernel.code) {
    if (in.guard >= 0) {
      in.guard = rows[size_t(in.guard)];
    }
    for (Operand& operand : in.operands) {
      renumber(operand, rows);
    }
  }
  auto const renumber_list = [&](auto& list) {
    for (auto& entry : list) {
      entry.row = rows[size_t(entry.row)];
    }
  };
  renumber_list(kernel.constants);
  renumber_list(kernel.specials);
  renumber_list(kernel.shared_addresses);
  renumber_list(kernel.local_addresses);
  renumber_list(kernel.parameter_addresses);
}

}  // namespace

void reuse_registers(Kernel& kernel) {
  int num_rows = 0;
  std::vector<int> const rows =
      assign_rows(find_intervals(kernel), find_unshared_rows(kernel), num_rows);
  renumber(kernel, rows);
  kernel.num_rows = num_rows;
}

}  // namespace hostsim
