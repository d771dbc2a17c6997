#include "tokens.h"

#include <algorithm>

#include "commands.h"
#include "number_text.h"
#include "words.h"

namespace fastrl::grading {

namespace {

bool is_beyond_ascii(char c) { return (c & 0x80) != 0; }

class Lexer {
public:
    Lexer(std::string_view text, bool lists_only, Tokens& out)
        : out_(out), text_(out.source), lists_only_(lists_only) {
        out_.clear();
        write_notation(text);
        text_ = out_.source;
    }

    void run() {
        while (at_ < text_.size()) step();
        push(Tok::stop, at_, at_);
    }

private:
    Tokens& out_;
    std::string_view text_;
    bool lists_only_;
    size_t at_ = 0;
    bool space_ = false;
    int depth_ = 0;             // of brackets, in which a comma always separates
    std::vector<bool> braces_;  // whether each open brace is one of a text command
    int text_braces_ = 0;

    void write_notation(std::string_view text) {
        std::string& source = out_.source;
        size_t script_end = std::string_view::npos;
        for (size_t i = 0; i < text.size();) {
            if (!is_beyond_ascii(text[i])) {
                source += text[i++];
                continue;
            }
            size_t size;
            const auto notation = notation_of(text.substr(i), size);
            if (size == 0) {
                source += text[i++];
                continue;
            }
            // x⁻¹ has one exponent of two characters
            const bool script = notation.size() == 4 && notation[1] == '{';
            if (script && i == script_end && source.size() >= 4 &&
                source[source.size() - 1] == '}') {
                source.pop_back();
                source += notation.substr(2);
            } else {
                source += notation;
            }
            i += size;
            if (script) script_end = i;
        }
    }

    char peek(size_t ahead = 0) const {
        return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
    }
    bool starts(std::string_view word) const { return text_.substr(at_, word.size()) == word; }
    bool in_text() const { return text_braces_ > 0; }

    Token& push(Tok kind, size_t begin, size_t end, uint8_t id = 0) {
        Token token;
        token.kind = kind;
        token.id = id;
        token.space = space_;
        token.begin = static_cast<uint32_t>(begin);
        token.end = static_cast<uint32_t>(end);
        out_.tokens.push_back(token);
        space_ = false;
        at_ = end;
        return out_.tokens.back();
    }
    void one(Tok kind, size_t size = 1, uint8_t id = 0) { push(kind, at_, at_ + size, id); }
    void relation(Relation id, size_t size) { one(Tok::relation, size, static_cast<uint8_t>(id)); }

    void open_bracket(char c) {
        ++depth_;
        one(Tok::open, 1, static_cast<uint8_t>(c));
    }
    void close_bracket(char c) {
        depth_ = std::max(0, depth_ - 1);
        one(Tok::close, 1, static_cast<uint8_t>(c));
    }

    Tok previous() const { return out_.tokens.empty() ? Tok::stop : out_.tokens.back().kind; }

    void step() {
        const char c = peek();
        if (const size_t size = in_text() ? 0 : numeral_size(text_, at_)) {
            NumberText numeral;
            numeral.digits = text_.substr(at_, size);
            push_number(at_ + size, std::move(numeral));
        } else if (is_space(c)) {
            space_ = true;
            ++at_;
        } else if (is_digit(c) || (c == '.' && (is_digit(peek(1)) || starts(".\\overline") ||
                                                starts(".\\bar") || starts(".\\dot{")))) {
            number();
        } else if (is_letter(c) || character_size(at_) > 1) {
            letters();
        } else if (c == '\\') {
            command();
        } else {
            punctuation(c);
        }
    }

