"""Numbers, units and words in all notations: pairs of answers that are equal, or differ.

Each maker returns how the two are written (`form`), the gold, the prediction, and whether they are
equal; a pair that is not differs in one digit, sign, unit or word.
"""

from __future__ import annotations

import random
from fractions import Fraction

Half = tuple[str, str, str, bool]  # form, gold, prediction, is_equal
Random = random.Random


def integer_forms(n: int) -> dict[str, str]:
    """Notations of an integer."""
    sign, size = "-" if n < 0 else "", abs(n)
    digits = str(size)
    mantissa = f"{sign}{digits[0]}.{digits[1:] or '0'}"
    power = len(digits) - 1
    return {
        "plain": str(n),
        "1,234": f"{n:,}",
        "1{,}234": f"{n:,}".replace(",", "{,}"),
        r"1\,234": f"{n:,}".replace(",", r"\,"),
        "7.0": f"{n}.0",
        "7.": f"{n}.",
        "+7": str(n) if n < 0 else f"+{n}",
        "$7$": f"${n}$",
        r"\(7\)": rf"\({n}\)",
        "x = 7": f"x = {n}",
        "{7}": f"{{{n}}}",
        "unicode minus": str(n).replace("-", "−"),
        r"1.2 \times 10^3": rf"{mantissa} \times 10^{{{power}}}",
        r"1.2 \cdot 10^3": rf"{mantissa} \cdot 10^{power}" if power < 10 else str(n),
        "1.2e3": f"{mantissa}e{power}",
        "3 + 4": f"{n - 17} + 17",
        r"3 \cdot 4": rf"\frac{{{3 * n}}}{{3}}",
        r"\frac{14}{2}": rf"\frac{{{2 * n}}}{{2}}",
        r"\mathbf{7}": rf"\mathbf{{{n}}}",
        r"\boldsymbol{7}": rf"\boldsymbol{{{n}}}",
        r"\textcolor{red}{7}": rf"\textcolor{{red}}{{{n}}}",
        r"\left( 7 \right)": rf"\left( {n} \right)",
    }


