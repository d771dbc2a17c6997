#include <algorithm>

#include "parse.h"

namespace fastrl::grading {

namespace {

void insert(Unit& unit, int64_t name, int32_t exponent) {
    for (auto& [known, power] : unit)
        if (known == name) {
            power += exponent;
            return;
        }
    unit.emplace_back(name, exponent);
}

int64_t word_name(std::string_view word) {
    std::string text = lower_case(word);
    if (text.size() > 3 && text.back() == 's') text.pop_back();
    return static_cast<int64_t>(hash_text(text) | kFirstWord) & INT64_MAX;
}

}  // namespace

int32_t Parser::with_unit(int32_t node, Unit unit) {
    if (node < 0) return -1;
    if (unit.size() == 1 && unit[0].second == 1) {
        if (unit[0].first == kPercentUnit) return expression(Kind::percent, {node});
        if (unit[0].first == kDegreeUnit) return expression(Kind::degrees, {node});
    }
    if (unit.size() > 1)
        unit.erase(std::remove_if(unit.begin(), unit.end(),
                                  [](const auto& part) { return part.first == kDegreeUnit; }),
                   unit.end());
    std::sort(unit.begin(), unit.end());
    Node made{Kind::measured};
    made.value = static_cast<int32_t>(tree_.units.size());
    tree_.units.push_back(std::move(unit));
    return add(made, {node});
}

// `node` with the unit or the plain words after it, up to the end of the element.
int32_t Parser::measured(int32_t node) {
    if (is(Tok::word) && !is_connective(now()))
        if (const int power = multiplier(text(now()))) {
            ++at_;
            const int32_t scale = number({{false, Integer::power_of_ten(power), Integer{1}}});
            node = expression(Kind::product, {node, scale});
            if (node < 0) return -1;
        }
    if (ends_element()) return node;
    const Kind kind = tree_.at(node).kind;
    const bool bare = kind == Kind::texts || kind == Kind::symbol;
    const size_t here = at_;
    Unit found;
    if (!bare && unit(found) && ends_element()) return with_unit(node, std::move(found));
    at_ = here;
    found.clear();
    if (!bare && labels(found)) return with_unit(node, std::move(found));
    at_ = here;
    return node;
}

bool Parser::unit(Unit& found) {
    int32_t sign = 1, prefix = 0;
    bool any = false;
    for (;;) {
        int64_t name = 0;
        const auto word = text(now());
        if (is(Tok::word) && unit_power(word) && any && prefix == 0 && !found.empty() &&
            !find_unit(text(ahead(1)))) {
            found.back().second *= unit_power(word);  // inches squared
            ++at_;
            continue;
        }
        if (is(Tok::word) && unit_power(word)) {
            prefix = unit_power(word);
            ++at_;
            continue;
        }
        if (is(Tok::word) && lower_case(word) == "per") {
            sign = -1;
            ++at_;
            continue;
        }
        if (is(Tok::slash) && any) {
            sign = -1;
            ++at_;
            continue;
        }
        if ((is(Tok::times) || is(Tok::minus) || is(Tok::period)) && (any || prefix)) {
            ++at_;
            continue;
        }
        if (is(Tok::word) || (is(Tok::symbol) && is_letter_unit(word))) name = find_unit(word);
        if (is(Tok::currency)) name = now().id;
        if (is(Tok::percent) && !any) name = kPercentUnit;
        if (name == 0) break;
        const bool per_hour =
            is(Tok::word) && (lower_case(word) == "mph" || lower_case(word) == "kph" ||
                              lower_case(word) == "kmh" || lower_case(word) == "kmph");
        if (per_hour) {
            name = find_unit(lower(word[0]) == 'm' ? "mi" : "km");
            insert(found, find_unit("h"), -sign);
        }
        ++at_;
        int32_t power = prefix ? prefix : 1;
        prefix = 0;
        if (is(Tok::caret)) {
            ++at_;
            const bool braces = eat(Tok::group_open);
            const bool negative = eat(Tok::minus);
            if (!is(Tok::number)) return false;
            const auto& digits = tokens_.numbers[now().number].digits;
            if (digits.size() != 1) return false;
            power = (negative ? -1 : 1) * (digits[0] - '0');
            ++at_;
            if (braces && !eat(Tok::group_close)) return false;
        }
        insert(found, name, sign * power);
        any = true;
    }
    return any && prefix == 0;
}

// At most three plain words. Those that are units count as the unit; without one the words are it.
bool Parser::labels(Unit& found) {
    Unit words;
    int count = 0;
    for (; !ends_element(); ++at_) {
        if (is(Tok::period) && ahead(1).kind == Tok::stop) continue;
        if (!is(Tok::word) || is_hedge(text(now())) || number_word(text(now())) >= 0) return false;
        const auto word = text(now());
        if ((word.size() == 1 && !find_unit(word)) || unit_power(word) || changes_value(word) ||
            (is_product(word) && !find_unit(word)) || ++count > 3)
            return false;
        if (const int unit = find_unit(text(now())))
            insert(found, unit, 1);
        else
            insert(words, word_name(text(now())), 1);
    }
    if (found.empty()) found = words;
    return count > 0;
}

}  // namespace fastrl::grading
