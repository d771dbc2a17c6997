#include "number_text.h"

#include <algorithm>

namespace fastrl::grading {

namespace {

constexpr size_t kMostExponentDigits = 9;
constexpr size_t kLongestNumeral = 64;  // with letters for digits

bool stands(std::string_view text, size_t at, std::string_view word) {
    return text.substr(std::min(at, text.size()), word.size()) == word;
}

size_t digits_at(std::string_view text, size_t at) {
    size_t count = 0;
    while (at + count < text.size() && is_digit(text[at + count])) ++count;
    return count;
}

// The size of a separator of thousands at `at`, 0 for none.
size_t separator_at(std::string_view text, size_t at, bool commas, bool blanks) {
    if (stands(text, at, "{,}")) return 3;
    if (stands(text, at, ",\\!")) {
        size_t size = 3;
        while (stands(text, at + size, " ")) ++size;
        return size;
    }
    if (stands(text, at, ",")) return commas;
    for (const std::string_view gap : {"\\,", "\\;", "\\ ", "\\:"})
        if (stands(text, at, gap)) return gap.size();
    return blanks && (stands(text, at, " ") || stands(text, at, "~"));
}

// 1,234,567: appends the groups of three; returns the end.
size_t read_groups(std::string_view text, size_t at, bool commas, bool blanks, NumberText& number) {
    size_t end = at;
    std::string digits = number.digits;
    for (;;) {
        const size_t gap = separator_at(text, end, commas, blanks);
        if (gap == 0 || digits_at(text, end + gap) != 3) break;
        const size_t stop = end + gap + 3;
        if (text[end] == ' ' && stands(text, stop, "/")) break;  // 1 100/200
        number.grouped = number.grouped || (text[end] == ',' && gap == 1);
        digits += text.substr(end + gap, 3);
        end = stop;
    }
    // in 100,200,30 every comma separates
    if (number.grouped && stands(text, end, ",") && digits_at(text, end + 1) > 0) {
        number.grouped = false;
        return at;
    }
    number.digits = std::move(digits);
    return end;
}

// The size of \overline{142857} at `at`, whose digits go to `period`; 0 for none.
size_t read_period(std::string_view text, size_t at, std::string& period) {
    for (const std::string_view mark :
         {"\\overline{", "\\bar{", "\\dot{", "\\overline ", "\\bar "}) {
        if (!stands(text, at, mark)) continue;
        const size_t begin = at + mark.size();
        const bool braces = mark.back() == '{';
        const size_t digits = digits_at(text, begin);
        const size_t count = braces ? digits : std::min<size_t>(1, digits);
        if (count == 0 || (braces && !stands(text, begin + count, "}"))) return 0;
        period = text.substr(begin, count);
        return mark.size() + count + braces;
    }
    return 0;
}

// e-3: sets the exponent; returns the end.
size_t read_exponent(std::string_view text, size_t at, NumberText& number) {
    if (!stands(text, at, "e") && !stands(text, at, "E")) return at;
    const bool negative = stands(text, at + 1, "-");
    const size_t begin = at + 1 + (negative || stands(text, at + 1, "+"));
    const size_t count = digits_at(text, begin);
    if (count == 0 || count > kMostExponentDigits) return at;
    int64_t exponent = 0;
    for (size_t i = 0; i < count; ++i) exponent = exponent * 10 + (text[begin + i] - '0');
    number.exponent = negative ? -exponent : exponent;
    number.has_exponent = true;
    return begin + count;
}

}  // namespace

size_t read_number(std::string_view text, size_t at, bool commas, bool blanks, NumberText& number) {
    const size_t count = digits_at(text, at);
    number.digits = text.substr(at, count);
    size_t end = at + count;
    if (count >= 1 && count <= 3 && number.digits[0] != '0')
        end = read_groups(text, end, commas, blanks, number);
    if (stands(text, end, ".")) {
        const size_t decimals = digits_at(text, end + 1);
        std::string period;
        const size_t repeated = read_period(text, end + 1 + decimals, period);
        if (decimals > 0 || repeated > 0) {
            number.has_point = true;
            number.digits += text.substr(end + 1, decimals);
            number.digits += period;
            number.repeating = static_cast<int32_t>(period.size());
            number.decimals = static_cast<int32_t>(decimals + period.size());
            end += 1 + decimals + repeated;
        } else if (text.find_first_not_of(" \t\r\n$", end + 1) == std::string_view::npos) {
            ++end;  // "7." at the end
        }
    }
    end = read_exponent(text, end, number);
    if (number.has_point || number.has_exponent) number.grouped = false;
    return end;
}

size_t numeral_size(std::string_view text, size_t at) {
    size_t end = at;
    bool letters = false;
    const auto is_hexadecimal = [](char c) { return is_digit(c) || (c >= 'A' && c <= 'F'); };
    for (; end < text.size() && is_hexadecimal(text[end]); ++end) {
        letters = letters || is_upper(text[end]);
        if (end - at == kLongestNumeral) return 0;
    }
    if (!letters || end - at < 2) return 0;
    for (const std::string_view base : {"_{16}", "_{12}", "_16", "_12"})
        if (stands(text, end, base)) return end - at;
    return 0;
}

}  // namespace fastrl::grading
