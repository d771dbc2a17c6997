"""Log-probs and entropies against the naive definition in torch."""

import functools

import naive
import pytest
import torch

from fastrl import ops
from fastrl.errors import UsageError
from fastrl.ops import definition

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def integers(high, *shape, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def run(operation, inputs, targets, upstream=None, **settings):
    """Both outputs, then the gradient by each input of a weighted sum of both."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = operation(*leaves, targets, **settings)
    upstream = upstream or [normal(*targets.shape, seed=s, scale=1.0) for s in (2, 3)]
    weighted = [
        torch.where(u != 0, o * u, 0.0).sum() for o, u in zip(outputs, upstream, strict=True)
    ]
    sum(weighted).backward()
    return [o.detach() for o in outputs] + [x.grad for x in leaves]


def linear_naive(hidden, weight, *rest, **settings):
    bias, targets = (None, *rest)[-2:]
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return naive.logprobs_and_entropy(logits, targets, **settings)


def linear(hidden, weight, *rest, **settings):
    bias, targets = (None, *rest)[-2:]
    return ops.linear_logprobs_and_entropy(hidden, weight, targets, bias=bias, **settings)


def assert_same(got, expected, rel=1e-11):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=rel, atol=rel)


def assert_near_the_truth(got, plain, truth):
    """No further from the truth than twice plain torch, and one rounding of the result's dtype."""
    for x, torch_x, true in zip(got, plain, truth, strict=True):
        floor = torch.finfo(x.dtype).eps * float(true.abs().max())
        error, torch_error = (float((v.double() - true).abs().max()) for v in (x, torch_x))
        assert error <= 2 * torch_error + floor


SETTINGS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "temperature of 0 dimensions": {"temperature": torch.tensor(1.7)},
    "temperatures": {"temperature": torch.tensor([[0.5, 1.0, 2.0], [0.1, 1.5, 7.0]])},
    "softcap": {"softcap": 4.0},
    "valid_vocab": {"valid_vocab": 100},
    "mask": {"mask": torch.tensor([[True, False, True], [False, True, True]])},
    "all": {
        "temperature": torch.tensor([[0.5, 1.0, 2.0], [0.3, 1.5, 7.0]]),
        "softcap": 5.0,
        "valid_vocab": 101,
        "mask": torch.tensor([[True, True, False], [True, False, True]]),
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_against_the_naive_definition(settings):
    logits, targets = normal(2, 3, 123), integers(100, 2, 3)
    got = run(ops.logprobs_and_entropy, [logits], targets, **settings)
    assert_same(got, run(naive.logprobs_and_entropy, [logits], targets, **settings))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_hidden_states_against_the_naive_definition(settings, bias):
    settings = {**settings, "logit_scale": 0.6}
    inputs = [normal(2, 3, 16, scale=1.0), normal(123, 16, seed=5), normal(123, seed=6)]
    inputs = inputs if bias else inputs[:2]
    targets = integers(100, 2, 3)
    assert_same(
        run(linear, inputs, targets, **settings), run(linear_naive, inputs, targets, **settings)
    )


@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("width", [1, 2, 1000])
def test_widths_and_leading_shapes(width, shape):
    logits, targets = normal(*shape, width), integers(width, *shape).int()
    got = run(ops.logprobs_and_entropy, [logits], targets)
    assert_same(got, run(naive.logprobs_and_entropy, [logits], targets))
    assert got[0].shape == got[1].shape == shape
    hidden, weight = normal(*shape, 4, scale=1.0), normal(width, 4)
    got = run(linear, [hidden, weight], targets)
    assert_same(got, run(linear_naive, [hidden, weight], targets))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 123, 1000])
