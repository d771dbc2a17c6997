"""Closed forms, expressions and structures, rewritten: pairs of answers that are equal, or differ.

As in grading_forms.py; expressions are rewritten by sympy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import sympy

from fastrl.bench.grading_forms import Half, Random, fraction_forms, random_fraction

X, Y = sympy.symbols("x y")


Form = tuple[str, str, str]  # its name, gold, prediction


def either(rng: Random, equal: Sequence[Form], different: Sequence[Form]) -> Half:
    """One of the equal or of the different forms, half of each."""
    if rng.random() < 0.5:
        return (*rng.choice(equal), True)
    return (*rng.choice(different), False)


def roots(rng: Random) -> Half:
    """Surds: radicands with squares taken out, denominators made rational, nested ones."""
    a, b = rng.randint(2, 12), rng.choice((2, 3, 5, 6, 7, 10, 11))
    c, d = rng.sample((2, 3, 5, 7, 11, 13), 2)
    equal = [
        ("square inside", rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}"),
        ("cube inside", rf"{a}\sqrt[3]{{{b}}}", rf"\sqrt[3]{{{a**3 * b}}}"),
        ("rational below", rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}", rf"\frac{{{a}}}{{\sqrt{{{b}}}}}"),
        ("nested", rf"\sqrt{{{c}}}+\sqrt{{{d}}}", rf"\sqrt{{{c + d}+2\sqrt{{{c * d}}}}}"),
        ("power", rf"{a}\sqrt{{{b}}}", rf"{a}\cdot {b}^{{1/2}}"),
        ("power, \\frac", rf"\sqrt{{{b}}}", rf"{b}^{{\frac{{1}}{{2}}}}"),
        ("without braces", r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt3}2"),
        (
            "conjugate",
            rf"\sqrt{{{a + 1}}}-\sqrt{{{a}}}",
            rf"\frac{{1}}{{\sqrt{{{a + 1}}}+\sqrt{{{a}}}}}",
        ),
        ("product", rf"\sqrt{{{c * d}}}", rf"\sqrt{{{c}}}\cdot\sqrt{{{d}}}"),
        ("turned", rf"{a}+{c}\sqrt{{{b}}}", rf"\sqrt{{{b}}}\cdot{c}+{a}"),
        ("unicode", rf"{a}\sqrt{{{b}}}", f"{a}√{b}"),
        ("sqrt(b)", rf"{a}\sqrt{{{b}}}", f"{a}sqrt({b})"),
    ]
    different = [
        ("changed radicand", rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + 1}}}"),
        ("changed sign", rf"{a}+{c}\sqrt{{{b}}}", rf"{a}-{c}\sqrt{{{b}}}"),
        ("changed degree", rf"{a}\sqrt[3]{{{b}}}", rf"{a}\sqrt[4]{{{b}}}"),
        ("changed bracket", rf"\sqrt{{{a}+{b}}}", rf"\sqrt{{{a}}}+{b}"),
        ("other decimal", rf"{a}\sqrt{{{b}}}", f"{a * math.sqrt(b):.4f}"),
        ("other decimal, long", rf"{a}\sqrt{{{b}}}", str(sympy.N(a * sympy.sqrt(b), 45))),
        ("changed digit", rf"{a}\sqrt{{{b}}}", rf"{a + 1}\sqrt{{{b}}}"),
    ]
    return either(rng, equal, different)


def closed(rng: Random) -> Half:
    """Powers, logarithms, trigonometric functions, factorials, binomials, multiples of pi."""
    a, b, n = rng.randint(2, 9), rng.randint(2, 9), rng.randint(3, 12)
    equal = [
        ("logarithm of a power", str(n), rf"\log_{{{a}}} {a**n}"),
        ("logarithm of a product", rf"\ln {a}+\ln {b}", rf"\ln {a * b}"),
        (r"\lg", rf"\log_{{10}} {a * b}", rf"\lg {a * b}"),
        ("logarithm, another base", rf"\log_{{{a}}} {b}", rf"\frac{{\ln {b}}}{{\ln {a}}}"),
        ("sine", r"\frac{\sqrt{3}}{2}", r"\sin\frac{\pi}{3}"),
        ("cosine of degrees", r"\frac{1}{2}", r"\cos 60^\circ"),
        ("arctangent", r"\frac{\pi}{4}", r"\arctan 1"),
        ("factorial", str(math.factorial(n)), f"{n}!"),
        ("binomial", str(math.comb(n, 2)), rf"\binom{{{n}}}{{2}}"),
        ("power", str(a**n), f"{a}^{{{n}}}"),
        ("product of powers", rf"{a * b}^{{{n}}}", rf"{a}^{{{n}}}\cdot {b}^{{{n}}}"),
        ("pi in front", rf"\frac{{{a}\pi}}{{{n}}}", rf"\frac{{{a}}}{{{n}}}\pi"),
        ("pi by name", rf"{a}\pi", f"{a}pi"),
        ("pi, unicode", rf"{a}\pi", f"{a}π"),
        ("e", rf"e^{{{a}}}\cdot e^{{{b}}}", rf"e^{{{a + b}}}"),
        ("exponential", rf"e^{{{a}}}", rf"\exp({a})"),
        ("absolute value", str(n), rf"|{a}-{a + n}|"),
        ("floor", str(n), rf"\lfloor {n}.5 \rfloor"),
    ]
    different = [
        ("changed base", rf"\log_{{{a}}} {b}", rf"\log_{{{a + 1}}} {b}"),
        ("changed power", rf"{a}^{{{10 * n}}}", rf"{a}^{{{10 * n + 1}}}"),
        ("changed last digit", str(a**30), str(a**30 + 1)),
        ("changed sign", rf"-\frac{{{a}\pi}}{{{n}}}", rf"\frac{{{a}\pi}}{{{n}}}"),
        ("other function", rf"\sin {n}", rf"\cos {n}"),
        ("changed factorial", f"{n}!", f"{n + 1}!"),
        ("other decimal", rf"{a}\pi", f"{a * math.pi:.4f}"),
        ("other decimal, long", rf"{a}\pi", str(sympy.N(a * sympy.pi, 45))),
        ("other integer, near", rf"{a}e^{{\pi\sqrt{{163}}}}", str(a * 262537412640768744)),
        ("changed digit", rf"\binom{{{n + 3}}}{{2}}", rf"\binom{{{n + 3}}}{{3}}"),
    ]
    if rng.random() < 0.6:
        return (*rng.choice(equal), True)
    return (*rng.choice(different), False)


def polynomial(rng: Random, variables: Sequence[sympy.Symbol] = (X, Y)) -> sympy.Expr:
    """Two or three terms of degree at most 2 in each variable."""
    total = sympy.Integer(0)
    while len(sympy.Add.make_args(total)) < 2:
        term = sympy.Integer(rng.choice([n for n in range(-9, 10) if n]))
        for variable in variables:
            term *= variable ** rng.randint(0, 2)
        total += term
    return total


def random_expression(rng: Random) -> sympy.Expr:
    """Polynomials, quotients, powers, functions of one or two variables."""
    p, q = polynomial(rng, (X,)), polynomial(rng)
    root = sympy.sqrt(rng.choice((2, 3, 5)))
    half = sympy.Rational(rng.randint(1, 9), rng.randint(2, 9))
    makers: tuple[Callable[[], sympy.Expr], ...] = (
        lambda: p * q,
        lambda: p * (X + rng.randint(1, 9)) ** 2,
        lambda: p / (X + rng.randint(1, 9)),
        lambda: q / polynomial(rng, (X,)) + half,
        lambda: half * p + q,
        lambda: root * p + half * q,
        lambda: (X + root) * (X - half),
        lambda: sympy.pi * p * half,
        lambda: sympy.sin(X) * p + sympy.cos(X) ** 2,
        lambda: sympy.exp(X) * (p + sympy.exp(Y)),
        lambda: sympy.sqrt(X**2 + rng.randint(1, 9)) * p,
        lambda: sympy.log(X) * p + half,
        lambda: 1 / p + 1 / (Y + half),
    )
    return rng.choice(makers)()


REWRITES: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    "expanded": sympy.expand,
    "factored": sympy.factor,
    "over one denominator": sympy.together,
    "cancelled": sympy.cancel,
    "powers joined": lambda e: sympy.powsimp(sympy.expand(e)),
    "collected": lambda e: sympy.collect(sympy.expand(e), X),
    "as it is": lambda e: e,
    "sines for cosines": lambda e: e.subs(sympy.cos(X) ** 2, 1 - sympy.sin(X) ** 2),
    "divided through": lambda e: sympy.Add(*[t / 7 for t in sympy.Add.make_args(e)]) * 7,
}


def written(expression: sympy.Expr, rng: Random) -> str:
    """LaTeX in one of several styles."""
    settings = {
        "order": rng.choice((None, "rev-lex", "grevlex")),
        "mul_symbol": rng.choice((None, None, "dot", "times")),
        "fold_short_frac": rng.random() < 0.2,
        "ln_notation": True,
    }
    text = sympy.latex(expression, **settings)
    changes = [(r"\frac", r"\dfrac"), (r"\left", ""), ("^{2}", "^2"), (" + ", "+"), (r"\,", " ")]
    for old, new in changes:
        if rng.random() < 0.3:
            text = text.replace(old, new)
            if old == r"\left":
                text = text.replace(r"\right", "")
    return text


def perturbed(expression: sympy.Expr, rng: Random) -> tuple[str, sympy.Expr] | None:
    """One integer one more, or one term's sign turned; None where that changes nothing."""
    nodes = [n for n in sympy.preorder_traversal(expression) if n.is_Integer and n not in (0, -1)]
    terms = [t for s in sympy.preorder_traversal(expression) if s.is_Add for t in s.args]
    if nodes and rng.random() < 0.6:
        node = rng.choice(nodes)
        form, other = "changed digit", expression.xreplace({node: node + 1})
    elif terms:
        term = rng.choice(terms)
        form, other = "changed sign", expression.xreplace({term: -term})
    else:
        return None
    points = [{X: sympy.Rational(13, 7) + k, Y: sympy.Rational(17, 11) + 2 * k} for k in range(2)]
    for point in points:
        a, b = (sympy.N(e.subs(point), 30) for e in (expression, other))
        if not (a.is_number and b.is_number) or abs(a - b) > 1e-9 * (1 + abs(a)):
            return form, other
    return None


