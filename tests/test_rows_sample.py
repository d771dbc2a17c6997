"""A token from each row of logits, on every path: which columns are kept, and which one is drawn.

Numbers in names are those of the list of known mistakes of such kernels; see `test_rows.py`.
"""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from row_backends import INF, NAN, assert_near, normal, same_bits
from row_backends import row_path as row_path
from sampling_cases import (
    DEFAULTS,
    FILTERS,
    KEY,
    assert_frequencies,
    counters_of,
    kept_one_by_one,
    softmax,
)

from fastrl import ops
from fastrl.ops.choice import kept, uniforms
from fastrl.ops.rows import Filters, Noise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(path, logits, filters=None, counters=None, **more):
    """`ops.sample` on a path, brought to the CPU."""
    counters = counters_of(logits.shape[:-1].numel()) if counters is None else counters
    arguments = (counters.view(*logits.shape[:-1], 4), KEY)
    found = path.call("sample", logits, *arguments, **(filters or {}), **more)
    return ops.Sample(*(x.cpu() for x in vars(found).values()))


def by_formula(logits, filters, counters, dtype=torch.float64):
    """(perturbed scores of the kept, log p, log of the kept mass), in `dtype`."""
    filters = DEFAULTS | filters
    z = logits.to(dtype) / (filters["temperature"] or 1.0)
    log_p = z.log_softmax(1)
    noise = uniforms(Noise(counters, KEY), z.shape[1]).to(dtype)
    scores = log_p if filters["temperature"] == 0 else log_p - (-noise.log()).log()
    ids = [sorted(kept_one_by_one(row.tolist(), **filters)) for row in logits.double()]
    keep = torch.zeros_like(log_p, dtype=torch.bool)
    for row, some in enumerate(ids):
        keep[row, some] = True
    names = ("top_k", "top_p", "min_p")
    limited = filters["temperature"] > 0 and any(filters[n] != DEFAULTS[n] for n in names)
    mass = log_p.masked_fill(~keep, -INF).logsumexp(1) if limited else log_p[:, 0] * 0
    return scores.masked_fill(~keep, -INF), log_p, mass


def assert_right(found, logits, filters, counters):
    """The token with the largest score, but for one within 1e-4; its numbers by the error rule.

    A column at the very limit of top-p or min-p may be kept or not: masses are sums in fp32.
    """
    given, slack = DEFAULTS | filters, 2e-6
    fewer, more = (
        given | {"top_p": given["top_p"] * (1 - s), "min_p": given["min_p"] * (1 + s)}
        if given["top_p"] < 1 or given["min_p"] > 0
        else given
        for s in (slack, -slack)
    )
    best, log_p, least = by_formula(logits, fewer, counters)
    scores, _, most = by_formula(logits, more, counters)
    _, plain_log_p, plain = by_formula(logits, given, counters, torch.float32)
    index = found.tokens[:, None]
    chosen = scores.gather(1, index)[:, 0]
    assert (chosen >= best.amax(1) - 1e-4).all(), "a token that is not the best, or not kept"
    # of the mass, not of its log, which may be any small number; a sum in an order of its own
    nearest = found.log_kept_mass.double().clamp(least, most)
    assert_near(
        [found.logprobs, found.log_kept_mass.exp()],
        [plain_log_p.gather(1, index)[:, 0], plain.double().clamp(least, most).exp()],
        [log_p.gather(1, index)[:, 0], nearest.exp()],
        ulps=8,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FILTERS)
def test_the_token_is_the_gumbel_maximum_of_the_kept(row_path, name, dtype):
    rows = 3 if row_path.interpreted else 48
    logits, counters = normal(rows, 1100, dtype=dtype), counters_of(rows)
    found = drawn(row_path, logits, FILTERS[name], counters)
    assert_right(found, logits, FILTERS[name], counters)