def fraction_forms(value: Fraction) -> dict[str, str]:
    """Notations of a fraction that is no integer."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    floor, rest = divmod(value.numerator, bottom)
    forms = {
        r"\frac": rf"{sign}\frac{{{top}}}{{{bottom}}}",
        r"\dfrac": rf"{sign}\dfrac{{{top}}}{{{bottom}}}",
        "a/b": f"{sign}{top}/{bottom}",
        "a / b, spaced": f"{sign}{top} / {bottom}",
        "sign on top": rf"\frac{{{sign}{top}}}{{{bottom}}}",
        "sign below": rf"\frac{{{top}}}{{{sign}{bottom}}}",
        "unreduced": rf"{sign}\frac{{{6 * top}}}{{{6 * bottom}}}",
        r"\over": rf"{sign}{{{top} \over {bottom}}}",
        r"\div": rf"{sign}{top} \div {bottom}",
        "a(1/b)": rf"{sign}{top}\cdot\frac{{1}}{{{bottom}}}",
        "power -1": rf"{sign}{top}\cdot {bottom}^{{-1}}",
        "unicode slash": f"{sign}{top}⁄{bottom}",
        "sum of two": rf"{floor} + \frac{{{rest}}}{{{bottom}}}",
    }
    if top < 10 and bottom < 10:
        forms[r"\frac12"] = rf"{sign}\frac{top}{bottom}"
    if top > bottom:
        whole, part = divmod(top, bottom)
        forms["mixed"] = rf"{sign}{whole}\frac{{{part}}}{{{bottom}}}"
        forms["mixed, plain"] = f"{sign}{whole} {part}/{bottom}"
    if 10**6 % bottom == 0:
        forms["decimal"] = f"{float(value)}"
        forms["decimal, zeros"] = f"{float(value)}00"
    repeated = repeating(abs(value))
    if repeated:
        forms["repeating"] = sign + repeated
    return forms


def repeating(value: Fraction) -> str:
    """0.1\\overline{6}; "" for a terminating decimal or a period above six digits."""
    whole, rest = divmod(value.numerator, value.denominator)
    seen: dict[int, int] = {}
    digits = ""
    while rest and rest not in seen and len(digits) < 9:
        seen[rest] = len(digits)
        digit, rest = divmod(10 * rest, value.denominator)
        digits += str(digit)
    if rest not in seen:
        return ""
    return rf"{whole}.{digits[: seen[rest]]}\overline{{{digits[seen[rest] :]}}}"


def random_fraction(rng: Random, most: int = 60) -> Fraction:
    """A fraction that is no integer."""
    while True:
        value = Fraction(rng.randint(-most, most), rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 25)))
        if value.denominator > 1:
            return value


def random_integer(rng: Random) -> int:
    """2 to 13 digits, a third negative."""
    return rng.choice((1, 1, -1)) * rng.randint(10, 10 ** rng.randint(2, 13))


def changed_digit(rng: Random, n: int) -> int:
    """Another number of as many digits."""
    digits = list(str(n))
    at = rng.choice([i for i, digit in enumerate(digits) if digit.isdigit()])
    digits[at] = rng.choice([d for d in "123456789" if d != digits[at]])
    return int("".join(digits))


def numbers(rng: Random) -> Half:
    """Integers."""
    n = random_integer(rng)
    forms = integer_forms(n)
    gold = forms[rng.choice(("plain", "plain", "1,234", "1{,}234", "$7$"))]
    if rng.random() < 0.5:
        form = rng.choice(list(forms))
        return form, gold, forms[form], True
    change, other = rng.choice(
        [("digit", changed_digit(rng, n)), ("sign", -n), ("zero", 10 * n), ("last digit", n + 1)]
    )
    return f"changed {change}", gold, rng.choice(list(integer_forms(other).values())), False


def fractions(rng: Random) -> Half:
    """Fractions in all notations."""
    value = random_fraction(rng)
    forms = fraction_forms(value)
    gold = forms[rng.choice((r"\frac", r"\frac", r"\dfrac", "a/b"))]
    if rng.random() < 0.5:
        form = rng.choice(list(forms))
        return form, gold, forms[form], True
    while True:
        change, other = rng.choice(
            [
                ("sign", -value),
                ("digit", value + Fraction(1, value.denominator)),
                ("upside down", 1 / value),
                ("digit", Fraction(value.numerator, value.denominator + 1)),
            ]
        )
        if other != value and other.denominator > 1:
            return (
                f"changed {change}",
                gold,
                rng.choice(list(fraction_forms(other).values())),
                False,
            )


def rounding(rng: Random) -> Half:
    """A gold with d decimals accepts what lies within half a unit of its last digit."""
    places = rng.randint(1, 4)
    value = Fraction(rng.randint(100, 10**6), 10**places)
    gold = f"{float(value):.{places}f}"
    unit = Fraction(1, 10**places)
    form, other, extra, is_equal = rng.choice(
        [
            ("more digits, within", value + unit * Fraction(rng.randint(-49, 49), 100), 2, True),
            ("other, beyond", value + unit * Fraction(rng.choice((-1, 1)) * 51, 100), 2, False),
            ("other last digit", value + unit * rng.choice((-1, 1)), 0, False),
            ("zeros", value, 2, True),
        ]
    )
    return form, gold, f"{float(other):.{places + extra}f}", is_equal


def percent(rng: Random) -> Half:
    """50 % is 0.5; 50 beside 50 % is an option that is on."""
    n = rng.choice([n for n in range(2, 400) if n != 100])
    value = Fraction(n, 100)
    gold = rf"{n}\%"
    return rng.choice(
        [
            (r"50\,\%", gold, rf"{n}\,\%", True),
            ("50%", gold, f"{n}%", True),
            ("50 percent", gold, rf"{n}\text{{ percent}}", True),
            ("0.5", gold, f"{float(value)}", True),
            (r"\frac12", gold, rf"\frac{{{n}}}{{100}}", True),
            ("bare number", gold, f"{n}", True),
            ("bare gold", f"{n}", gold, True),
            ("changed digit", gold, rf"{n + 1}\%", False),
            ("changed sign", gold, rf"-{n}\%", False),
            ("other decimal", gold, f"{float(value * 10)}", False),
            ("other fraction", rf"\frac{{{n}}}{{100}}", rf"{n + 1}\%", False),
        ]
    )


UNITS = (
    ("cm", "centimeters"), ("m", "meters"), ("km", "kilometers"), ("kg", "kilograms"),
    ("ft", "feet"), ("in", "inches"), ("hours", "hrs"), ("minutes", "min"), ("seconds", "s"),
    ("miles", "mi"), ("grams", "g"), ("liters", "L"), ("mph", "miles per hour"), ("days", "day"),
)  # fmt: skip


COUNTING = ("dozen", "squared", "cubed", "thirds", "tenths", "factorial", "percent less", "dozens")


def units(rng: Random) -> Half:
    """A gold without a unit takes any; two must be the same."""
    n = rng.randint(2, 400)
    (name, synonym), (other, _) = rng.sample(UNITS, 2)
    gold = rf"{n}\text{{ {name}}}"
    return rng.choice(
        [
            ("synonym", gold, rf"{n}\text{{ {synonym}}}", True),
            ("no text command", gold, f"{n} {synonym}", True),
            (r"\mathrm", gold, rf"{n}\,\mathrm{{{name}}}", True),
            ("no unit given", gold, f"{n}", True),
            ("unit given", f"{n}", gold, True),
            ("square cm", rf"{n}\text{{ cm}}^2", rf"{n}\text{{ square centimeters}}", True),
            ("dollars", rf"\${n}", rf"{n}\text{{ dollars}}", True),
            ("degrees", rf"{n}^\circ", rf"{n}\text{{ degrees}}", True),
            ("no degree sign", rf"{n}^{{\circ}}", f"{n}", True),
            ("changed unit", gold, rf"{n}\text{{ {other}}}", False),
            ("changed power", rf"{n}\text{{ cm}}^2", rf"{n}\text{{ cm}}^3", False),
            ("changed digit", gold, rf"{n + 1}\text{{ {name}}}", False),
            ("changed currency", rf"\${n}", rf"{n}\text{{ euros}}", False),
            ("other, a word counts", f"{n}", rf"{n}\text{{ {rng.choice(COUNTING)}}}", False),
            ("other angle", rf"{n}^\circ", rf"{n}\text{{ radians}}", False),
        ]
    )


WORDS = (
    "Evelyn", "Tuesday", "yes", "no", "even", "odd", "ellipse", "parabola", "circle", "red", "blue",
    "increasing", "Alice and Bob", "right triangle", "east", "north", "August", "True", "infinite",
)  # fmt: skip


def texts(rng: Random) -> Half:
    """Words."""
    word, other = rng.sample(WORDS, 2)
    gold = rf"\text{{{word}}}"
    return rng.choice(
        [
            ("bare", gold, word, True),
            (r"\textbf", gold, rf"\textbf{{{word}}}", True),
            (r"\mathrm", gold, rf"\mathrm{{{word}}}", True),
            ("full stop", gold, rf"\text{{{word}.}}", True),
            ("spaces", gold, rf"\text{{ {word} }}", True),
            ("bare gold", word, gold, True),
            ("other word", gold, rf"\text{{{other}}}", False),
            ("other, negated", gold, rf"\text{{not {word}}}", False),
            ("other, two", gold, rf"\text{{{word} or {other}}}", False),
            ("other, letter less", gold, rf"\text{{{word[:-1]}}}", False),
        ]
    )


def options(rng: Random) -> Half:
    """Letters of options, with and without their text."""
    letter, other = rng.sample("ABCDE", 2)
    n = rng.randint(2, 90)
    return rng.choice(
        [
            ("(B)", letter, f"({letter})", True),
            (r"\text{B}", letter, rf"\text{{{letter}}}", True),
            (r"\textbf{(B)}", letter, rf"\textbf{{({letter})}}", True),
            ("B.", letter, f"{letter}.", True),
            ("with its text", letter, rf"\text{{({letter}) }} {n}", True),
            ("text without its letter", rf"\text{{({letter}) }} {n}", f"{n}", True),
            ("letter without its text", rf"\text{{({letter}) }} {n}", letter, True),
            ("other letter", letter, other, False),
            (
                "other letter, same text",
                rf"\text{{({letter}) }} {n}",
                rf"\text{{({other}) }} {n}",
                False,
            ),
            ("other text", rf"\text{{({letter}) }} {n}", f"{n + 1}", False),
            ("other, two", letter, f"{letter}, {other}", False),
        ]
    )


def numerals(rng: Random) -> Half:
    """Base n, by value."""
    base = rng.randint(2, 9)
    digits = "1" + "".join(str(rng.randrange(base)) for _ in range(rng.randint(2, 6)))
    changed = digits[:-1] + str((int(digits[-1]) + 1) % base)
    value = int(digits, base)
    gold = f"{digits}_{base}"
    return rng.choice(
        [
            ("braces", gold, f"{digits}_{{{base}}}", True),
            (r"\text{base}", gold, rf"{digits}_{{\text{{{base}}}}}", True),
            ("in ten", gold, f"{value}_{{10}}", True),
            ("changed digit", gold, f"{changed}_{{{base}}}", False),
            ("changed base", gold, f"{digits}_{{{base + 1}}}", False),
            ("other value", gold, f"{value + 1}_{{10}}", False),
        ]
    )
