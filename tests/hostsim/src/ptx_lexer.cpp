// Splits PTX text into tokens, and moves over them.
#include "ptx_lexer.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace hostsim::ptx {

namespace {

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }
bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' ||
         c == '.';
}

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::vector<Token> run() {
    std::vector<Token> tokens;
    tokens.reserve(text_.size() / 4);
    for (skip_blanks(); at_ < text_.size(); skip_blanks()) {
      tokens.push_back(next());
    }
    tokens.push_back({Token::Kind::kEnd, {}, line_});
    return tokens;
  }

 private:
  // The character `ahead` of the current one, 0 behind the end.
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  bool starts_with(std::string_view prefix) const { return text_.substr(at_).starts_with(prefix); }

  void skip_blanks() {
    while (at_ < text_.size()) {
      if (starts_with("//")) {
        skip_to("\n");
      } else if (starts_with("/*")) {
        skip_to("*/");
        at_ = std::min(at_ + 2, text_.size());
      } else if (peek() == '\n') {
        ++line_;
        ++at_;
      } else if (std::isspace(static_cast<unsigned char>(peek())) || peek() == '\0') {
        ++at_;
      } else {
        return;
      }
    }
  }

  // Stops before `end`, or at the end of the text.
  void skip_to(std::string_view end) {
    for (; at_ < text_.size() && !starts_with(end); ++at_) {
      line_ += peek() == '\n';
    }
  }

  Token next() {
    size_t const begin = at_;
    if (peek() == '"') {
      return quoted();
    }
    Token::Kind kind = Token::Kind::kPunctuation;
    if (is_digit(peek())) {
      kind = Token::Kind::kNumber;
      skip_number();
    } else if (is_word(peek())) {
      kind = Token::Kind::kWord;
      skip_word();
    } else {
      ++at_;
    }
    return {kind, text_.substr(begin, at_ - begin), line_};
  }

  // "::" is part of a word, as in shared::cta; one ":" ends a label.
  void skip_word() {
    while (is_word(peek()) || starts_with("::")) {
      at_ += starts_with("::") ? 2 : 1;
    }
  }

  void skip_number() {
    bool const decimal = peek() != '0' || is_digit(peek(1)) || peek(1) == '.';
    while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '.') {
      bool const exponent = decimal && (peek() == 'e' || peek() == 'E');
      ++at_;
      if (exponent && (peek() == '+' || peek() == '-')) {
        ++at_;
      }
    }
  }

  Token quoted() {
    size_t const begin = ++at_;
    while (at_ < text_.size() && peek() != '"' && peek() != '\n') {
      ++at_;
    }
    if (peek() != '"') {
      throw SyntaxError(line_, "a string without its end");
    }
    return {Token::Kind::kString, text_.substr(begin, at_++ - begin), line_};
  }

  std::string_view text_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

std::vector<Token> tokenize(std::string_view text) { return Lexer(text).run(); }

bool Cursor::accept(char punctuation) {
  if (!peek().is(punctuation)) {
    return false;
  }
  next();
  return true;
}

bool Cursor::accept(std::string_view word) {
  if (!peek().is(word)) {
    return false;
  }
  next();
  return true;
}

void Cursor::expect(char punctuation) {
  if (!accept(punctuation)) {
    fail(std::string("'") + punctuation + "'");
  }
}

std::string_view Cursor::expect_word() {
  if (!peek().is(Token::Kind::kWord)) {
    fail("a name");
  }
  return next().text;
}

uint64_t Cursor::expect_integer() {
  if (!peek().is(Token::Kind::kNumber)) {
    fail("a number");
  }
  return parse_integer(next());
}

void Cursor::skip_group(char open, char close) {
  if (!accept(open)) {
    return;
  }
  for (int depth = 1; depth > 0; next()) {
    if (at_end()) {
      fail(std::string("'") + close + "'");
    }
    depth += peek().is(open) ? 1 : peek().is(close) ? -1 : 0;
  }
}

void Cursor::fail(std::string const& what) const {
  std::string const found = at_end() ? "the end of the text" : std::string(peek().text);
  throw SyntaxError(line(), "expected " + what + ", found " + found);
}

uint64_t parse_integer(Token const& number) {
  std::string_view text = number.text;
  if (text.ends_with('U')) {
    text.remove_suffix(1);
  }
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  } else if (text.starts_with("0b") || text.starts_with("0B")) {
    base = 2;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
    text.remove_prefix(1);
  }
  uint64_t value = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    throw SyntaxError(number.line, "no integer: " + std::string(number.text));
  }
  return value;
}

}  // namespace hostsim::ptx