@pytest.mark.parametrize(
    "width", [1, 2, 3, 123, 1000, 1023, 1024, 1025, 8193, 32000, 49152, 128256, 151936]
)
@pytest.mark.parametrize("name", ["plain", "top-k", "top-p", "all"])
def test_1_widths(row_path, name, width):
    rows = 2 if row_path.interpreted or width > 10_000 else 12
    if row_path.interpreted and width > 40_000:
        width = 40_001  # minutes there; still several blocks of every size
    logits, counters = normal(rows, width, scale=2.0), counters_of(rows, seed=width)
    found = drawn(row_path, logits, FILTERS[name], counters)
    assert_right(found, logits, FILTERS[name], counters)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_noise_of_every_counter_and_column(row_path, name):
    """Equal logits: the largest uniform decides alone."""
    rows = 20 if row_path.interpreted else 300
    counters = counters_of(rows, seed=3)
    found = drawn(row_path, torch.zeros(rows, 301), counters=counters)
    expected = uniforms(Noise(counters, KEY), 301).argmax(1)
    assert torch.equal(found.tokens, expected)


def test_the_noise_is_right_to_a_ten_thousandth(row_path):
    """Logits that cancel the noise, but for 1e-4 in favour of one column."""
    rows, vocab = (6, 40) if row_path.interpreted else (400, 40)
    counters, chosen = counters_of(rows, seed=7), torch.arange(rows) % vocab
    noise = -(-uniforms(Noise(counters, KEY), vocab).double().log()).log()
    for logits in (-noise, torch.where(torch.arange(vocab) % 2 == 0, -noise, -noise - 3.0)):
        chosen = chosen // 2 * 2
        best = logits.clone()
        best[range(rows), chosen] += 1e-4
        found = drawn(row_path, best.float(), counters=counters)
        assert torch.equal(found.tokens, chosen)


@functools.cache
def largest_uniforms():
    """(counters, largest uniform, its first column, whether another has it) of 20,000 rows."""
    counters = counters_of(20_000, seed=5)
    found = []
    for part in counters.split(1000):
        noise = uniforms(Noise(part, KEY), 4099)
        values, where = noise.max(1)
        found.append((values, where, (noise == values[:, None]).sum(1) > 1))
    return counters, *(torch.cat(parts) for parts in zip(*found, strict=True))


def test_of_equal_scores_the_first_column_wins(row_path):
    counters, _, columns, twice = largest_uniforms()
    assert 3 <= twice.sum() <= 40
    index = twice.nonzero()[:3, 0]
    found = drawn(row_path, torch.zeros(3, 4099), counters=counters[index])
    assert torch.equal(found.tokens, columns[index])


def test_a_column_far_behind_wins_by_the_largest_noise(row_path):
    """Nothing that can still win is passed over."""
    vocab, rows = 4099, 4
    counters, best, columns, _ = largest_uniforms()
    index = best.topk(rows).indices
    assert (best[index] > 1 - 3e-7).all()
    # the column just wins, or just does not, against the likeliest one, which comes first
    counters, columns = counters[index], columns[index]
    noise = -(-uniforms(Noise(counters, KEY), vocab).double().log()).log()
    for margin in (1e-4, -1e-4):
        logits = torch.full((rows, vocab), -50.0)
        logits[:, 0] = 0.0
        gap = noise[range(rows), columns] - noise[:, 0]
        logits[range(rows), columns] = (margin - gap).float()
        found = drawn(row_path, logits, counters=counters)
        assert found.tokens.tolist() == (columns.tolist() if margin > 0 else [0] * rows)


@pytest.mark.parametrize("name", FILTERS)
def test_frequencies(row_path, name):
    logits = (1.1, -0.4, 0.9, 2.0, -3.0, 0.1, 1.6)
    draws = 20 if row_path.interpreted else 20_000
    filters = DEFAULTS | FILTERS[name]
    counters = torch.zeros(draws, 4, dtype=torch.int64)
    counters[:, 0] = torch.arange(draws)
    tokens = drawn(row_path, torch.tensor([logits] * draws), filters, counters).tokens.numpy()
    assert_frequencies(tokens, logits, filters)


