#include "commands.h"

#include <array>
#include <string>
#include <unordered_map>

#include "words.h"

namespace fastrl::grading {

namespace {

constexpr uint8_t id(Function f) { return static_cast<uint8_t>(f); }
constexpr uint8_t id(Constant c) { return static_cast<uint8_t>(c); }
constexpr uint8_t id(Relation r) { return static_cast<uint8_t>(r); }

using Names = std::unordered_map<std::string_view, Command>;

void add(Names& names, Action action, Tok kind, uint8_t id,
         std::initializer_list<std::string_view> words) {
    for (const auto word : words) names[word] = {word, action, kind, id};
}

struct NamedFunction {
    std::string_view name;
    Function function;
};

// clang-format off
constexpr NamedFunction kFunctions[] = {
    {"sin", Function::sin}, {"cos", Function::cos}, {"tan", Function::tan}, {"tg", Function::tan},
    {"cot", Function::cot}, {"ctg", Function::cot}, {"sec", Function::sec}, {"csc", Function::csc},
    {"cosec", Function::csc}, {"arcsin", Function::arcsin}, {"asin", Function::arcsin},
    {"arccos", Function::arccos}, {"acos", Function::arccos}, {"arctan", Function::arctan},
    {"atan", Function::arctan}, {"arctg", Function::arctan}, {"arccot", Function::arccot},
    {"arcsec", Function::arcsec}, {"arccsc", Function::arccsc}, {"sinh", Function::sinh},
    {"cosh", Function::cosh}, {"tanh", Function::tanh}, {"coth", Function::coth},
    {"arcsinh", Function::arcsinh}, {"arsinh", Function::arcsinh}, {"asinh", Function::arcsinh},
    {"arccosh", Function::arccosh}, {"arcosh", Function::arccosh}, {"acosh", Function::arccosh},
    {"arctanh", Function::arctanh}, {"artanh", Function::arctanh}, {"atanh", Function::arctanh},
    {"exp", Function::exp}, {"ln", Function::log}, {"cis", Function::cis}, {"gcd", Function::gcd},
    {"lcm", Function::lcm}, {"max", Function::max}, {"min", Function::min}, {"abs", Function::abs},
    {"floor", Function::floor}, {"ceil", Function::ceil}, {"Re", Function::real_part},
    {"Im", Function::imaginary_part},
};
// clang-format on

// `log` without a base keeps its own name: 10 or e, nobody says.
void add_functions(Names& names, bool plain) {
    for (const auto& [name, function] : kFunctions)
        if (!plain || (name != "Re" && name != "Im"))
            names[name] = {name, Action::token, Tok::function, id(function)};
    for (const std::string_view name : {"log", "lg"})
        names[name] = {name, Action::token, Tok::function, kLogFunction};
}

Names make_commands() {
    Names names;
    add(names, Action::skip, Tok::other, 0,
        {"displaystyle", "textstyle", "scriptstyle", "limits",  "nolimits", "mathbf",
         "mathit",       "mathcal",   "boldsymbol",  "bm",      "vec",      "mathscr",
         "mathfrak",     "underline", "rm",          "bf",      "it",       "mathstrut",
         "hfill",        "mathopen",  "mathclose",   "mathbin", "mathord",  "ensuremath",
         "strut",        "rlap",      "llap",        "smash",   "angle",    "measuredangle",
         "triangle"});
    add(names, Action::skip, Tok::other, 0,
        {"large", "Large", "LARGE", "huge", "Huge", "small", "normalsize", "footnotesize"});
    add(names, Action::skip_argument, Tok::other, 0, {"color", "textcolor", "hspace", "vspace"});
    add(names, Action::space, Tok::other, 0,
        {"quad", "qquad", "enspace", "thinspace", "medspace", "thickspace", "space", "newline",
         "par", "indent", "noindent", "nobreakspace"});
    add(names, Action::bracket_size, Tok::other, 0,
        {"left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl",
         "biggr", "Biggl", "Biggr", "bigm", "middle"});
    add(names, Action::text, Tok::other, 0,
        {"text", "mbox", "textbf", "textit", "textsf", "texttt", "textnormal", "hbox", "emph",
         "textup", "textsc"});
    add(names, Action::roman, Tok::other, 0,
        {"mathrm", "operatorname", "textrm", "mathsf", "mathtt", "mathop"});
    add(names, Action::blackboard, Tok::set, 0, {"mathbb", "Bbb", "mathds"});
    add(names, Action::token, Tok::frac, 0,
        {"frac", "dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"});
    add(names, Action::token, Tok::binomial, 0, {"binom", "dbinom", "tbinom"});
    add(names, Action::token, Tok::root, 0, {"sqrt", "root"});
    add(names, Action::token, Tok::word, 0, {"lor", "vee", "land", "wedge"});
    add(names, Action::token, Tok::over, 0, {"over"});
    add(names, Action::token, Tok::choose, 0, {"choose"});
    add(names, Action::token, Tok::times, 0, {"times", "cdot", "ast", "bullet"});
    add(names, Action::token, Tok::slash, 0, {"div"});
    add(names, Action::token, Tok::plus_minus, 0, {"pm"});
    add(names, Action::token, Tok::minus_plus, 0, {"mp"});
    add(names, Action::token, Tok::cup, 0, {"cup", "bigcup"});
    add(names, Action::token, Tok::cap, 0, {"cap", "bigcap"});
    add(names, Action::token, Tok::set_minus, 0, {"setminus", "backslash", "smallsetminus"});
    add(names, Action::token, Tok::in, 0, {"in"});
    add(names, Action::token, Tok::such_that, 0, {"mid"});
    add(names, Action::token, Tok::colon, 0, {"colon"});
    add(names, Action::token, Tok::relation, id(Relation::less_equal), {"le", "leq", "leqslant"});
    add(names, Action::token, Tok::relation, id(Relation::greater_equal),
        {"ge", "geq", "geqslant"});
    add(names, Action::token, Tok::relation, id(Relation::less), {"lt"});
    add(names, Action::token, Tok::relation, id(Relation::greater), {"gt"});
    add(names, Action::token, Tok::relation, id(Relation::not_equal), {"ne", "neq"});
    add(names, Action::token, Tok::relation, id(Relation::about), {"approx", "thickapprox"});
    add(names, Action::token, Tok::relation, id(Relation::equal), {"equiv"});
    add(names, Action::token, Tok::open, '{', {"lbrace"});
    add(names, Action::token, Tok::close, '}', {"rbrace"});
    add(names, Action::token, Tok::open, '[', {"lbrack"});
    add(names, Action::token, Tok::close, ']', {"rbrack"});
    add(names, Action::token, Tok::open, '(', {"lparen"});
    add(names, Action::token, Tok::close, ')', {"rparen"});
    add(names, Action::token, Tok::open, '<', {"langle"});
    add(names, Action::token, Tok::close, '>', {"rangle"});
    add(names, Action::token, Tok::open, 'f', {"lfloor"});
    add(names, Action::token, Tok::close, 'f', {"rfloor"});
    add(names, Action::token, Tok::open, 'c', {"lceil"});
    add(names, Action::token, Tok::close, 'c', {"rceil"});
    add(names, Action::token, Tok::bar, 0, {"vert", "lvert", "rvert", "Vert", "lVert", "rVert"});
    add(names, Action::token, Tok::constant, id(Constant::pi), {"pi"});
    add(names, Action::token, Tok::constant, id(Constant::infinity), {"infty"});
    add(names, Action::token, Tok::constant, id(Constant::i), {"imath"});
    add(names, Action::token, Tok::empty_set, 0, {"emptyset", "varnothing", "O"});
    add(names, Action::token, Tok::ellipsis, 0,
        {"ldots", "dots", "cdots", "dotsc", "dotsb", "dotsm"});
    add(names, Action::token, Tok::degree, 0, {"circ", "degree", "textdegree"});
    add(names, Action::token, Tok::prime, 0, {"prime"});
    add(names, Action::token, Tok::currency, kEuroUnit, {"euro", "texteuro"});
    add(names, Action::token, Tok::currency, kPoundUnit, {"pounds", "textsterling"});
    add(names, Action::token, Tok::currency, kYenUnit, {"yen"});
    add(names, Action::token, Tok::currency, kDollarUnit, {"textdollar"});
    add(names, Action::token, Tok::overline, 0,
        {"overline", "overrightarrow", "bar", "hat", "widehat", "tilde", "widetilde", "dot",
         "ddot"});
    add(names, Action::token, Tok::begin, 0, {"begin"});
    add(names, Action::token, Tok::end, 0, {"end"});
    add(names, Action::token, Tok::row_end, 0, {"cr"});
    add(names, Action::token, Tok::unevaluated, 0,
        {"int", "iint", "iiint", "oint", "sum", "prod", "coprod", "lim", "limsup", "liminf", "sup",
         "inf"});
    add(names, Action::token, Tok::symbol, 0,
        {"alpha",   "beta",     "gamma",   "delta",    "epsilon", "varepsilon", "zeta",   "eta",
         "theta",   "vartheta", "iota",    "kappa",    "lambda",  "mu",         "nu",     "xi",
         "rho",     "varrho",   "sigma",   "varsigma", "tau",     "upsilon",    "phi",    "varphi",
         "chi",     "psi",      "omega",   "Gamma",    "Delta",   "Theta",      "Lambda", "Xi",
         "Pi",      "Sigma",    "Upsilon", "Phi",      "Psi",     "Omega",      "ell",    "hbar",
         "partial", "nabla",    "square",  "aleph"});
    for (const std::string_view letter : {"R", "N", "Z", "Q", "C"})
        names[letter] = {letter, Action::token, Tok::set, static_cast<uint8_t>(letter[0])};
    for (const auto& [name, set] :
         {std::pair<std::string_view, char>{"reals", 'R'}, {"Reals", 'R'}})
        names[name] = {name, Action::token, Tok::set, static_cast<uint8_t>(set)};
    add_functions(names, false);
    return names;
}

Names make_plain_names() {
    Names names;
    add_functions(names, true);
    add(names, Action::token, Tok::root, 1, {"sqrt"});
    add(names, Action::token, Tok::constant, id(Constant::pi), {"pi", "PI"});
    add(names, Action::token, Tok::constant, id(Constant::infinity),
        {"infinity", "Infinity", "inf", "infty", "oo"});
    return names;
}

struct Notation {
    std::string_view character, latex;
};

// clang-format off
constexpr Notation kNotation[] = {
    {"−", "-"}, {"–", "-"}, {"—", "-"}, {"‐", "-"}, {"‑", "-"}, {"－", "-"}, {"＋", "+"}, {"＝", "="},
    {"×", "\\times "}, {"·", "\\cdot "}, {"⋅", "\\cdot "}, {"∙", "\\cdot "}, {"•", "\\cdot "},
    {"÷", "\\div "}, {"∕", "/"}, {"⁄", "/"}, {"／", "/"}, {"±", "\\pm "}, {"∓", "\\mp "},
    {"√", " sqrt "}, {"∛", "\\sqrt[3]"}, {"π", "\\pi "}, {"∞", "\\infty "}, {"≤", "\\le "},
    {"≥", "\\ge "}, {"≦", "\\le "}, {"≧", "\\ge "}, {"⩽", "\\le "}, {"⩾", "\\ge "}, {"≠", "\\ne "},
    {"≈", "\\approx "}, {"∈", "\\in "}, {"∪", "\\cup "}, {"∩", "\\cap "}, {"∖", "\\setminus "},
    {"∅", "\\emptyset "}, {"Ø", "\\emptyset "}, {"°", "\\degree "}, {"º", "\\degree "},
    {"℃", "\\degree C"}, {"℉", "\\degree F"}, {"ℝ", "\\R "}, {"ℕ", "\\N "}, {"ℤ", "\\Z "},
    {"ℚ", "\\Q "}, {"ℂ", "\\C "}, {"∫", "\\int "}, {"∑", "\\sum "}, {"∏", "\\prod "},
    {"½", "\\frac12 "}, {"⅓", "\\frac13 "}, {"⅔", "\\frac23 "}, {"¼", "\\frac14 "},
    {"¾", "\\frac34 "}, {"⅕", "\\frac15 "}, {"⅖", "\\frac25 "}, {"⅗", "\\frac35 "},
    {"⅘", "\\frac45 "}, {"⅙", "\\frac16 "}, {"⅚", "\\frac56 "}, {"⅛", "\\frac18 "},
    {"⅜", "\\frac38 "}, {"⅝", "\\frac58 "}, {"⅞", "\\frac78 "}, {"²", "^{2}"}, {"³", "^{3}"},
    {"¹", "^{1}"}, {"⁰", "^{0}"}, {"⁴", "^{4}"}, {"⁵", "^{5}"}, {"⁶", "^{6}"}, {"⁷", "^{7}"},
    {"⁸", "^{8}"}, {"⁹", "^{9}"}, {"⁻", "^{-}"}, {"⁺", "^{+}"}, {"ⁿ", "^{n}"}, {"₀", "_{0}"},
    {"₁", "_{1}"}, {"₂", "_{2}"}, {"₃", "_{3}"}, {"₄", "_{4}"}, {"₅", "_{5}"}, {"₆", "_{6}"},
    {"₇", "_{7}"}, {"₈", "_{8}"}, {"₉", "_{9}"}, {"′", "'"}, {"’", "'"},
    {"‘", "'"}, {"“", "\""}, {"”", "\""}, {"，", ","}, {"、", ","}, {"。", "."}, {"；", ";"},
    {"：", ":"}, {"（", "("}, {"）", ")"}, {"［", "["}, {"］", "]"}, {"｛", "{"}, {"｝", "}"},
    {"＜", "<"}, {"＞", ">"}, {"％", "%"}, {"！", "!"}, {"＾", "^"}, {"｜", "|"}, {"…", "..."},
    {"⟨", "\\langle "}, {"⟩", "\\rangle "}, {"⌊", "\\lfloor "}, {"⌋", "\\rfloor "},
    {"⌈", "\\lceil "}, {"⌉", "\\rceil "}, {"€", "\\euro "}, {"£", "\\pounds "}, {"¥", "\\yen "},
    {"¢", "\\text{ cents}"}, {"Ω", "\\Omega "},
    {"￥", "\\yen "}, {"＄", "\\$"}, {"α", "\\alpha "}, {"β", "\\beta "}, {"γ", "\\gamma "},
    {"δ", "\\delta "}, {"ε", "\\epsilon "}, {"θ", "\\theta "}, {"λ", "\\lambda "}, {"μ", "\\mu "},
    {"µ", "\\mu "}, {"ρ", "\\rho "}, {"σ", "\\sigma "}, {"τ", "\\tau "}, {"φ", "\\phi "},
    {"ϕ", "\\phi "}, {"ω", "\\omega "}, {"Δ", "\\Delta "}, {"Ω", "\\Omega "}, {"Σ", "\\Sigma "},
    {"Γ", "\\Gamma "}, {"Φ", "\\Phi "}, {"ξ", "\\xi "}, {"η", "\\eta "}, {"ψ", "\\psi "},
    {"\u00A0", " "}, {"\u2009", "\\,"}, {"\u202F", "\\,"}, {"\u2002", " "}, {"\u2003", " "},
    {"\u2007", "\\,"}, {"\u2008", " "}, {"\u200A", " "}, {"\u3000", " "}, {"\u200B", ""},
    {"\u200C", ""}, {"\u200D", ""}, {"\u2060", ""}, {"\uFEFF", ""}, {"\u2061", ""}, {"\u2062", ""},
};
// clang-format on

using Notations = std::unordered_map<std::string_view, std::string_view>;

const Notations& notations() {
    // full-width letters and digits are written out once
    static const std::array<std::string, 62> wide = [] {
        std::array<std::string, 62> found;
        for (int i = 0; i < 62; ++i) {
            const int code = i < 10 ? 0xFF10 + i : i < 36 ? 0xFF21 + i - 10 : 0xFF41 + i - 36;
            const char plain = static_cast<char>(i < 10   ? '0' + i
                                                 : i < 36 ? 'A' + i - 10
                                                          : 'a' + i - 36);
            found[i] = {static_cast<char>(0xE0 | code >> 12),
                        static_cast<char>(0x80 | (code >> 6 & 63)),
                        static_cast<char>(0x80 | (code & 63)), plain};
        }
        return found;
    }();
    static const Notations table = [] {
        Notations made;
        for (const auto& [character, latex] : kNotation) made[character] = latex;
        for (const auto& text : wide)
            made[std::string_view(text).substr(0, 3)] = std::string_view(text).substr(3);
        return made;
    }();
    return table;
}

}  // namespace

const Command* find_command(std::string_view name) {
    static const Names names = make_commands();
    const auto found = names.find(name);
    return found == names.end() ? nullptr : &found->second;
}

const Command* find_plain_name(std::string_view word) {
    static const Names names = make_plain_names();
    const auto found = names.find(word);
    return found == names.end() ? nullptr : &found->second;
}

std::string_view notation_of(std::string_view text, size_t& size) {
    const auto first = static_cast<unsigned char>(text[0]);
    size = first >= 0xE0 ? 3 : 2;
    const auto found = notations().find(text.substr(0, size));
    if (found != notations().end()) return found->second;
    size = 0;
    return {};
}

}  // namespace fastrl::grading
