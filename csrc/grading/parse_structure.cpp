#include "parse.h"

namespace fastrl::grading {

// An element inside of brackets.
int32_t Parser::item() {
    if (is_word()) return text_element();
    const int32_t node = relation();
    return node < 0 ? -1 : measured(node);
}

// The elements between brackets; false where one cannot be read.
bool Parser::items(std::vector<int32_t>& items, bool semicolons) {
    do {
        items.push_back(item());
        if (items.back() < 0) return false;
    } while (eat(Tok::comma) || (semicolons && eat(Tok::semicolon)));
    return true;
}

// (a), (a, b), [a, b), <a, b>, floor and ceiling.
int32_t Parser::bracketed() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    const char open = static_cast<char>(now().id);
    ++at_;
    ++brackets_;
    const int builders = builders_, bars = bars_;
    builders_ = bars_ = 0;
    std::vector<int32_t> found;
    if (!items(found, true)) return -1;
    --brackets_;
    builders_ = builders;
    bars_ = bars;
    if (is(Tok::open, '[') && found.size() == 2 && (open == '[' || open == '(')) {
        ++at_;  // [2, 5[
        Node interval{Kind::interval};
        interval.id = open == '[' ? kLeftClosed : 0;
        return add(interval, found);
    }
    if (!is(Tok::close)) return fail();
    const char close = static_cast<char>(now().id);
    ++at_;
    if (found.size() > kMostElements) return fail(Reading::limit);
    if (open == 'f' || open == 'c') {
        if (close != open || found.size() != 1) return fail();
        const Function function = open == 'f' ? Function::floor : Function::ceil;
        return expression(Kind::function, found, static_cast<uint8_t>(function),
                          kIsIrrational | kIsPiecewise);
    }
    if (close == '}' || (open == '<') != (close == '>')) return fail();
    const bool left = open == '[', right = close == ']';
    if (found.size() == 1) {
        if (left != right) return fail();
        tree_.nodes[found[0]].flags |= kInBrackets;
        return found[0];
    }
    if (found.size() == 2 && (left || right)) {
        Node interval{Kind::interval};
        interval.id = static_cast<uint8_t>(left * kLeftClosed | right * kRightClosed);
        return add(interval, found);
    }
    if (left != right) return fail();
    return add(Node{Kind::tuple}, found);
}

// ]a, b[
int32_t Parser::french_interval() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    ++brackets_;
    const int32_t low = additive();
    if (low < 0 || !(eat(Tok::comma) || eat(Tok::semicolon))) return fail();
    const int32_t high = additive();
    --brackets_;
    if (high < 0) return -1;
    Node interval{Kind::interval};
    if (is(Tok::close, ']'))
        interval.id = kRightClosed;
    else if (!is(Tok::open, '['))
        return fail();
    ++at_;
    return add(interval, {low, high});
}

// \{a, b\}, \{x : x > 3\}
int32_t Parser::braces() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    if (eat(Tok::close, '}')) return add(Node{Kind::set});
    ++brackets_;
    ++builders_;
    std::vector<int32_t> found;
    if (!items(found, true)) return -1;
    if (found.size() == 1 && (is(Tok::such_that) || is(Tok::bar) || is(Tok::colon))) {
        ++at_;
        const Kind kind = tree_.at(found[0]).kind;
        if (kind != Kind::symbol && kind != Kind::member) return fail();
        found[0] = list();
        if (found[0] < 0) return -1;
        --brackets_;
        --builders_;
        return eat(Tok::close, '}') ? found[0] : fail();
    }
    --brackets_;
    --builders_;
    if (!eat(Tok::close, '}')) return fail();
    if (found.size() > kMostElements) return fail(Reading::limit);
    return add(Node{Kind::set}, found);
}

bool Parser::skip_group() {
    if (!eat(Tok::group_open)) return false;
    while (!is(Tok::group_close) && !is(Tok::stop)) ++at_;
    return eat(Tok::group_close);
}

int32_t Parser::matrix() {
    Deeper deeper(*this);
    if (deeper.too_deep()) return -1;
    ++at_;
    if (!eat(Tok::group_open) || !is(Tok::word)) return fail();
    const std::string name(text(now()));
    ++at_;
    if (!eat(Tok::group_close)) return fail();
    if (name == "array") {
        if (!skip_group()) return fail();
    } else if (name.find("matrix") == std::string::npos) {
        return fail();
    }
    ++brackets_;
    std::vector<int32_t> cells;
    int32_t columns = -1, in_row = 0;
    for (;;) {
        if (!(is(Tok::end) && in_row == 0)) {
            cells.push_back(additive());
            if (cells.back() < 0) return -1;
            if (cells.size() > kMostElements) return fail(Reading::limit);
            ++in_row;
        }
        if (eat(Tok::ampersand)) continue;
        if (!is(Tok::row_end) && !is(Tok::end)) return fail();
        if (in_row > 0 && columns >= 0 && in_row != columns) return fail();
        if (in_row > 0) columns = in_row;
        in_row = 0;
        if (eat(Tok::end)) break;
        ++at_;
    }
    --brackets_;
    if (columns < 0 || !skip_group()) return fail();
    Node node{Kind::matrix};
    node.value = columns;
    const int32_t made = add(node, cells);
    if (made < 0 || (name != "vmatrix" && name != "Vmatrix")) return made;
    return expression(Kind::determinant, {made});
}

}  // namespace fastrl::grading