@pytest.mark.parametrize("name", FILTERS)
def test_log_probs_have_the_bits_of_the_differentiable_operation(row_path, name):
    rows = 3 if row_path.interpreted else 20
    logits = normal(rows, 1200)
    t = torch.full((rows,), FILTERS[name].get("temperature", 1.0) or 1.0)
    found = drawn(row_path, logits, FILTERS[name])
    outputs = row_path.call("logprobs_and_entropy", logits, found.tokens, temperature=t)
    assert torch.equal(found.logprobs, outputs[0].cpu())


def test_a_setting_a_row(row_path):
    every = [DEFAULTS | filters for filters in FILTERS.values()]
    rows = len(every) if row_path.interpreted else 5 * len(every)
    logits, counters = normal(rows, 90), counters_of(rows)
    each = {
        name: torch.tensor([every[r % len(every)][name] for r in range(rows)]) for name in DEFAULTS
    }
    found = drawn(row_path, logits, each, counters)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = drawn(row_path, logits[one], every[row % len(every)], counters[one])
        for got, expected in zip(vars(found).values(), vars(alone).values(), strict=True):
            assert torch.equal(got[one], expected), f"row {row}"


def test_equal_logits_are_taken_in_the_order_of_their_ids(row_path):
    rows = 16 if row_path.interpreted else 400
    counters = counters_of(rows)

    def tokens(logits, **filters):
        found = drawn(row_path, torch.tensor([logits] * rows), filters, counters)
        return set(found.tokens.tolist()), float(found.log_kept_mass[0].exp())

    assert tokens([0.0, 1.0, 1.0, 1.0, 0.0], top_k=2)[0] == {1, 2}
    assert tokens([0.0, 0.0, 1.0, 0.0, 0.0], top_k=3)[0] == {0, 1, 2}
    assert tokens([1.0, 1.0, 1.0, 1.0], top_p=0.5) == ({0, 1}, pytest.approx(0.5))
    assert tokens([1.0, 1.0, 1.0, 1.0], top_p=0.51) == ({0, 1, 2}, pytest.approx(0.75))
    assert tokens([1.0] * 24, top_p=0.5)[1] == pytest.approx(0.5)
    assert tokens([1.0, 1.0, 0.9, 1.0], min_p=1.0)[0] == {0, 1, 3}
    assert tokens([0.0, -0.0, 0.0, -0.0], top_k=2)[0] == {0, 1}
    # two limits among the same equals, and one above those of the other
    assert tokens([1.0] * 10, top_k=8, top_p=0.5) == ({0, 1, 2, 3}, pytest.approx(0.4))
    assert tokens([1.0, 1.0, 1.0, 0.0, 0.0], top_k=4, min_p=1.0)[0] == {0, 1, 2}
    # half of three thousand equals, over several blocks
    many = torch.full((2, 5000), -1.0)
    many[:, 2000:] = 1.0
    found = drawn(row_path, many, {"top_k": 1500}, counters[:2])
    expected = math.log(1500 / (3000 + 2000 * math.exp(-2)))
    assert found.log_kept_mass.tolist() == pytest.approx([expected] * 2, abs=1e-6)
    noise = uniforms(Noise(counters[:2], KEY), 5000)[:, 2000:3500]
    assert torch.equal(found.tokens, noise.argmax(1) + 2000)


def test_logits_that_lie_on_what_they_are_compared_with(row_path):
    """C++ looks first at shares 1/25, 4/25, 9/25 and 16/25 of 64 powers of 2 below the largest."""
    temperature = 1 / math.log(2)
    near = [-64 * share / 25 for share in (1, 4, 9, 16)]
    steps = torch.arange(-30, 31)
    dense = [(torch.tensor(z).view(torch.int32) + steps).int().view(torch.float32) for z in near]
    logits = torch.cat([torch.zeros(1), *dense, -45 - 10 * normal(900, scale=1.0).abs()])
    logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))][None]
    if not row_path.interpreted:  # the very last of the kept can be drawn
        many, counters = logits.expand(150, -1), counters_of(150)
        for top_k in (35, 47):
            filters = {"top_k": top_k, "temperature": temperature}
            assert_right(drawn(row_path, many, filters, counters), many, filters, counters)
    z = (logits.double() / float(np.float32(temperature))).sort(descending=True).values[0]
    for top_k in range(2, 64, 3):
        found = drawn(row_path, logits, {"top_k": top_k, "temperature": temperature})
        expected = z[:top_k].logsumexp(0) - z.logsumexp(0)
        assert float(found.log_kept_mass) == pytest.approx(float(expected), abs=2e-6)