def test_low_precision_is_as_near_the_truth_as_torch(dtype, width):
    """Plain torch here widens its input to fp32, as the operations do."""
    targets = integers(width, 64)
    logits = normal(64, width, dtype=dtype)

    def plain(x, *rest, **settings):
        return naive.logprobs_and_entropy(x.float(), *rest, **settings)

    for settings in ({}, {"temperature": 0.6, "softcap": 8.0}):
        got = run(ops.logprobs_and_entropy, [logits], targets, **settings)
        assert [x.dtype for x in got] == [torch.float32, torch.float32, dtype]
        truth = run(naive.logprobs_and_entropy, [logits.double()], targets, **settings)
        assert_near_the_truth(got, run(plain, [logits], targets, **settings), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_low_precision_hidden_states_are_as_near_the_truth_as_torch(dtype):
    targets = integers(123, 64)
    inputs = [
        normal(64, 32, scale=0.5, dtype=dtype),
        normal(123, 32, seed=5, scale=0.5, dtype=dtype),
    ]
    inputs.append(normal(123, seed=6, dtype=dtype))

    def plain(*inputs, **settings):
        *floats, targets = (x.float() if x.is_floating_point() else x for x in inputs)
        return linear_naive(*floats, targets, **settings)

    got = run(linear, inputs, targets, temperature=0.6)
    assert [x.dtype for x in got] == [torch.float32, torch.float32, dtype, dtype, dtype]
    truth = run(linear_naive, [x.double() for x in inputs], targets, temperature=0.6)
    assert_near_the_truth(got, run(plain, inputs, targets, temperature=0.6), truth)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_the_padded_tail_takes_no_part(poison):
    logits, targets = normal(4, 130), integers(123, 4)
    expected = run(naive.logprobs_and_entropy, [logits[:, :123]], targets)
    logits[:, 123:] = poison
    *outputs, gradient = run(ops.logprobs_and_entropy, [logits], targets, valid_vocab=123)
    assert_same([*outputs, gradient[:, :123]], expected)
    assert not gradient[:, 123:].any()

    hidden, weight, bias = normal(4, 8, scale=1.0), normal(130, 8), normal(130)
    expected = run(linear_naive, [hidden, weight[:123], bias[:123]], targets)
    weight[123:] = bias[123:] = poison
    *got, by_weight, by_bias = run(linear, [hidden, weight, bias], targets, valid_vocab=123)
    assert_same([*got, by_weight[:123], by_bias[:123]], expected)
    assert not by_weight[123:].any() and not by_bias[123:].any()


@pytest.mark.parametrize("valid", [122, 123, 124])
def test_the_last_valid_column_counts(valid):
    logits = torch.zeros(1, 130, dtype=torch.float64)
    logits[0, valid - 1] = 5.0
    logprobs, entropy = ops.logprobs_and_entropy(
        logits, torch.tensor([valid - 1]), valid_vocab=valid
    )
    total = valid - 1 + torch.tensor(5.0).double().exp()
    assert float(logprobs) == pytest.approx(float(5 - total.log()), rel=1e-12)
    assert float(entropy) == pytest.approx(
        float(total.log() - 5 * (5 - total.log()).exp()), rel=1e-9
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_masked_rows_are_never_read(poison):
    mask = torch.tensor([True, False, False, True, True])
    logits, targets = normal(5, 123), integers(123, 5)
    temperature = normal(5, scale=0.2).abs() + 0.5
    expected = run(
        naive.logprobs_and_entropy, [logits[mask]], targets[mask],
        [normal(5, seed=s, scale=1.0)[mask] for s in (2, 3)], temperature=temperature[mask],
    )  # fmt: skip
    logits[~mask], temperature[~mask] = poison, poison
    targets[~mask] = -100
    upstream = [torch.where(mask, normal(5, seed=s, scale=1.0), 0.0) for s in (2, 3)]
    got = run(
        ops.logprobs_and_entropy, [logits], targets, upstream, mask=mask, temperature=temperature
    )
    assert_same([x[mask] for x in got], expected)
    assert not any(x[~mask].any() for x in got)

    hidden, weight = normal(5, 8, scale=1.0), normal(123, 8)
    hidden[~mask] = poison
    outputs_and_hidden = run(linear, [hidden, weight], targets, upstream, mask=mask)
    by_weight = outputs_and_hidden.pop()
    assert not any(x[~mask].any() for x in outputs_and_hidden)
    alone = run(linear, [hidden[mask], weight], targets[mask], [u[mask] for u in upstream])
    assert_same([*(x[mask] for x in outputs_and_hidden), by_weight], alone)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_shift_of_all_logits_changes_nothing(shift):
    # multiples of 1/64 below 16 stay exact in fp32 beside 1e4
    logits, targets = (normal(6, 123) * 64).round().div(64).float(), integers(123, 6)
    got = run(ops.logprobs_and_entropy, [logits + shift], targets)
    for x, y in zip(got, run(ops.logprobs_and_entropy, [logits], targets), strict=True):
        assert torch.equal(x, y)
    truth = run(naive.logprobs_and_entropy, [logits.double()], targets)
    plain = run(naive.logprobs_and_entropy, [logits], targets)
    assert_near_the_truth(got, plain, truth)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_impossible_tokens(dtype, size):
    """-inf logits add nothing to the entropy or its gradient, however large the latter."""
    logits, targets = normal(4, 123, dtype=dtype), integers(123, 4)
    logits[:3, :64] = -float("inf")
    logits[3, 5:] = -float("inf")
    targets[0], targets[1:] = 3, torch.tensor([70, 122, 4])
    upstream = [size * normal(4, seed=s, scale=1.0) for s in (2, 3)]
    upstream[0][0] = 0.0
    got = run(ops.logprobs_and_entropy, [logits], targets, upstream)
    truth = run(naive.logprobs_and_entropy, [logits.double()], targets, upstream)
    assert got[0][0] == -float("inf") and torch.isfinite(got[0][1:]).all()
    assert not got[2][logits.isneginf()].any()
    got[0], truth[0] = got[0][1:], truth[0][1:]
    if dtype == torch.float64:
        assert_same(got, truth)
    else:
        plain = run(naive.logprobs_and_entropy, [logits], targets, upstream)
        assert_near_the_truth(got, [plain[0][1:], *plain[1:]], truth)


def test_an_impossible_target_still_pushes_the_others_down():
    logits = normal(1, 7)
    logits[0, 2] = -float("inf")
    ones = [torch.ones(1), torch.zeros(1)]
    *_, gradient = run(ops.logprobs_and_entropy, [logits], torch.tensor([2]), ones)
    expected = torch.eye(7, dtype=torch.float64)[2] - logits.softmax(1)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("peak", [12.0, 30.0, 200.0, 1000.0])
def test_peaked_rows(peak):
    logits, targets = normal(6, 123, scale=0.5, dtype=torch.float32), integers(123, 6)
    logits[torch.arange(3), targets[:3]] += peak
    logits[3:, 7] += peak
    got = run(ops.logprobs_and_entropy, [logits], targets)
    truth = run(naive.logprobs_and_entropy, [logits.double()], targets)
    assert_near_the_truth(got, run(naive.logprobs_and_entropy, [logits], targets), truth)
    assert (got[0] <= 0).all() and (got[1] >= 0).all()


def test_the_gradient_at_a_likely_target_does_not_cancel():
    """1 - p from the log-prob: in fp32 1 - e^-6e-6 has lost all but two digits."""
    logits = torch.tensor([[12.0, 0.0]])
    only_logprobs = [torch.ones(1), torch.zeros(1)]
    logprobs, _, gradient = run(
        ops.logprobs_and_entropy, [logits], torch.tensor([0]), only_logprobs
    )
    expected = -torch.expm1(logprobs.double())
    torch.testing.assert_close(gradient[:, 0].double(), expected, rtol=1e-6, atol=0)


def test_one_column_far_above_the_rest_in_fp16():
    logits = torch.full((1, 123), -6e4, dtype=torch.float16)
    logits[0, 3] = 6e4
    logprobs, entropy, gradient = run(ops.logprobs_and_entropy, [logits], torch.tensor([3]))
    assert logprobs == 0 and entropy == 0 and not gradient.any()


def test_everything_masked():
    nan = torch.full((3, 123), float("nan"))
    mask = torch.zeros(3, dtype=torch.bool)
    got = run(ops.logprobs_and_entropy, [nan], torch.full((3,), -1), mask=mask)
    assert not any(x.any() for x in got)
    weight = normal(123, 123, dtype=torch.float32)
    got = run(linear, [nan, weight], torch.full((3,), -1), mask=mask)
    assert not any(x.any() for x in got)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)], ids=str)