def expressions(rng: Random) -> Half:
    """Rewritten by sympy."""
    while True:
        expression = random_expression(rng)
        gold = written(expression, rng)
        form = rng.choice(list(REWRITES))
        if rng.random() < 0.5:
            return form, gold, written(REWRITES[form](expression), rng), True
        other = perturbed(expression, rng)
        if other is not None:
            return other[0], gold, written(REWRITES[form](other[1]), rng), False


def piecewise(rng: Random) -> Half:
    """Absolute values, floors and maxima: equal on one side of a point is not equal."""
    a, n = rng.randint(2, 40), rng.randint(2, 9)
    equal = [
        ("absolute, turned", f"|x-{a}|", f"|{a}-x|"),
        ("absolute, scaled", f"|{n}x|", f"{n}|x|"),
        ("absolute product", f"{n}|xy|", f"{n}|x||y|"),
        ("root of a square", rf"\sqrt{{(x-{a})^2}}", rf"\left|x-{a}\right|"),
        ("absolute square", f"|x+{a}|^2", f"(x+{a})^2"),
        ("maximum", rf"\max(x,{a})", rf"\frac{{x+{a}+|x-{a}|}}{{2}}"),
        ("minimum", rf"\min(x,y)+{a}", rf"{a}-\max(-x,-y)"),
        ("floor, moved", rf"\lfloor x+{n}\rfloor", rf"\lfloor x\rfloor+{n}"),
    ]
    different = [
        ("other, absolute", f"x+{a}", f"|x+{a}|"),
        ("other, root of a square", f"x+{a}", rf"\sqrt{{(x+{a})^2}}"),
        ("other, product", f"{n}xy", f"{n}|xy|"),
        ("other, triangle", f"|x|+|y|+{a}", f"|x+y|+{a}"),
        ("other, maximum", f"x+{a}", rf"\max(x,-{a})+{a}"),
        ("other, minimum", f"{n}x", rf"\min({n}x,{n * a})"),
        ("other, floor of twice", rf"{n}+\lfloor 2x\rfloor", rf"{n}+2\lfloor x\rfloor"),
        ("other, rounded", rf"\lfloor x\rfloor+{n}", rf"\lfloor x+\frac12\rfloor+{n}"),
    ]
    return either(rng, equal, different)


