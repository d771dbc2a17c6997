#include "walk.h"

namespace fastrl::grading {

uint64_t multiply(uint64_t a, uint64_t b, uint64_t prime) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    if (prime != kPrime) return static_cast<uint64_t>(product % prime);
    const uint64_t folded =
        static_cast<uint64_t>(product & kPrime) + static_cast<uint64_t>(product >> 61);
    return folded >= kPrime ? folded - kPrime : folded;
}

namespace {

uint64_t sum(uint64_t a, uint64_t b, uint64_t prime) {
    const uint64_t total = a + b;
    return total >= prime ? total - prime : total;
}

uint64_t negative(uint64_t a, uint64_t prime) { return a ? prime - a : 0; }

uint64_t raised(uint64_t base, uint64_t exponent, uint64_t prime) {
    uint64_t result = 1;
    for (; exponent; exponent /= 2) {
        if (exponent % 2) result = multiply(result, base, prime);
        base = multiply(base, base, prime);
    }
    return result;
}

uint64_t inverse(uint64_t a, uint64_t prime) { return raised(a, prime - 2, prime); }

Status reduced(const Rational& value, uint64_t prime, uint64_t& result, Budget& budget) {
    budget.spend(static_cast<int64_t>(value.numerator.size() + value.denominator.size()));
    result = value.numerator.modulo(prime);
    if (!value.is_integer()) {
        const uint64_t bottom = value.denominator.modulo(prime);
        if (bottom == 0) return Status::limit;
        result = multiply(result, inverse(bottom, prime), prime);
    }
    if (value.negative) result = negative(result, prime);
    return Status::ok;
}

Status modular_node(const Ref& ref, uint64_t prime, uint32_t set, uint64_t& value, Budget& budget) {
    if (!budget.spend(1)) return Status::limit;
    const Node& node = *ref;
    const auto child = [&](int32_t i, uint64_t& into) {
        return modular(ref.child(i), prime, set, into, budget);
    };
    uint64_t a, b;
    switch (node.kind) {
        case Kind::number:
            return reduced(ref.tree->numbers[node.value].value, prime, value, budget);
        case Kind::symbol: value = mixed(node.name + set) % prime; return Status::ok;
        case Kind::constant:
            if (!is(node, Constant::pi) && !is(node, Constant::e)) return Status::unsupported;
            value = mixed(hash_text(is(node, Constant::pi) ? "\\pi" : "\\e") + set) % prime;
            return Status::ok;
        case Kind::sum:
        case Kind::product: {
            const bool is_sum = node.kind == Kind::sum;
            value = is_sum ? 0 : 1;
            return each(ref, [&](int32_t, const Ref& r) {
                const Status s = modular(r, prime, set, a, budget);
                if (s == Status::ok)
                    value = is_sum ? sum(value, a, prime) : multiply(value, a, prime);
                return s;
            });
        }
        case Kind::negative:
        case Kind::plus_minus:
        case Kind::minus_plus: {
            if (is_open(ref)) return Status::unsupported;
            const Status s = child(0, a);
            const bool flip = is_flipped(ref);
            if (s == Status::ok) value = flip ? negative(a, prime) : a;
            return s;
        }
        case Kind::ratio:
            if (node.count != 2) return Status::unsupported;
            [[fallthrough]];
        case Kind::quotient: {
            Status s = child(0, a);
            if (s == Status::ok) s = child(1, b);
            if (s != Status::ok) return s;
            if (b == 0) return Status::undefined;
            value = multiply(a, inverse(b, prime), prime);
            budget.spend(8);
            return Status::ok;
        }
        case Kind::power: {
            Rational exponent;
            Status s = exact(ref.child(1), {}, exponent, budget);
            int64_t n;
            if (s != Status::ok) return s;
            if (!as_small_integer(exponent, n, budget)) return Status::unsupported;
            s = child(0, a);
            if (s != Status::ok) return s;
            if (a == 0 && n <= 0) return Status::undefined;
            value = raised(a, static_cast<uint64_t>(n < 0 ? -n : n), prime);
            if (n < 0) value = inverse(value, prime);
            budget.spend(8);
            return Status::ok;
        }
        case Kind::percent: {
            const Status s = child(0, a);
            if (s == Status::ok) value = multiply(a, inverse(100, prime), prime);
            return s;
        }
        case Kind::degrees: return child(0, value);
        case Kind::factorial:
        case Kind::binomial:
        case Kind::root:
        case Kind::function: {
            Rational constant;
            const Status s = exact(ref, {}, constant, budget);
            return s == Status::ok ? reduced(constant, prime, value, budget) : s;
        }
        case Kind::determinant: {
            const Ref matrix = ref.child(0);
            if (!is_square(*matrix)) return Status::unsupported;
            std::vector<uint64_t> cells(matrix->count);
            const Status s = each(matrix, [&](int32_t i, const Ref& r) {
                return modular(r, prime, set, cells[i], budget);
            });
            if (s != Status::ok) return s;
            return determinant(
                cells, first_columns(matrix->value), 0, matrix->value, uint64_t{0}, uint64_t{1},
                value,
                [&](uint64_t& total, uint64_t part, bool minus) {
                    total = sum(total, minus ? negative(part, prime) : part, prime);
                    return budget.spend(1) ? Status::ok : Status::limit;
                },
                [&](uint64_t x, uint64_t y, uint64_t& product) {
                    product = multiply(x, y, prime);
                    return budget.spend(1) ? Status::ok : Status::limit;
                });
        }
        default: return Status::unsupported;
    }
}

}  // namespace

Status modular(const Ref& ref, uint64_t prime, uint32_t set, uint64_t& value, Budget& budget) {
    const Status s = modular_node(ref, prime, set, value, budget);
    if (s == Status::ok && ref.hundredths) value = multiply(value, inverse(100, prime), prime);
    return s;
}

}  // namespace fastrl::grading
