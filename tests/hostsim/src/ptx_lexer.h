// Splits PTX text into tokens, and a cursor over them. Comments and white space are dropped.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace hostsim::ptx {

// The text is no PTX, or uses a directive that the emulator does not know.
struct SyntaxError : std::runtime_error {
  SyntaxError(int line, std::string const& what)
      : std::runtime_error("PTX line " + std::to_string(line) + ": " + what) {}
};

struct Token {
  enum class Kind : uint8_t {
    kEnd,
    kWord,    // names, opcodes with their modifiers, directives: "%r1", "ld.global.u32", ".reg"
    kNumber,  // without sign: "42", "0x2aU", "0f3F800000", "1.5e-3"
    kString,  // without the quotation marks
    kPunctuation,  // one character
  };
  Kind kind = Kind::kEnd;
  std::string_view text;  // part of the text that was split
  int line = 0;

  bool is(Kind k) const { return kind == k; }
  bool is(char c) const { return kind == Kind::kPunctuation && text[0] == c; }
  bool is(std::string_view word) const { return kind == Kind::kWord && text == word; }
};

// The last token is kEnd. Tokens refer to `text`, which must outlive them.
std::vector<Token> tokenize(std::string_view text);

// Where a parser is. All expect_*() throw SyntaxError if something else is there.
class Cursor {
 public:
  explicit Cursor(std::vector<Token> const& tokens) : tokens_(tokens) {}

  Token const& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token const& next() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_.back(); }
  bool at_end() const { return peek().is(Token::Kind::kEnd); }
  bool accept(char punctuation);
  bool accept(std::string_view word);
  void expect(char punctuation);
  std::string_view expect_word();
  // A number without sign that is an integer.
  uint64_t expect_integer();
  // Skips "(...)" or "{...}" including what is nested, if it is there.
  void skip_group(char open, char close);
  // The error "expected `what`, found ...".
  [[noreturn]] void fail(std::string const& what) const;
  int line() const { return peek().line; }

 private:
  std::vector<Token> const& tokens_;
  size_t at_ = 0;
};

// "0x2aU" -> 42. Throws SyntaxError.
uint64_t parse_integer(Token const& number);

}  // namespace hostsim::ptx