def test_the_filters_act_in_order(row_path):
    def mass(probabilities, **filters):
        logits = torch.tensor([np.log(probabilities).tolist()])
        return round(float(drawn(row_path, logits, filters).log_kept_mass.exp()), 4)

    # top-p first would take 0.4 and 0.3; of what top-k leaves, 0.4 is already more than half
    assert mass([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == 0.4
    assert mass([0.4, 0.3, 0.2, 0.1], top_p=0.5) == 0.7
    # min-p first would leave 0.5 and 0.2, of which 0.5 is more than 0.65
    assert mass([0.5, 0.2, 0.15, 0.1, 0.05], top_p=0.65, min_p=0.35) == 0.7
    # at T = 2 the three probabilities are 0.42, 0.33 and 0.26; at T = 1, 0.7 is reached sooner
    assert mass([0.5, 0.3, 0.2], temperature=2.0, top_p=0.7) == round(
        float(sum(softmax(np.log([0.5, 0.3, 0.2]), 2.0)[:2])), 4
    )
    assert mass([0.5, 0.3, 0.2], min_p=0.61) == 0.5


ALMOST_ONE = 1 - 2**-24  # the fp32 below 1
NEAR_THE_ENDS = {
    "flat": (lambda: normal(60, 1000, scale=0.1), (ALMOST_ONE, 0.999999, 1e-30)),
    "equals": (lambda: torch.zeros(1, 249), (ALMOST_ONE, 1e-20, 1e-45)),
    "one ahead": (lambda: torch.full((1, 1000), -1.3).index_fill_(1, torch.tensor(0), 0.0),
                  (0.9999999, 0.999998)),
    "steep": (lambda: normal(30, 9000, scale=8.0), (ALMOST_ONE,)),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_THE_ENDS)
def test_a_top_p_near_0_or_1_leaves_a_distribution(row_path, name):
    make, values = NEAR_THE_ENDS[name]
    logits = make()[: 3 if row_path.interpreted else None]
    for top_p in values:
        for temperature in (1.0, 0.0):
            filters = {"top_p": top_p, "temperature": temperature}
            found = drawn(row_path, logits, filters)
            assert (found.tokens >= 0).all() and found.logprobs.isfinite().all()
            assert (found.log_kept_mass <= 0).all()
            if temperature == 0 or top_p < 1e-5:
                assert torch.equal(found.tokens, logits.argmax(1))
            else:
                assert (found.log_kept_mass >= math.log(top_p) - 2e-6).all()


def test_extreme_logits_and_temperatures(row_path):
    rows = 8 if row_path.interpreted else 200
    counters = counters_of(rows)
    noise = uniforms(Noise(counters, KEY), 3)
    for logits, temperature in (([1e8, 1e8, 0.0], 1.0), ([20.0, 20.0, -20.0], 1e-30)):
        found = drawn(row_path, torch.tensor([logits] * rows), {"temperature": temperature},
                      counters)  # fmt: skip
        assert torch.equal(found.tokens, noise[:, :2].argmax(1))
        assert found.logprobs.tolist() == pytest.approx([math.log(0.5)] * rows)
    found = drawn(row_path, torch.tensor([[0.0, -3e38, 3e38]] * rows), {"temperature": 1e30},
                  counters)  # fmt: skip
    assert set(found.tokens.tolist()) == {2}
    found = drawn(row_path, torch.tensor([[0.0, -5.0, 5.0]] * rows), {"temperature": 1e30},
                  counters)  # fmt: skip
    assert torch.equal(found.tokens, noise.argmax(1))


def test_no_limit_keeps_every_column():
    logits = normal(3, 50_000, scale=8.0)
    filters = Filters(torch.zeros(3, dtype=torch.int32), torch.ones(3), torch.zeros(3), none=False)
    assert kept(logits, filters).all()


def test_the_definition_sums_in_fp64():
    logits = normal(4, 150_000, scale=0.3)
    falling = logits.double().sort(descending=True).values.exp().cumsum(1)
    for top_p in (0.5, 0.9, 0.999):
        settings = (torch.zeros(4, dtype=torch.int32), torch.full((4,), top_p), torch.zeros(4))
        found = kept(logits, Filters(*settings, none=False)).sum(1)
        limit = float(np.float32(top_p)) * falling[:, -1:]
        assert (found - (falling < limit).sum(1) - 1).abs().max() <= 1


def test_top_p_of_many_equals(row_path):
    vocab = 3001 if row_path.interpreted else 30_011
    for top_p in (0.5, 0.9):
        found = drawn(row_path, torch.zeros(1, vocab), {"top_p": top_p})
        share = math.ceil(float(np.float32(top_p)) * vocab) / vocab
        assert float(found.log_kept_mass.exp()) == pytest.approx(share, abs=0.5 / vocab)


def test_top_p_never_adds_to_top_k(row_path):
    rows = 4 if row_path.interpreted else 40
    logits, counters = normal(rows, 3000, scale=0.5), counters_of(rows)
    for top_k in (50, 700):
        alone = drawn(row_path, logits, {"top_k": top_k}, counters).log_kept_mass
        both = drawn(row_path, logits, {"top_k": top_k, "top_p": ALMOST_ONE}, counters)
        assert (both.log_kept_mass - alone).max() < 1e-6
        assert (alone - both.log_kept_mass).max() < 2 / top_k  # one column more or less


def test_limits_that_are_none(row_path):
    logits = normal(2, 3000, scale=8.0)
    for filters in ({"top_k": 2**32 + 1}, {"top_k": 3000}, {"top_p": 1.0}, {"min_p": 0.0}):
        assert drawn(row_path, logits, filters).log_kept_mass.tolist() == [0.0, 0.0]
        each = {name: torch.tensor([value] * 2) for name, value in filters.items()}
        assert drawn(row_path, logits, each).log_kept_mass.tolist() == [0.0, 0.0]
    one = drawn(row_path, logits, {"top_p": 1e-50})
    assert torch.equal(one.tokens, logits.argmax(1))


@pytest.mark.parametrize("name", ["plain", "all", "greedy"])
def test_5_what_must_not_be_read_and_rows_without_a_distribution(row_path, name):
    logits = normal(6, 1100)
    logits[:, 1090:] = NAN
    clean = logits.clone()
    logits[1, 70], logits[2, 1030], logits[3] = NAN, INF, -INF
    before = logits.clone()
    found = drawn(row_path, logits, FILTERS[name], valid_vocab=1090)
    expected = drawn(row_path, clean, FILTERS[name], valid_vocab=1090)
    broken = torch.tensor([False, True, True, True, False, False])
    assert found.tokens[broken].tolist() == [-1] * 3
    assert found.logprobs[broken].isnan().all() and found.log_kept_mass[broken].isnan().all()
    for got, right in zip(vars(found).values(), vars(expected).values(), strict=True):
        assert torch.equal(got[~broken], right[~broken])
    assert (found.tokens < 1090).all()
    assert same_bits([logits], [before])


def test_4_columns_at_minus_infinity_are_never_drawn(row_path):
    rows = 12 if row_path.interpreted else 40
    logits = torch.full((rows, 1300), -INF)
    logits[:, [3, 1250]] = torch.tensor([0.0, 0.5])
    for filters in ({}, {"top_k": 5}, {"top_p": 0.99999}, {"min_p": 1e-30}):
        found = drawn(row_path, logits, filters)
        assert set(found.tokens.tolist()) == {3, 1250}
        assert found.log_kept_mass.abs().max() < 1e-6


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_2_shifted_logits(row_path, shift):
    rows = 4
    logits = (normal(rows, 700) * 64).round() / 64  # exact after the shift too
    for filters in (FILTERS["plain"], FILTERS["all"]):
        found = drawn(row_path, logits, filters)
        moved = drawn(row_path, logits + shift, filters)
        assert torch.equal(found.tokens, moved.tokens)
        torch.testing.assert_close(found.logprobs, moved.logprobs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_softcap(row_path, softcap):
    logits, counters = normal(4, 700, scale=6.0), counters_of(4)
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    for name in ("plain", "top-p", "all"):
        found = drawn(row_path, logits, FILTERS[name], counters, softcap=softcap)
        assert_right(found, capped, FILTERS[name], counters)


@pytest.mark.parametrize("width", [2100, 50_000])
@pytest.mark.parametrize("name", ["plain", "top-k", "top-p", "all"])
def test_18_the_number_of_rows_and_of_threads_changes_no_bit(row_path, name, width):
    if row_path.interpreted and width > 2100:
        pytest.skip("minutes in the interpreter, where a row is one program anyway")
    rows = 3 if row_path.interpreted else 40 if width < 5000 else 5
    logits, counters = normal(rows, width), counters_of(rows)
    found = vars(drawn(row_path, logits, FILTERS[name], counters))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert same_bits(vars(drawn(row_path, logits, FILTERS[name], counters)).values(),
                         found.values())  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = vars(drawn(row_path, logits[one], FILTERS[name], counters[one]))
        assert same_bits(alone.values(), [x[one] for x in found.values()])


def test_8_rows_far_apart(row_path):
    """Two rows whose distance in elements passes 2^31, in memory that is never touched."""
    stride = 2**31 + 8
    memory = torch.empty(stride + 64, dtype=torch.bfloat16, device=row_path.device)
    logits = memory.as_strided((2, 64), (stride, 1))
    logits.copy_(normal(2, 64))
    counters = counters_of(2)
    found = drawn(row_path, logits, FILTERS["all"], counters)
    assert_right(found, logits.cpu().contiguous(), FILTERS["all"], counters)


def test_leading_shapes_and_no_rows(row_path):
    logits, counters = normal(6, 90), counters_of(6)
    flat = drawn(row_path, logits, FILTERS["all"], counters)
    shaped = drawn(row_path, logits.view(2, 3, 90), FILTERS["all"], counters)
    assert shaped.tokens.shape == (2, 3) and torch.equal(shaped.tokens.view(-1), flat.tokens)
    empty = drawn(row_path, logits[:0], counters=counters[:0])
    assert empty.tokens.shape == empty.logprobs.shape == (0,)


def test_9_compiled_without_a_graph_break(row_path):
    if row_path.backend == "triton" and row_path.interpreted:
        pytest.skip("the compiler cannot trace the interpreter's kernels")
    logits, counters = row_path.place(normal(5, 300)), row_path.place(counters_of(5))

    each = row_path.place(torch.full((5,), 0.7))
    for temperature in (0.7, each, each[0]):

        def run(logits, counters, temperature=temperature):
            settings = {"temperature": temperature, "top_k": 20, "backend": row_path.backend}
            return ops.sample(logits * 2, counters, KEY, **settings)

        expected = run(logits, counters)
        torch._dynamo.reset()
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(logits, counters)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.log_kept_mass, expected.log_kept_mass)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(-12, 12).map(lambda x: x / 4), min_size=1, max_size=9),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 10),
    st.floats(0.01, 1),
    st.just(0.0) | st.floats(0, 1),
)
def test_the_defined_set_is_the_documented_one(logits, temperature, top_k, top_p, min_p):
    p = np.sort(softmax(logits, temperature))[::-1]
    reached = (p[: top_k or None] / p[: top_k or None].sum()).cumsum()
    assume(top_p == 1 or abs(reached - top_p).min() > 1e-9)
    assume(abs(p / p[0] - min_p).min() > 1e-9 or min_p == 1)
    scaled = torch.tensor([logits], dtype=torch.float64) / temperature
    numbers = (torch.tensor([value]) for value in (top_k, top_p, min_p))
    found = set(kept(scaled, Filters(*numbers, none=False))[0].nonzero()[:, 0].tolist())
    expected = kept_one_by_one(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    assert found == expected and int(np.argmax(logits)) in found