def complex_numbers(rng: Random) -> Half:
    """a + bi in several forms."""
    a, b, c, d = (rng.choice((1, -1)) * rng.randint(2, 12) for _ in range(4))
    p, q = a * c - b * d, a * d + b * c
    if p == 0 or q == 0:
        return complex_numbers(rng)
    gold = f"{p}{q:+}i"
    equal = [
        ("turned", f"{q}i{p:+}"),
        ("product", f"({a}{b:+}i)({c}{d:+}i)"),
        ("quotient", rf"\frac{{{-q}{p:+}i}}{{i}}"),
        ("spaced", f"{p} {'+' if q > 0 else '-'} {abs(q)}i"),
        ("i in front", rf"{p}{'+' if q > 0 else '-'}i\cdot {abs(q)}"),
        (r"\mathrm{i}", rf"{p}{q:+}\mathrm{{i}}"),
    ]
    different = [
        ("changed sign", f"{p}{-q:+}i"),
        ("changed digit", f"{p}{q + (1 if q != -1 else 2):+}i"),
        ("other order", f"{q}{p:+}i" if p != q else f"{q + 1}{p:+}i"),
        ("changed part", f"{p}{q:+}"),
        ("changed product", f"({a}{-b:+}i)({c}{d:+}i)"),
    ]
    is_equal = rng.random() < 0.5
    form, prediction = rng.choice(equal if is_equal else different)
    return form, gold, prediction, is_equal