    void punctuation(char c) {
        switch (c) {
            case '{': braces_.push_back(false); return one(Tok::group_open);
            case '}': return close_brace();
            case '(':
            case '[': return open_bracket(c);
            case ')':
            case ']': return close_bracket(c);
            case '+': return one(Tok::plus);
            case '-':
                if (in_text() && !is_digit(peek(1)) && previous() == Tok::word) {
                    space_ = true;  // a hyphen
                    ++at_;
                    return;
                }
                if (peek(1) == '>') return one(Tok::other, 2);
                return one(Tok::minus);
            case '*':
                if (peek(1) != '*') return in_text() ? skip(1) : one(Tok::times);
                return is_operand_before() && is_operand_after(2) ? one(Tok::caret, 2) : skip(2);
            case '/': return one(Tok::slash);
            case '^':
                if (starts("^\\circ")) return one(Tok::degree, 6);
                if (starts("^{\\circ}")) return one(Tok::degree, 8);
                return one(Tok::caret);
            case '_': return one(Tok::underscore);
            case '!':
                if (peek(1) == '=') return relation(Relation::not_equal, 2);
                return one(Tok::bang);
            case '\'': return in_text() ? skip(1) : one(Tok::prime);
            case '%': return one(Tok::percent);
            case '=':
                if (peek(1) == '>') return one(Tok::other, 2);
                return relation(Relation::equal, peek(1) == '=' ? 2 : 1);
            case '<':
                return peek(1) == '=' ? relation(Relation::less_equal, 2)
                                      : relation(Relation::less, 1);
            case '>':
                return peek(1) == '=' ? relation(Relation::greater_equal, 2)
                                      : relation(Relation::greater, 1);
            case '|': return one(Tok::bar);
            case ':': return one(Tok::colon);
            case ',': return one(Tok::comma);
            case ';': return one(Tok::semicolon);
            case '&': return one(Tok::ampersand);
            case '.':
                if (starts("...")) return one(Tok::ellipsis, 3);
                return text_.find_first_not_of(" \t\r\n.$}", at_) == std::string_view::npos
                           ? skip(1)
                           : one(Tok::period);
            case '$':
            case '~':
            case '"':
            case '`': space_ = space_ || c == '~'; return skip(1);
            default: return one(Tok::other);
        }
    }

    void skip(size_t size) { at_ += size; }

    bool is_operand_before() const {
        const Tok kind = previous();
        return kind == Tok::number || kind == Tok::symbol || kind == Tok::constant ||
               kind == Tok::close || kind == Tok::group_close;
    }
    bool is_operand_after(size_t ahead) const {
        const char c = peek(ahead);
        return is_digit(c) || is_letter(c) || c == '(' || c == '{' || c == '-' || c == ' ' ||
               c == '\\';
    }

    void close_brace() {
        if (!braces_.empty()) {
            const bool text = braces_.back();
            braces_.pop_back();
            if (text) {
                --text_braces_;
                space_ = true;  // \text{a}\text{b} are two words
                return skip(1);
            }
        }
        one(Tok::group_close);
    }

    // ---- numbers ----

    void push_number(size_t end, NumberText number) {
        push(Tok::number, at_, end).number = static_cast<int32_t>(out_.numbers.size());
        out_.numbers.push_back(std::move(number));
    }

    void number() {
        // in 1,2,345 every comma separates
        const auto& before = out_.tokens;
        const bool listed = !space_ && before.size() > 1 && before.back().kind == Tok::comma &&
                            before[before.size() - 2].kind == Tok::number;
        NumberText number;
        const size_t end =
            read_number(text_, at_, depth_ == 0 && !lists_only_ && !listed, !in_text(), number);
        if (end == at_) return one(Tok::period);  // .\bar{x}
        push_number(end, std::move(number));
    }

    // ---- letters ----