def test_zero_rows(shape):
    targets = torch.zeros(shape, dtype=torch.int64)
    got = run(ops.logprobs_and_entropy, [torch.zeros(*shape, 123)], targets)
    assert [x.shape for x in got] == [shape, shape, (*shape, 123)]
    got = run(linear, [torch.zeros(*shape, 8), torch.ones(123, 8)], targets)
    assert [x.shape for x in got] == [shape, shape, (*shape, 8), (123, 8)]
    assert not got[3].any()


def test_gradcheck():
    targets, mask = integers(9, 4), torch.tensor([True, True, False, True])
    temperature = torch.tensor([0.5, 1.0, 1.0, 2.0], dtype=torch.float64)
    settings = {"temperature": temperature, "valid_vocab": 9, "softcap": 4.0, "mask": mask}

    def from_logits(x):
        return ops.logprobs_and_entropy(x, targets, **settings)

    def from_hidden(h, w, b):
        return ops.linear_logprobs_and_entropy(h, w, targets, bias=b, logit_scale=0.7, **settings)

    logits = normal(4, 11).requires_grad_()
    assert torch.autograd.gradcheck(from_logits, (logits,))
    head = normal(4, 3, scale=1.0), normal(11, 3, seed=5), normal(11, seed=6)
    assert torch.autograd.gradcheck(from_hidden, tuple(x.requires_grad_() for x in head))