def any_number(rng: Random, value: Fraction) -> str:
    """A notation that may stand in a list."""
    if value.denominator == 1:
        return str(value)
    forms = fraction_forms(value)
    return forms[rng.choice((r"\frac", r"\dfrac", "a/b", "sign on top", "unreduced"))]


def some_values(rng: Random, count: int) -> list[Fraction]:
    """Distinct integers and fractions."""
    found: list[Fraction] = []
    while len(found) < count:
        value = Fraction(rng.randint(-30, 30)) if rng.random() < 0.7 else random_fraction(rng, 20)
        if value not in found:
            found.append(value)
    return found


def joined(rng: Random, values: Sequence[Fraction], opened: str = "", closed: str = "") -> str:
    """The values between brackets."""
    comma = rng.choice((",", ", ", r",\ ", " , "))
    return opened + comma.join(any_number(rng, value) for value in values) + closed


def changed_values(rng: Random, values: Sequence[Fraction]) -> tuple[str, list[Fraction]]:
    """One of them changed, gone or added."""
    other = list(values)
    at = rng.randrange(len(other))
    change = rng.choice(("changed value", "changed sign", "other, one missing", "other, one more"))
    if change == "changed value":
        other[at] += Fraction(1, 2)
    elif change == "changed sign" and other[at]:
        other[at] = -other[at]
    elif change == "other, one missing" and len(other) > 2:
        del other[at]
    else:
        change = "other, one more"
        other.append(Fraction(77))
    return (change, other) if sorted(other) != sorted(values) else changed_values(rng, values)


def tuples(rng: Random) -> Half:
    """Ordered."""
    values = some_values(rng, rng.randint(2, 4))
    gold = joined(rng, values, "(", ")")
    brackets = rng.choice((("(", ")"), (r"\left(", r"\right)"), ("$(", ")$")))
    if rng.random() < 0.5:
        return "notation", gold, joined(rng, values, *brackets), True
    if rng.random() < 0.4:
        return "other order", gold, joined(rng, values[::-1], *brackets), False
    form, other = changed_values(rng, values)
    return form, gold, joined(rng, other, *brackets), False


