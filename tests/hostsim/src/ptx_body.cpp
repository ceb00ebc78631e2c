// The bodies of PTX functions: statements, scopes, labels and source lines.
#include <map>
#include <tuple>

#include "ptx_declaration.h"

namespace hostsim::ptx {

namespace {

using Position = std::tuple<int, int, int>;  // file, line, column

std::vector<std::string> split_opcode(std::string_view word) {
  std::vector<std::string> parts;
  for (;;) {
    size_t const dot = word.find('.');
    parts.emplace_back(word.substr(0, dot));
    if (dot == std::string_view::npos) {
      return parts;
    }
    word.remove_prefix(dot + 1);
  }
}

// One blank for any white space.
std::string squeeze(std::string_view text) {
  std::string result;
  for (char const c : text) {
    bool const blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!blank) {
      result += c;
    } else if (!result.empty() && result.back() != ' ') {
      result += ' ';
    }
  }
  while (result.ends_with(' ')) {
    result.pop_back();
  }
  return result;
}

class BodyParser {
 public:
  BodyParser(Cursor& at, Function& function) : at_(at), function_(function) {}

  void parse() {
    open_scope();
    while (scope_ >= 0) {
      if (at_.accept('{')) {
        open_scope();
      } else if (at_.accept('}')) {
        scope_ = scope().parent;
      } else if (at_.peek(1).is(':')) {
        parse_label();
      } else if (at_.peek().is(Token::Kind::kWord) && at_.peek().text.starts_with('.')) {
        parse_directive();
      } else if (!at_.accept(';')) {
        parse_instruction();
      }
    }
  }

 private:
  Scope& scope() { return function_.scopes[size_t(scope_)]; }

  void open_scope() {
    int const parent = scope_;
    scope_ = int(function_.scopes.size());
    function_.scopes.emplace_back().parent = parent;
  }

  void parse_label() {
    std::string_view const name = at_.expect_word();
    at_.expect(':');
    if (at_.accept(".branchtargets")) {
      std::vector<std::string_view>& targets = scope().branch_targets[name];
      do {
        targets.push_back(at_.expect_word());
      } while (at_.accept(','));
      at_.expect(';');
    } else if (at_.peek().is(".callprototype") || at_.peek().is(".calltargets")) {
      skip_statement();  // the indirect calls that need it are unsupported
    } else if (!scope().labels.emplace(name, int(function_.body.size())).second) {
      at_.fail("a new label");
    }
  }

  void skip_statement() {
    while (!at_.accept(';')) {
      if (at_.at_end()) {
        at_.fail("';'");
      }
      at_.next();
    }
  }

  void parse_directive() {
    Variable::Space space;
    if (at_.accept(".loc")) {
      parse_loc();
    } else if (at_.accept(".reg")) {
      parse_registers(at_, scope());
    } else if (at_.accept(".pragma")) {
      skip_statement();  // for the optimiser
    } else if (parse_space(at_.peek().text, space) && space != Variable::Space::kGlobal &&
               space != Variable::Space::kConst) {
      at_.next();
      declare_variables(space);
    } else {
      at_.fail("a statement");
    }
  }

  void declare_variables(Variable::Space space) {
    for (auto& variable : parse_variables(at_, space, false)) {
      scope().variables[variable->name] = variable.get();
      function_.variables.push_back(std::move(variable));
    }
  }

  // .loc file line column [, function_name label [+ offset], inlined_at file line column]
  void parse_loc() {
    Position const here = parse_position();
    SourceLine source{std::get<0>(here), std::get<1>(here), std::get<2>(here), -1};
    if (at_.accept(',')) {
      if (!at_.accept("function_name")) {
        at_.fail("function_name");
      }
      parse_expression(at_);
      at_.expect(',');
      if (!at_.accept("inlined_at")) {
        at_.fail("inlined_at");
      }
      source.outer = source_line_at(parse_position());
    }
    // Line 0 marks instructions that belong to no line, which the compiler has moved. The line
    // before is the better guide to a reader of reports.
    if (source.line > 0) {
      source_line_ = add_source_line(source);
    }
  }

  Position parse_position() {
    int const file = int(at_.expect_integer());
    int const line = int(at_.expect_integer());
    int const column = int(at_.expect_integer());
    return {file, line, column};
  }

  int add_source_line(SourceLine const& source) {
    int const index = int(function_.source_lines.size());
    function_.source_lines.push_back(source);
    latest_[{source.file, source.line, source.column}] = index;
    return index;
  }

  // The compiler writes the .loc of a call before those of what it inlined there.
  int source_line_at(Position const& position) {
    if (auto const found = latest_.find(position); found != latest_.end()) {
      return found->second;
    }
    auto const [file, line, column] = position;
    return add_source_line({file, line, column, -1});
  }

  void parse_instruction() {
    Statement statement;
    statement.scope = scope_;
    statement.line = at_.line();
    statement.source_line = source_line_;
    char const* const begin = at_.peek().text.data();
    if (at_.accept('@')) {
      statement.guard_negated = at_.accept('!');
      statement.guard = at_.expect_word();
    }
    statement.opcode = split_opcode(at_.expect_word());
    while (at_.peek().is(Token::Kind::kWord) && at_.peek().text.starts_with('.')) {
      for (std::string& word : split_opcode(at_.next().text.substr(1))) {
        statement.opcode.push_back(std::move(word));
      }
    }
    while (!at_.peek().is(';')) {
      if (!statement.operands.empty()) {
        at_.expect(',');
      }
      statement.operands.push_back(parse_expression(at_));
    }
    statement.text = squeeze({begin, size_t(at_.peek().text.data() - begin)});
    at_.expect(';');
    function_.body.push_back(std::move(statement));
  }

  Cursor& at_;
  Function& function_;
  int scope_ = -1;
  int source_line_ = -1;
  std::map<Position, int> latest_;  // index of the latest source line there
};

}  // namespace

void parse_body(Cursor& at, Function& function) { BodyParser(at, function).parse(); }

}  // namespace hostsim::ptx
