"""The verifier's arithmetic against mpmath: 20 digits of every function, and what lies beyond."""

import random

import mpmath
import pytest

from fastrl.grading import grade

DIGITS = 20
mpmath.mp.prec = 300


def correct(answer, gold):
    return grade([answer], [gold], content="answer")[0].correct


def check(expression, value):
    """The gold is the value rounded to DIGITS significant digits; one unit beside it is wrong."""
    exponent = int(mpmath.floor(mpmath.log10(abs(value)))) + 1
    places = DIGITS - max(0, exponent)
    units = int(mpmath.nint(value * mpmath.mpf(10) ** places))

    def decimal(count):
        digits = str(abs(count)).rjust(places + 1, "0")
        return f"{'-' if count < 0 else ''}{digits[:-places]}.{digits[-places:]}"

    assert correct(expression, decimal(units)), (expression, decimal(units))
    for other in (units + 1, units - 1):
        assert not correct(expression, decimal(other)), (expression, decimal(other))


FUNCTIONS = {
    r"\sin": mpmath.sin, r"\cos": mpmath.cos, r"\tan": mpmath.tan, r"\cot": mpmath.cot,
    r"\sec": mpmath.sec, r"\csc": mpmath.csc, r"\arctan": mpmath.atan, r"\exp": mpmath.exp,
    r"\ln": mpmath.log, r"\sqrt": mpmath.sqrt, r"\sinh": mpmath.sinh, r"\cosh": mpmath.cosh,
    r"\tanh": mpmath.tanh, "arcsinh": mpmath.asinh,
}  # fmt: skip
INVERSE = {r"\arcsin": mpmath.asin, r"\arccos": mpmath.acos, "arctanh": mpmath.atanh}
RATIONALS = [(1, 2), (1, 3), (1, 7), (22, 7), (1, 1), (5, 2), (10, 1), (99, 10), (1, 1000), (7, 5),
(31, 10)]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    for a, b in RATIONALS:
        argument = (
            rf"{{\frac{{{a}}}{{{b}}}}}"
            if name == r"\sqrt"
            else rf"\left(\frac{{{a}}}{{{b}}}\right)"
        )
        value = FUNCTIONS[name](mpmath.mpf(a) / b)
        if abs(value) > mpmath.mpf(10) ** -8:
            check(name + argument, value)


@pytest.mark.parametrize("name", INVERSE)
def test_inverse_functions(name):
    for a, b in [(1, 2), (-1, 3), (9, 10), (999, 1000), (1, 1000)]:
        check(rf"{name}\left(\frac{{{a}}}{{{b}}}\right)", INVERSE[name](mpmath.mpf(a) / b))


@pytest.mark.parametrize(
    "expression, value",
    [
        (r"\pi", mpmath.pi), ("e", mpmath.e), (r"e^{\pi}", mpmath.e**mpmath.pi),
        (r"\pi^{e}", mpmath.pi**mpmath.e), (r"\sqrt[3]{2}", mpmath.cbrt(2)),
        (r"\sqrt[7]{100}", mpmath.root(100, 7)), (r"2^{\sqrt2}", 2 ** mpmath.sqrt(2)),
        (r"\log_2 10", mpmath.log(10, 2)), (r"\log_{10} 2", mpmath.log10(2)),
        (r"\ln\ln 10", mpmath.log(mpmath.log(10))), (r"\sin 30^\circ + \sqrt3",
        0.5 + mpmath.sqrt(3)),
        (r"\sqrt{2+\sqrt{2+\sqrt2}}", mpmath.sqrt(2 + mpmath.sqrt(2 + mpmath.sqrt(2)))),
        (r"\cos\frac{\pi}{7}", mpmath.cos(mpmath.pi / 7)), (r"\sin 1000", mpmath.sin(1000)),
        (r"\sin 100000", mpmath.sin(100000)), (r"e^{20}", mpmath.exp(20)), (r"e^{-5}",
        mpmath.exp(-5)),
        (r"\ln 1000000", mpmath.log(10**6)), (r"\ln 1.0001", mpmath.log(mpmath.mpf(10001) / 10000)),
        (r"|1+2i|", mpmath.sqrt(5)), (r"-\sqrt{2}", -mpmath.sqrt(2)),
        (r"(1+\sqrt2)^{10}", (1 + mpmath.sqrt(2)) ** 10), (r"\frac{1+\sqrt5}{2}", mpmath.phi),
    ],
)  # fmt: skip
def test_constants(expression, value):
    check(expression, value)


def test_what_differs_beyond_thirty_digits_is_not_called_equal_without_proof():
    """Roots of perfect powers are exact; what is close but irrational is told apart or refused."""
    pairs = [
        (r"\sqrt{10^{60}+1}", "10^{30}"), (r"\sqrt{10^{30}+1}", "10^{15}"),
        (r"\sqrt{10^{24}+1}", "10^{12}"), (r"\sqrt[3]{10^{60}+1}", "10^{20}"),
        ("1/2^{99}", "1/2^{98}"), ("x+10^{-9}", "x"), ("x+2305843009213693951", "x"),
        ("x+(2^{61}-1)(2^{61}-31)", "x"), (r"\sqrt2+10^{-20}", r"\sqrt2"),
        ("10^{100}+1", "10^{100}"), ("3^{100}+1", "3^{100}"), ("e^{-60}", "0"),
        (r"\sqrt{2}", r"\frac{665857}{470832}"), (r"\pi", r"\frac{355}{113}"),
    ]  # fmt: skip
    for answer, gold in pairs:
        assert correct(answer, gold) is False, (answer, gold)
        assert correct(gold, answer) is False, (gold, answer)
    for answer, gold in [(r"\sqrt{10^{60}}", "10^{30}"), (r"\sqrt[3]{-27}", "-3"), (r"4^{3/2}",
        "8"),
                         (r"\sqrt{\frac{18}{8}}", "1.5"), (r"27^{-1/3}", "1/3"), ("(-8)^{1/3}",
                         "-2")]:  # fmt: skip
        assert correct(answer, gold) is True, (answer, gold)


def test_products_and_sums_of_any_size_are_exact():
    rng = random.Random(0)
    for _ in range(200):
        digits = rng.choice([3, 17, 18, 19, 36, 37, 200])
        a, b = (rng.randint(-(10**digits), 10**digits) for _ in range(2))
        c = rng.randint(1, 10**digits)
        for text, value in (
            (f"({a})+({b})", a + b),
            (f"({a})-({b})", a - b),
            (f"({a})({b})", a * b),
        ):
            assert correct(text, str(value)) is True
            assert correct(text, str(value + 1)) is False
        assert correct(rf"\frac{{{a * c}}}{{{c}}}", str(a)) is True
        assert correct(rf"\frac{{{a * c + 1}}}{{{c}}}", str(a)) is False
        power = rng.randint(2, 4)
        assert correct(f"({a})^{power}", str(a**power)) is True
        assert correct(f"({a})^{power}", str(a**power - 1)) is False