def sets(rng: Random) -> Half:
    """Without an order."""
    values = some_values(rng, rng.randint(2, 5))
    gold = joined(rng, values, r"\{", r"\}")
    brackets = rng.choice(((r"\{", r"\}"), (r"\left\{", r"\right\}"), (r"\lbrace ", r"\rbrace")))
    shuffled = rng.sample(values, len(values))
    if rng.random() < 0.5:
        form = rng.choice(("notation", "twice the same"))
        if form == "twice the same":
            shuffled.append(shuffled[0])
        return form, gold, joined(rng, shuffled, *brackets), True
    form, other = changed_values(rng, values)
    return form, gold, joined(rng, other, *brackets), False


def lists(rng: Random) -> Half:
    """Values without brackets, in any order."""
    values = some_values(rng, rng.randint(2, 4))
    gold = joined(rng, values)
    shuffled = rng.sample(values, len(values))
    if rng.random() < 0.5:
        form = rng.choice(("notation", "and", "in braces", "x = each"))
        texts = [any_number(rng, value) for value in shuffled]
        prediction = {
            "notation": ", ".join(texts),
            "and": ", ".join(texts[:-1]) + r" \text{ and } " + texts[-1],
            "in braces": r"\{" + ", ".join(texts) + r"\}",
            "x = each": ", ".join(f"x = {text}" for text in texts),
        }[form]
        return form, gold, prediction, True
    form, other = changed_values(rng, values)
    return form, gold, joined(rng, other), False


def ends(rng: Random) -> tuple[Fraction, Fraction]:
    """Two in order."""
    low, high = sorted(some_values(rng, 2))
    return low, high


def intervals(rng: Random) -> Half:
    """Intervals, unions, rays."""
    a, b = ends(rng)
    opened, closed = rng.choice("[("), rng.choice("])")
    gold = joined(rng, (a, b), opened, closed)
    low, high = any_number(rng, a), any_number(rng, b)
    two = rf"{joined(rng, (a, b), '(', ')')}\cup{joined(rng, (b + 1, b + 2), '(', ')')}"
    turned = rf"{joined(rng, (b + 1, b + 2), '(', ')')} \cup {joined(rng, (a, b), '(', ')')}"
    bound = {"[": r"\le", "(": "<"}[opened], {"]": r"\leq", ")": "<"}[closed]
    equal = [
        (r"\left, \right", gold, joined(rng, (a, b), rf"\left{opened}", rf"\right{closed}")),
        ("union turned", two, turned),
        ("as inequality", gold, f"{low} {bound[0]} x {bound[1]} {high}"),
        ("x in", gold, rf"x \in {gold}"),
        (
            "without a point",
            rf"(-\infty,{low})\cup({low},\infty)",
            rf"\mathbb{{R}}\setminus\{{{low}\}}",
        ),
        ("as inequation", rf"(-\infty,{low})\cup({low},\infty)", rf"x \ne {low}"),
        ("infinite", rf"({low},\infty)", rf"({low}, +\infty)"),
        ("ray as inequality", rf"[{low},\infty)", rf"x \ge {low}"),
    ]
    other_open, other_closed = {"[": "(", "(": "["}[opened], {"]": ")", ")": "]"}[closed]
    different = [
        ("changed bracket", gold, joined(rng, (a, b), other_open, closed)),
        ("changed bracket", gold, joined(rng, (a, b), opened, other_closed)),
        ("changed end", gold, joined(rng, (a, b + 1), opened, closed)),
        ("changed sign", rf"({low},\infty)", rf"(-\infty,{low})"),
        ("other operation", two, two.replace(r"\cup", r"\cap")),
        ("other, one part", two, joined(rng, (a, b), "(", ")")),
    ]
    return either(rng, equal, different)


