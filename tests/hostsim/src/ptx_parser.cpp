// PTX modules: directives, variables and functions at the outermost level.
#include "ptx_parser.h"

#include <limits>

#include "ptx_declaration.h"

namespace hostsim::ptx {

namespace {

class ModuleParser {
 public:
  explicit ModuleParser(std::vector<Token> const& tokens) : at_(tokens) {}

  ModuleSyntax parse() {
    while (!at_.at_end()) {
      parse_item();
    }
    return std::move(module_);
  }

 private:
  void parse_item() {
    if (at_.accept(".version") || at_.accept(".address_size")) {
      at_.next();
    } else if (at_.accept(".target")) {
      do {
        at_.expect_word();
      } while (at_.accept(','));
    } else if (at_.accept(".file")) {
      parse_file();
    } else if (at_.accept(".section")) {  // debug information
      at_.expect_word();
      at_.skip_group('{', '}');
    } else if (at_.accept(".pragma")) {
      at_.next();
      at_.expect(';');
    } else if (!at_.accept(';')) {
      parse_declaration();
    }
  }

  // .file index "name" [, timestamp, size]
  void parse_file() {
    int const index = int(at_.expect_integer());
    if (!at_.peek().is(Token::Kind::kString)) {
      at_.fail("a file name");
    }
    module_.files[index] = at_.next().text;
    while (at_.accept(',')) {
      at_.expect_integer();
    }
  }

  void parse_declaration() {
    bool is_extern = false;
    while (at_.peek().is(".extern") || at_.peek().is(".visible") || at_.peek().is(".weak") ||
           at_.peek().is(".common")) {
      is_extern |= at_.next().is(".extern");
    }
    Variable::Space space;
    if (at_.peek().is(".entry") || at_.peek().is(".func")) {
      parse_function();
    } else if (parse_space(at_.peek().text, space)) {
      at_.next();
      for (auto& variable : parse_variables(at_, space, is_extern)) {
        module_.variables.push_back(std::move(variable));
      }
    } else {
      at_.fail("a directive that the emulator knows");
    }
  }

  void parse_function() {
    auto function = std::make_unique<Function>();
    function->is_entry = at_.next().is(".entry");
    skip_function_attributes();
    if (at_.accept('(')) {
      function->results = adopt(*function, parse_parameters(at_));
    }
    function->line = at_.line();
    function->name = at_.expect_word();
    if (at_.accept('(')) {
      function->parameters = adopt(*function, parse_parameters(at_));
    }
    while (!at_.accept('{')) {
      if (at_.accept(';')) {
        module_.functions.emplace(function->name, std::move(function));
        return;
      }
      parse_function_directive(*function);
    }
    function->is_defined = true;
    parse_body(at_, *function);
    declare_in_body(*function, function->results);
    declare_in_body(*function, function->parameters);
    std::unique_ptr<Function>& known = module_.functions[function->name];
    if (known != nullptr && known->is_defined) {
      throw SyntaxError(function->line, "a second definition of " + std::string(function->name));
    }
    known = std::move(function);
  }

  static std::vector<Variable const*> adopt(Function& function,
                                            std::vector<std::unique_ptr<Variable>> variables) {
    std::vector<Variable const*> pointers;
    for (auto& variable : variables) {
      pointers.push_back(variable.get());
      function.variables.push_back(std::move(variable));
    }
    return pointers;
  }

  static void declare_in_body(Function& function, std::vector<Variable const*> const& variables) {
    for (Variable const* const variable : variables) {
      function.scopes[0].variables[variable->name] = variable;
    }
  }

  void skip_function_attributes() {
    while (at_.accept(".attribute")) {
      at_.skip_group('(', ')');
    }
  }

  void parse_function_directive(Function& function) {
    uint32_t size[3] = {1, 1, 1};
    if (at_.accept(".maxntid") || at_.accept(".reqntid")) {
      parse_dimensions(size);
      uint64_t const threads = uint64_t(size[0]) * size[1] * size[2];
      function.max_threads = int(std::min<uint64_t>(threads, std::numeric_limits<int>::max()));
    } else if (at_.accept(".reqnctapercluster")) {
      parse_dimensions(size);
      std::copy(size, size + 3, function.cluster);
    } else if (at_.accept(".minnctapersm") || at_.accept(".maxnreg") ||
               at_.accept(".maxclusterrank")) {
      at_.expect_integer();  // these guide the register allocator
    } else if (at_.accept(".pragma")) {
      at_.next();
      at_.expect(';');
    } else if (!at_.accept(".explicitcluster") && !at_.accept(".noreturn")) {
      at_.fail("a directive that the emulator knows, or '{'");
    }
  }

  void parse_dimensions(uint32_t (&size)[3]) {
    size[0] = uint32_t(at_.expect_integer());
    for (int i = 1; i < 3 && at_.accept(','); ++i) {
      size[i] = uint32_t(at_.expect_integer());
    }
  }

  Cursor at_;
  ModuleSyntax module_;
};

}  // namespace

ModuleSyntax parse(std::string_view text) {
  std::vector<Token> const tokens = tokenize(text);
  return ModuleParser(tokens).parse();
}

}  // namespace hostsim::ptx
