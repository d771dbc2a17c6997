#include "parse.h"

namespace fastrl::grading {

// An element inside of brackets.
int32_t Parser::item() {
    if (is_word()) return text_element();
    const int32_t node = relation();
    return node < 0 ? -1 : measured(node);
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
    std::vector<int32_t> items;
    do {
        items.push_back(item());
        if (items.back() < 0) return -1;
    } while (eat(Tok::comma) || eat(Tok::semicolon));
    --brackets_;
    builders_ = builders;
    bars_ = bars;
    if (is(Tok::open, '[') && items.size() == 2 && (open == '[' || open == '(')) {
        ++at_;  // [2, 5[
        Node interval{Kind::interval};
        interval.id = open == '[' ? kLeftClosed : 0;
        return add(interval, items);
    }
    if (!is(Tok::close)) return fail();
    const char close = static_cast<char>(now().id);
    ++at_;
    if (items.size() > kMostElements) return fail(Reading::limit);
    if (open == 'f' || open == 'c') {
        if (close != open || items.size() != 1) return fail();
        const Function function = open == 'f' ? Function::floor : Function::ceil;
        return expression(Kind::function, items, static_cast<uint8_t>(function),
                          kIsIrrational | kIsPiecewise);
    }
    if (close == '}' || (open == '<') != (close == '>')) return fail();
    const bool left = open == '[', right = close == ']';
    if (items.size() == 1) {
        if (left != right) return fail();
        tree_.nodes[items[0]].flags |= kInBrackets;
        return items[0];
    }
    if (items.size() == 2 && (left || right)) {
        Node interval{Kind::interval};
        interval.id = static_cast<uint8_t>(left * kLeftClosed | right * kRightClosed);
        return add(interval, items);
    }
    if (left != right) return fail();
    return add(Node{Kind::tuple}, items);
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
    std::vector<int32_t> items;
    do {
        items.push_back(item());
        if (items.back() < 0) return -1;
    } while (eat(Tok::comma) || eat(Tok::semicolon));
    if (items.size() == 1 && (is(Tok::such_that) || is(Tok::bar) || is(Tok::colon))) {
        ++at_;
        const Kind kind = tree_.at(items[0]).kind;
        if (kind != Kind::symbol && kind != Kind::member) return fail();
        items[0] = list();
        if (items[0] < 0) return -1;
        --brackets_;
        --builders_;
        return eat(Tok::close, '}') ? items[0] : fail();
    }
    --brackets_;
    --builders_;
    if (!eat(Tok::close, '}')) return fail();
    if (items.size() > kMostElements) return fail(Reading::limit);
    return add(Node{Kind::set}, items);
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
        if (!eat(Tok::group_open)) return fail();
        while (!is(Tok::group_close) && !is(Tok::stop)) ++at_;
        if (!eat(Tok::group_close)) return fail();
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
    if (columns < 0 || !eat(Tok::group_open)) return fail();
    while (!is(Tok::group_close) && !is(Tok::stop)) ++at_;
    if (!eat(Tok::group_close)) return fail();
    Node node{Kind::matrix};
    node.value = columns;
    const int32_t made = add(node, cells);
    if (made < 0 || (name != "vmatrix" && name != "Vmatrix")) return made;
    return expression(Kind::determinant, {made});
}

}  // namespace fastrl::grading
