#include "words.h"

#include <algorithm>
#include <unordered_map>

#include "commands.h"

namespace fastrl::grading {

namespace {

// Words of one line name one unit. The first lines are the units that the code knows by number.
constexpr std::string_view kUnits[] = {
    "percent percentage pct",
    "degree degrees deg degs",
    "radian radians rad rads",
    "celsius centigrade",
    "fahrenheit",
    "dollar dollars usd buck bucks",
    "euro euros eur",
    "pound_sterling gbp",
    "yen jpy",
    "cent cents",
    "m meter meters metre metres",
    "cm centimeter centimeters centimetre centimetres cms",
    "mm millimeter millimeters millimetre millimetres",
    "km kilometer kilometers kilometre kilometres kms",
    "in inch inches",
    "ft foot feet",
    "yd yard yards yds",
    "mi mile miles",
    "s sec secs second seconds",
    "min mins minute minutes",
    "h hr hrs hour hours",
    "day days",
    "week weeks",
    "month months",
    "year years yr yrs",
    "g gram grams gms",
    "kg kilogram kilograms kgs",
    "mg milligram milligrams",
    "lb lbs pound pounds",
    "oz ounce ounces",
    "ton tons tonne tonnes",
    "l liter liters litre litres",
    "ml milliliter milliliters millilitre millilitres",
    "gal gallon gallons",
    "quart quarts qt",
    "pint pints pt",
    "cup cups",
    "mph",
    "kph kmh kmph",
    "n newton newtons",
    "j joule joules",
    "kj kilojoule kilojoules",
    "w watt watts",
    "kw kilowatt kilowatts",
    "v volt volts",
    "amp amps ampere amperes",
    "ohm ohms",
    "hz hertz",
    "k kelvin kelvins",
    "pa pascal pascals",
    "mol mole moles",
    "acre acres",
    "unit units",
    "rupee rupees inr rs",
    "am a.m a.m.",
    "pm p.m p.m.",
    "nm nanometer nanometers",
    "kwh",
    "rpm",
    "bit bits",
    "byte bytes",
    "time times",
    "point points",
    "way ways",
    "person people persons",
    "student students",
    "child children",
    "man men",
    "woman women",
    "boy boys",
    "girl girls",
    "coin coins",
    "penny pennies pence",
    "apple apples",
    "ball balls",
    "box boxes",
    "book books",
    "page pages",
    "side sides",
    "vertex vertices",
    "edge edges",
    "solution solutions",
    "root roots",
    "triangle triangles",
    "square_shape",
    "combination combinations",
    "permutation permutations",
    "arrangement arrangements",
    "pair pairs",
    "number numbers",
    "integer integers",
    "digit digits",
    "value values",
    "term terms",
    "step steps",
    "game games",
    "car cars",
    "ticket tickets",
    "slice slices",
    "piece pieces",
    "decimeter decimeters dm decimetre decimetres",
    "ev",
    "kev",
    "mev",
    "gev",
    "khz",
    "mhz",
    "ghz",
    "erg ergs",
    "tesla teslas t",
    "coulomb coulombs c",
    "a",
    "farad farads",
    "nc",
    "cal calorie calories",
    "kcal",
    "molar",
    "atm",
    "torr",
    "kpa",
    "au",
};

using Numbers = std::unordered_map<std::string_view, int>;

const Numbers& units() {
    static const Numbers table = [] {
        Numbers made;
        int number = 0;
        for (std::string_view line : kUnits) {
            ++number;
            while (!line.empty()) {
                const size_t end = std::min(line.find(' '), line.size());
                made[line.substr(0, end)] = number;
                line.remove_prefix(std::min(end + 1, line.size()));
            }
        }
        return made;
    }();
    return table;
}

template <size_t N>
bool contains(const std::string_view (&words)[N], std::string_view word) {
    return std::find(std::begin(words), std::end(words), word) != std::end(words);
}

}  // namespace

std::string lower_case(std::string_view word) {
    std::string text(word);
    for (char& c : text) c = lower(c);
    return text;
}

int find_unit(std::string_view word) {
    if (word.size() > 16) return 0;
    const auto& table = units();
    // one letter keeps its case, but for a few: a metre is m, M nothing
    if (word.size() == 1) {
        static constexpr std::string_view kLetters[] = {"m", "s", "g", "h", "L", "l", "N",
                                                        "J", "W", "V", "K", "A", "C", "T"};
        if (!contains(kLetters, word)) return 0;
    }
    // Mm is no mm, and MW no mW
    if (word.size() == 2 && word[0] == 'M' && word != "MI") return 0;
    const auto found = table.find(lower_case(word));
    return found == table.end() ? 0 : found->second;
}

bool changes_value(std::string_view word) {
    static constexpr std::string_view kWords[] = {
        "dozen",     "dozens",     "half",       "halves",      "third",       "thirds",
        "quarter",   "quarters",   "fourth",     "fourths",     "fifth",       "fifths",
        "sixth",     "sixths",     "eighth",     "eighths",     "tenth",       "tenths",
        "hundredth", "hundredths", "thousandth", "thousandths", "millionth",   "millionths",
        "hundred",   "hundreds",   "thousand",   "thousands",   "million",     "millions",
        "billion",   "billions",   "trillion",   "trillions",   "quadrillion", "lakh",
        "lakhs",     "crore",      "crores",     "score",       "gross",       "factorial",
        "negative",  "root",       "over",       "divided",     "multiplied",  "rejected",
        "excluded",  "infinity",   "infinite",   "percent",     "double",      "twice",
        "triple",    "squared",    "cubed",      "modulo",      "mod",         "choose",
        "base",      "power",      "to",         "through",     "until",       "by",
        "into"};
    return contains(kWords, lower_case(word)) || find_plain_name(word) != nullptr;
}

bool is_letter_unit(std::string_view word) {
    return word.size() == 1 && word != "A" && word != "C" && word != "T" && find_unit(word) > 0;
}

bool is_hedge(std::string_view word) {
    static constexpr std::string_view kHedges[] = {
        "or",
        "and",
        "not",
        "is",
        "either",
        "maybe",
        "nor",
        "neither",
        "are",
        "isnt",
        "isn't",
        "but",
        "perhaps",
        "possibly",
        "probably",
        "wrong",
        "incorrect",
        "no",
        "else",
        "instead",
        "unless",
        "if",
        "was",
        "be",
        "vs",
        "versus",
        "rather",
        "could",
        "might",
        "may",
        "alternatively",
        "than",
        "approximately",
        "about",
        "more",
        "less",
        "least",
        "most",
        "minus",
        "plus",
        "false",
        "never",
        "except",
        "y",
        "o",
        "und",
        "oder",
        "ou",
        "et",
        "guess",
        "unsure",
        "unknown",
        "cannot",
        "with",
        "without",
        "impossible",
        "invalid",
        "undefined",
    };
    return contains(kHedges, lower_case(word));
}

bool is_short_word(std::string_view word) {
    static constexpr std::string_view kWords[] = {"or", "no", "is", "if", "it", "of", "to", "so",
                                                  "am", "pm", "he", "we", "my", "me", "in", "on"};
    return contains(kWords, lower_case(word));
}

int number_word(std::string_view word) {
    static constexpr std::string_view kWords[] = {
        "zero",     "one",     "two",     "three",     "four",     "five",     "six",
        "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",   "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"};
    static constexpr std::string_view kTens[] = {"thirty",  "forty",  "fifty",  "sixty",
                                                 "seventy", "eighty", "ninety", "hundred"};
    const std::string text = lower_case(word);
    for (size_t i = 0; i < std::size(kWords); ++i)
        if (text == kWords[i]) return static_cast<int>(i);
    for (size_t i = 0; i < std::size(kTens); ++i)
        if (text == kTens[i]) return static_cast<int>(10 * i + 30);
    return -1;
}

int multiplier(std::string_view word) {
    const std::string text = lower_case(word);
    if (text == "hundred") return 2;
    if (text == "thousand") return 3;
    if (text == "million") return 6;
    if (text == "billion") return 9;
    if (text == "trillion") return 12;
    return 0;
}

std::string_view phrase(std::string_view text) {
    static constexpr std::string_view kNone[] = {
        "no solution", "no solutions",  "no real solution",     "no real solutions",
        "empty set",   "the empty set", "there is no solution", "there are no solutions",
        "none",        "no answer"};
    static constexpr std::string_view kUndefined[] = {"undefined", "does not exist", "dne",
                                                      "not defined", "doesnt exist"};
    static constexpr std::string_view kReals[] = {"all real numbers", "all reals", "all real",
                                                  "any real number", "all real values"};
    if (contains(kNone, text)) return "no solution";
    if (contains(kUndefined, text)) return "undefined";
    if (contains(kReals, text)) return "all real numbers";
    return text;
}

int unit_power(std::string_view word) {
    const std::string text = lower_case(word);
    if (text == "square" || text == "squared" || text == "sq") return 2;
    if (text == "cubic" || text == "cubed" || text == "cu") return 3;
    return 0;
}

}  // namespace fastrl::grading
