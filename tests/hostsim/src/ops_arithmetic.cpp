// Chooses between integer and floating-point instructions of the same name, and checks the operands
// of all instructions that work lane by lane.
#include "arithmetic.h"
#include "elementwise.h"

namespace hostsim {

namespace {

bool is_floating(Type type) {
  return is_float(type) || type == Type::kF16x2 || type == Type::kBF16x2;
}

void bind_by_type(Instruction& in) {
  BinderTable const& table =
      is_floating(Modifiers(in).take_type()) ? float_arithmetic() : integer_arithmetic();
  auto const binder = table.find(in.opcode.front());
  if (binder == table.end()) {
    throw Unsupported(in.text + ": no such instruction for this type");
  }
  binder->second(in);
}

bool is_register(Operand const& operand) { return operand.is(Operand::Kind::kRow); }

}  // namespace

void bind_elementwise(Instruction& in, Elementwise const& handler) {
  if (handler.run == nullptr) {
    throw Unsupported(in.text + ": no such instruction for this type");
  }
  if (int(in.operands.size()) != handler.num_sources + 1) {
    throw Unsupported(in.text + ": expected " + std::to_string(handler.num_sources) +
                      " sources, found " + std::to_string(int(in.operands.size()) - 1));
  }
  bool registers = is_register(in.operands[0]) || in.operands[0].is(Operand::Kind::kNone);
  for (size_t i = 1; i < in.operands.size(); ++i) {
    registers = registers && is_register(in.operands[i]);
  }
  if (!registers) {
    throw Unsupported(in.text + ": expected registers, found another kind of operand");
  }
  in.run = handler.run;
}

void add_arithmetic(BinderTable& table) {
  for (BinderTable const* family : {&integer_arithmetic(), &float_arithmetic()}) {
    for (auto const& [opcode, binder] : *family) {
      table[opcode] = bind_by_type;
    }
  }
}

}  // namespace hostsim