@pytest.mark.parametrize("kind", ["every other row", "expanded", "narrow"])
def test_logits_that_are_not_contiguous(kind):
    base = {
        "every other row": lambda: normal(12, 123)[::2],
        "expanded": lambda: normal(1, 123).expand(6, 123),
        "narrow": lambda: normal(3, 4, 130)[:, 1:3, 2:125],
    }[kind]()
    assert not base.is_contiguous()
    targets = integers(123, *base.shape[:-1])
    leaf = base.detach().requires_grad_()
    weights = [normal(*targets.shape, seed=s, scale=1.0) for s in (2, 3)]
    outputs = ops.logprobs_and_entropy(leaf, targets)
    sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)).backward()
    expected = run(naive.logprobs_and_entropy, [base.contiguous()], targets)
    assert_same([*outputs, leaf.grad], expected)


def test_rows_beyond_32_bit_offsets():
    memory = torch.empty(2**31 + 123, dtype=torch.float16)  # touched only at both ends
    logits = memory.as_strided((2, 123), (2**31, 1))
    rows = normal(2, 123, dtype=torch.float16)
    logits.copy_(rows)
    targets = integers(123, 2)
    got = ops.logprobs_and_entropy(logits, targets)
    for x, y in zip(got, ops.logprobs_and_entropy(rows, targets), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [123, 1000])
def test_chunks_do_not_change_bits(monkeypatch, dtype, width):
    """Nor do the rows in the call, and rows without an entropy gradient beside rows with one."""
    chunked = functools.partial(ops.logprobs_and_entropy, backend="torch")
    logits, targets = normal(9, width, dtype=dtype), integers(width, 9)
    upstream = [normal(9, seed=s, scale=1.0) for s in (2, 3)]
    upstream[1][1:8:2] = 0.0
    whole = run(chunked, [logits], targets, upstream)
    for rows in (1, 2, 4):
        monkeypatch.setattr(definition, "CHUNK_BYTES", 4 * width * rows)
        got = run(chunked, [logits], targets, upstream)
        assert all(torch.equal(x, y) for x, y in zip(got, whole, strict=True))
    some = run(chunked, [logits[3:5]], targets[3:5], [u[3:5] for u in upstream])
    assert all(torch.equal(x, y[3:5]) for x, y in zip(some, whole, strict=True))
    with torch.no_grad():
        got = chunked(logits, targets)
    assert all(torch.equal(x, y) for x, y in zip(got, whole[:2], strict=True))


def test_autocast_does_not_round():
    logits, targets = normal(4, 123, dtype=torch.float32), integers(123, 4)
    head = [normal(4, 8, dtype=torch.float32), normal(123, 8, dtype=torch.float32)]
    expected = [
        *run(ops.logprobs_and_entropy, [logits], targets),
        *run(linear, head, targets),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        got = [
            *run(ops.logprobs_and_entropy, [logits], targets),
            *run(linear, head, targets),
        ]
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_inputs_are_left_alone():
    logits, targets = normal(4, 123), integers(123, 4)
    before, version = logits.clone(), logits._version
    leaf = logits.requires_grad_()
    logprobs, entropy = ops.logprobs_and_entropy(leaf, targets)
    (logprobs + entropy).sum().backward()
    assert torch.equal(leaf, before) and leaf._version == version


def test_a_second_derivative_is_refused():
    logits = normal(2, 7).requires_grad_()
    logprobs, entropy = ops.logprobs_and_entropy(logits, torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="create_graph=True asks .*leave create_graph out"):
        torch.autograd.grad((logprobs + entropy).sum(), logits, create_graph=True)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_backends_that_can_run(backend):
    logprobs, _ = ops.logprobs_and_entropy(torch.zeros(1, 4), torch.tensor([0]), backend=backend)
    assert float(logprobs) == pytest.approx(-torch.tensor(4.0).log().item(), rel=1e-6)