    // Bytes of a letter beyond ASCII at `at`; 0 for what is no letter of any script: broken UTF-8,
    // surrogates, the replacement character, controls, private use.
    size_t character_size(size_t at) const {
        const auto byte = [&](size_t i) {
            return at + i < text_.size() ? static_cast<unsigned char>(text_[at + i]) : 0u;
        };
        const unsigned first = byte(0);
        const size_t size = first >= 0xF0 && first < 0xF5 ? 4
                            : first >= 0xE0               ? 3
                            : first >= 0xC2               ? 2
                                                          : 0;
        if (size == 0 || first >= 0xF5) return 0;
        unsigned code = first & (0x7F >> size);
        for (size_t i = 1; i < size; ++i) {
            if ((byte(i) & 0xC0) != 0x80) return 0;
            code = code << 6 | (byte(i) & 0x3F);
        }
        const bool too_long = (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
        const bool surrogate = code >= 0xD800 && code < 0xE000;
        const bool control = code < 0xA0 || (code >= 0x2000 && code < 0x2070) || code >= 0xFFF0;
        const bool private_use = code >= 0xE000 && code < 0xF900;
        return too_long || surrogate || control || private_use ? 0 : size;
    }

    void letters() {
        size_t end = at_;
        bool ascii = true;
        while (end < text_.size()) {
            const size_t beyond = character_size(end);
            if (beyond == 0 && !is_letter(text_[end]) &&
                !(in_text() && text_[end] == '\'' && end > at_))
                break;
            ascii = ascii && beyond == 0;
            end += std::max<size_t>(1, beyond);
        }
        const auto run = text_.substr(at_, end - at_);
        for (const std::string_view hour : {"a.m", "p.m", "A.M", "P.M"})
            if (run.size() == 1 && text_.substr(at_, 3) == hour)
                return push_word(at_, at_ + 3 + (peek(3) == '.'));
        if (in_text() || !ascii) return push_word(at_, end);
        if (run.size() == 1) return letter(at_);
        const bool is_unit = previous() == Tok::number && find_unit(run);
        if (is_unit && !(end < text_.size() && text_[end] == '(')) return push_word(at_, end);
        if (const Command* name = find_plain_name(run)) {
            push(name->kind, at_, end, name->id);
            return;
        }
        if (run.size() <= 8 && std::string_view("xyz").find(run.back()) != std::string_view::npos) {
            const Command* name = find_plain_name(run.substr(0, run.size() - 1));
            if (name && name->kind == Tok::function) {  // sinx
                push(name->kind, at_, end - 1, name->id);
                return letter(at_);
            }
        }
        if (!is_product(run)) return push_word(at_, end);
        while (at_ < end) letter(at_);
    }

    void letter(size_t at) {
        const char c = text_[at];
        if (c == 'e')
            push(Tok::constant, at, at + 1, static_cast<uint8_t>(Constant::e));
        else if (c == 'i')
            push(Tok::constant, at, at + 1, static_cast<uint8_t>(Constant::i));
        else
            push(Tok::symbol, at, at + 1);
    }

    void push_word(size_t begin, size_t end) { push(Tok::word, begin, end); }

    // ---- commands ----

    void command() {
        const size_t begin = at_;
        size_t end = begin + 1;
        if (end < text_.size() && is_letter(text_[end]))
            while (end < text_.size() && is_letter(text_[end])) ++end;
        else
            end = std::min(end + 1, text_.size());
        const auto name = text_.substr(begin + 1, end - begin - 1);
        if (name.size() == 1 && !is_letter(name[0])) return symbol_command(name[0]);
        const Command* command = find_command(name);
        if (!command) return push_unknown(begin, end);
        switch (command->action) {
            case Action::skip: at_ = end; return;
            case Action::skip_argument: {
                const size_t open = text_.find_first_not_of(' ', end);
                const size_t close = text_.find('}', end);
                at_ = open != std::string_view::npos && text_[open] == '{' &&
                              close != std::string_view::npos
                          ? close + 1
                          : end;
                return;
            }
            case Action::space:
                at_ = end;
                space_ = true;
                return;
            case Action::bracket_size:
                at_ = end;
                if (peek() == '.') ++at_;  // \left.
                return;
            case Action::token:
                if (command->kind == Tok::open) ++depth_;
                if (command->kind == Tok::close) depth_ = std::max(0, depth_ - 1);
                push(command->kind, begin, end, command->id);
                return;
            case Action::text: return text_group(begin, end, false);
            case Action::roman: return text_group(begin, end, true);
            case Action::blackboard: return blackboard(begin, end);
        }
    }

    void push_unknown(size_t begin, size_t end) { push(Tok::other, begin, end); }

    void symbol_command(char c) {
        switch (c) {
            case '\\': return row_end();
            case '{': ++depth_; return one(Tok::open, 2, '{');
            case '}': depth_ = std::max(0, depth_ - 1); return one(Tok::close, 2, '}');
            case '$': return one(Tok::currency, 2, kDollarUnit);
            case '%': return one(Tok::percent, 2);
            case '|': return one(Tok::bar, 2);
            case '(':
            case ')':
            case '[':
            case ']': return skip(2);
            case ',':
            case ';':
            case ':':
            case '!':
            case ' ':
            case '>':
            case '\n': space_ = space_ || c != '!'; return skip(2);
            case '-': return skip(2);
            default: return one(Tok::other, std::min<size_t>(2, text_.size() - at_));
        }
    }

    // \\, with the distance that may follow: \\[4pt]. Nothing at the end of the text.
    void row_end() {
        size_t end = at_ + 2;
        if (text_.substr(end, 1) == "[") {
            const size_t close = text_.find(']', end);
            const auto distance = text_.substr(end, std::min(close, text_.size()) - end);
            if (close != std::string_view::npos && distance.size() < 12 &&
                (distance.find("pt") != std::string_view::npos ||
                 distance.find("em") != std::string_view::npos ||
                 distance.find("mm") != std::string_view::npos ||
                 distance.find("ex") != std::string_view::npos))
                end = close + 1;
        }
        if (text_.find_first_not_of(" \t\r\n$", end) == std::string_view::npos) {
            at_ = end;
            return;
        }
        push(Tok::row_end, at_, end);
    }

    // \text{...}: its braces go, what is inside is read in text mode. \mathrm{sin}, \mathrm e are
    // the function and the number.
    void text_group(size_t begin, size_t end, bool roman) {
        while (end < text_.size() && (text_[end] == ' ' || text_[end] == '*')) ++end;
        if (end >= text_.size() || text_[end] != '{') {
            at_ = end;
            space_ = true;
            return;
        }
        if (roman) {
            const size_t close = text_.find('}', end);
            if (close != std::string_view::npos) {
                const auto name = trim(text_.substr(end + 1, close - end - 1));
                const Command* plain = find_plain_name(name);
                if (!plain) plain = find_command(name);
                if (plain && plain->action == Action::token && plain->kind == Tok::function) {
                    push(plain->kind, begin, close + 1, plain->id);
                    return;
                }
                if (name == "e" || name == "i") {
                    at_ = close + 1;
                    push(Tok::constant, begin, close + 1,
                         static_cast<uint8_t>(name == "e" ? Constant::e : Constant::i));
                    return;
                }
            }
        }
        braces_.push_back(true);
        if (++text_braces_ > kDeepest) out_.too_deep = true;
        space_ = true;
        at_ = end + 1;
    }

    void blackboard(size_t begin, size_t end) {
        const bool braces = end < text_.size() && text_[end] == '{';
        size_t at = end + braces;
        while (at < text_.size() && text_[at] == ' ') ++at;
        if (at >= text_.size() || !is_upper(text_[at])) return push_unknown(begin, end);
        const auto letter = static_cast<uint8_t>(text_[at]);
        ++at;
        if (braces) {
            if (at >= text_.size() || text_[at] != '}') return push_unknown(begin, end);
            ++at;
        }
        push(Tok::set, begin, at, letter);
    }
};

}  // namespace

bool is_product(std::string_view run) {
    if (run.size() < 2) return false;
    if (run.size() == 2) return !is_short_word(run);
    if (run.size() > 4) return false;
    return std::all_of(run.begin(), run.end(),
                       [](char c) {
                           return std::string_view("eiou").find(lower(c)) == std::string_view::npos;
                       }) &&
           (run.find_first_of("aA") == std::string_view::npos ||
            run.find_first_not_of("abcdxyzABCDXYZ") == std::string_view::npos);
}

std::string_view trim(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

void Tokens::clear() {
    source.clear();
    tokens.clear();
    numbers.clear();
    too_deep = false;
}

void tokenize(std::string_view text, bool lists_only, Tokens& out) {
    Lexer(text, lists_only, out).run();
}

std::string canonical_text(const Tokens& tokens, size_t begin, size_t end) {
    std::string text;
    for (size_t i = begin; i < end; ++i) {
        const Token& token = tokens.tokens[i];
        if (token.kind == Tok::stop) continue;
        // {x} is x
        const auto kind_at = [&](size_t j) { return j < end ? tokens.tokens[j].kind : Tok::stop; };
        if (token.kind == Tok::group_open && kind_at(i + 2) == Tok::group_close) continue;
        if (token.kind == Tok::group_close && i >= begin + 2 &&
            tokens.tokens[i - 2].kind == Tok::group_open)
            continue;
        const auto part = tokens.text(token);
        const bool joins = !text.empty() && (is_letter(text.back()) || is_digit(text.back())) &&
                           (is_letter(part[0]) || is_digit(part[0]));
        if (joins) text += ' ';
        text += part;
    }
    return text;
}

}  // namespace fastrl::grading