def equations(rng: Random) -> Half:
    """Lines, circles and the like, scaled and turned."""
    a, b, c = (sympy.Integer(rng.choice((1, -1)) * rng.randint(2, 9)) for _ in range(3))
    left, right = rng.choice(
        [(Y, a * X + b), (a * X + b * Y, c), (X**2 + Y**2, c**2), (Y, a * X**2 + b * X + c)]
    )
    scale = sympy.Integer(rng.choice((-3, -1, 2, 5)))
    gold = f"{written(left, rng)}={written(right, rng)}"

    def equation(one: sympy.Expr, two: sympy.Expr) -> str:
        return f"{written(sympy.expand(one), rng)} = {written(sympy.expand(two), rng)}"

    equal = [
        ("turned", equation(right, left)),
        ("scaled", equation(scale * left, scale * right)),
        ("zero on the right", equation(left - right, sympy.Integer(0))),
        ("moved", equation(left + 3 * X, right + 3 * X)),
        ("scaled, zero", equation(sympy.Integer(0), (right - left) / 2)),
    ]
    different = [
        ("changed digit", equation(left, right + 1)),
        ("changed digit, scaled", equation(scale * left, scale * right + 1)),
        ("changed sign", equation(left, -right)),
        ("changed coefficient", equation(left + X, right)),
    ]
    is_equal = rng.random() < 0.5
    form, prediction = rng.choice(equal if is_equal else different)
    return form, gold, prediction, is_equal


def inequalities(rng: Random) -> Half:
    """Bounds on one variable."""
    a, b = ends(rng)
    low, high = any_number(rng, a), any_number(rng, b)
    equal = [
        ("turned", f"x > {low}", f"{low} < x"),
        (r"\geq", rf"x \ge {low}", rf"x \geq {low}"),
        (r"\leqslant", rf"x \le {low}", rf"x \leqslant {low}"),
        ("chain turned", rf"{low} < x \le {high}", rf"{high} \ge x > {low}"),
        ("as interval", f"x < {low}", rf"(-\infty, {low})"),
        ("unicode", rf"x \le {low}", f"x ≤ {low}"),
        ("scaled", f"x > {a}", f"3x > {3 * a}"),
        ("scaled by -1", f"x > {a}", f"-x < {-a}"),
        ("two", rf"x < {low} \text{{ or }} x > {high}", rf"(-\infty,{low})\cup({high},\infty)"),
    ]
    different = [
        ("changed relation", f"x > {low}", rf"x \ge {low}"),
        ("changed direction", f"x > {low}", f"x < {low}"),
        ("changed digit", f"x > {low}", f"x > {any_number(rng, a + 1)}"),
        ("changed end", rf"{low} < x \le {high}", rf"{low} \le x \le {high}"),
        ("other variable", f"x > {low}", f"y > {low}"),
        ("other, one bound", rf"{low} < x < {high}", f"x < {high}"),
    ]
    return either(rng, equal, different)


def matrices(rng: Random) -> Half:
    """Of two or three rows."""
    height, width = rng.randint(2, 3), rng.randint(1, 3)
    rows = [[Fraction(rng.randint(-9, 9)) for _ in range(width)] for _ in range(height)]
    rows[0][0] = random_fraction(rng, 9)
    rows[1][0] = rows[0][0] + 1

    def matrix(rows: Sequence[Sequence[Fraction]], kind: str = "pmatrix") -> str:
        lines = r" \\ ".join(" & ".join(any_number(rng, v) for v in row) for row in rows)
        return rf"\begin{{{kind}}} {lines} \end{{{kind}}}"

    gold = matrix(rows)
    changed = [list(row) for row in rows]
    changed[-1][-1] += 1
    signed = [list(row) for row in rows]
    signed[0][0] = -signed[0][0]
    equal = [
        ("notation", matrix(rows)),
        ("bmatrix", matrix(rows, "bmatrix")),
        ("row end", gold.replace(r" \end", r" \\ \end")),
        ("spaces", gold.replace(" ", "")),
        ("transposed twice", matrix([list(c) for c in zip(*rows, strict=True)]) + "^T"),
    ]
    different = [
        ("changed digit", matrix(changed)),
        ("changed sign", matrix(signed)),
        ("other, transposed", matrix([list(column) for column in zip(*rows, strict=True)])),
        ("other, rows turned", matrix(rows[::-1])),
        ("other, one row less", matrix(rows[:-1])),
        ("changed bars", matrix(rows, "vmatrix")),
    ]
    is_equal = rng.random() < 0.5
    form, prediction = rng.choice(equal if is_equal else different)
    return form, gold, prediction, is_equal
