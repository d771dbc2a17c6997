"""The head of a model on every path: log-probs, entropies and losses straight from hidden states.

Of the list in `test_rows.py`: 5 what must not be read, 12 fp32 between chunks, 14 the entropy's
gradient, 17 everything masked, 18 the same bits across runs of one shape.
"""

import naive
import pytest
import torch
from instruction_sets import instruction_set
from row_backends import NAN, Path, assert_near, integers, normal, same_bits
from row_backends import row_path as row_path

from fastrl.losses import LossSpec, Rows
from fastrl.ops import head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALVES, F64 = DTYPES[1:], torch.float64
BF16_SETS = ("amx", "avx512_bf16")
N, D, V = 21, 16, 123
SETTINGS = {
    "nothing": {},
    "positive scale": {"logit_scale": 1.7, "temperature": 0.6},
    "negative scale": {"logit_scale": -0.8},
    "all": {
        "logit_scale": 0.7,
        "softcap": 5.0,
        "temperature": torch.tensor([0.5, 1.0, 2.0]).repeat(N // 3),
        "valid_vocab": 117,
        "mask": torch.arange(N) % 4 != 1,
    },
}
SPECS = {
    "reinforce": LossSpec(),
    "clip": LossSpec(loss="clip", dual_clip=1.5, entropy_coef=0.3),
    "cispo": LossSpec(loss="cispo", sampler_correction="token_truncate"),
}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """Chunks of five rows."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 4 * V * 5)
    monkeypatch.setattr(head, "GPU_CHUNK_BYTES", 6 * V * 5)
    monkeypatch.setattr(head, "CHUNK_ROWS", 1)


def head_case(dtype=torch.float32, bias=True, rows=N, **settings):
    """Hidden states, weight and bias; targets."""
    inputs = [
        normal(rows, D, scale=0.7, dtype=dtype),
        normal(V, D, seed=5, scale=0.7, dtype=dtype),
        normal(V, seed=6, scale=1.0, dtype=dtype),
    ]
    return inputs[: 3 if bias else 2], integers(settings.get("valid_vocab", V), rows)


def loss_vectors(rows=N):
    vectors = {
        "advantages": normal(rows, seed=4, scale=1.0),
        "old_logprobs": normal(rows, seed=7, scale=0.4) - 5.0,
        "sampler_logprobs": normal(rows, seed=8, scale=0.4) - 5.0,
        "row_weights": normal(rows, seed=9, scale=1.0).abs(),
    }
    vectors["advantages"][::7] = 0.0
    return vectors


def placed(path, inputs):
    return [path.place(v.clone()).requires_grad_() for v in inputs]


def run(path, inputs, targets, upstream, **settings):
    """Log-probs and entropies, then the gradients of the inputs."""
    leaves = placed(path, inputs)
    more = {"bias": leaves[2]} if len(leaves) > 2 else {}
    outputs = path.call("linear_logprobs_and_entropy", *leaves[:2], targets, **more, **settings)
    torch.autograd.backward(outputs, [path.place(u) for u in upstream])
    return [v.detach().cpu() for v in outputs] + [v.grad.cpu() for v in leaves]


def run_loss(path, inputs, targets, vectors, spec, **settings):
    """The loss and log-probs, then the gradients of the inputs."""
    leaves = placed(path, inputs)
    more = {"bias": leaves[2]} if len(leaves) > 2 else {}
    out = path.call(
        "linear_policy_loss", *leaves[:2], targets, spec=spec, **vectors, **more, **settings
    )
    out.loss_sum.backward()
    return [v.detach().cpu() for v in (out.loss_sum, out.logprobs)] + [v.grad.cpu() for v in leaves]


def by_formula(inputs, targets, dtype, reduce, logit_scale=1.0, **settings):
    """Values and gradients of the whole logits, naively, computed in `dtype`."""
    leaves = [v.detach().to(dtype).requires_grad_() for v in inputs]
    logits = torch.nn.functional.linear(leaves[0], leaves[1], *leaves[2:])
    if isinstance(settings.get("temperature"), torch.Tensor):
        settings["temperature"] = settings["temperature"].to(dtype)
    outputs = naive.logprobs_and_entropy(logits, targets, logit_scale=logit_scale, **settings)
    loss, values = reduce(*outputs)
    loss.backward()
    return [v.detach() for v in values] + [v.grad for v in leaves]


def assert_near_the_formula(got, inputs, targets, reduce, **settings):
    dtypes = (torch.float64, torch.float32)
    truth, plain = (by_formula(inputs, targets, d, reduce, **settings) for d in dtypes)
    assert_near(got, plain[: len(got)], truth[: len(got)])


def weighted(upstream):
    def reduce(logprobs, entropy):
        pairs = zip((logprobs, entropy), upstream, strict=True)
        return sum((o * u.to(o.dtype)).sum() for o, u in pairs), (logprobs, entropy)

    return reduce


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_as_near_the_truth_as_torch(row_path, settings, dtype):
    inputs, targets = head_case(dtype, **settings)
    upstream = [normal(N, seed=s, scale=1.0) for s in (2, 3)]
    got = run(row_path, inputs, targets, upstream, **settings)
    assert [v.dtype for v in got] == [torch.float32] * 2 + [dtype] * 3
    assert_near_the_formula(got, inputs, targets, weighted(upstream), **settings)


@pytest.fixture
def half_products(monkeypatch):
    """Products as on a GPU, wherever the test runs."""
    monkeypatch.setattr(head, "keeps_half_precision", lambda x: x.dtype in HALVES)

    def dense(x, weight, *, out, backend):
        torch.mm(x.to(out.dtype), weight.T.to(out.dtype), out=out)

    monkeypatch.setattr(head, "dense", dense)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_products_in_half_precision(row_path, half_products, settings, dtype):
    """fp32 logits, and a gradient that is rounded once, for the products that take it."""
    inputs, targets = head_case(dtype, **settings)
    upstream = [normal(N, seed=s, scale=1.0) for s in (2, 3)]
    logprobs, entropy, *gradients = run(row_path, inputs, targets, upstream, **settings)
    assert [v.dtype for v in gradients] == [dtype] * 3
    reduce = weighted(upstream)
    assert_near_the_formula([logprobs, entropy], inputs, targets, reduce, **settings)
    truth, plain = (by_formula(inputs, targets, d, reduce, **settings) for d in (F64, dtype))
    assert_near(gradients, plain[2:], truth[2:])


@pytest.mark.parametrize("joined", [1 << 28, 2 * V * 12], ids=["whole", "joined"])
@pytest.mark.parametrize("name", BF16_SETS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_cpu_multiplies_bf16_where_it_has_instructions(name, settings, joined, monkeypatch):
    """The weight's gradient in one product, or in several of the rows of two chunks."""
    monkeypatch.setattr(head, "JOINED_BYTES", joined)
    inputs, targets = head_case(torch.bfloat16, **settings)
    upstream = [normal(N, seed=s, scale=1.0) for s in (2, 3)]
    with instruction_set(name):
        assert head.keeps_half_precision(inputs[1])
        logprobs, entropy, *gradients = run(
            Path("cpu-" + name), inputs, targets, upstream, **settings
        )
    reduce = weighted(upstream)
    assert_near_the_formula([logprobs, entropy], inputs, targets, reduce, **settings)
    truth, plain = (
        by_formula(inputs, targets, d, reduce, **settings) for d in (F64, torch.bfloat16)
    )
    assert_near(gradients, plain[2:], truth[2:])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_losses_in_half_precision(row_path, half_products, spec):
    inputs, targets = head_case(torch.bfloat16)
    vectors = loss_vectors()

    def reduce(logprobs, entropy):
        rows = Rows(
            mask=torch.ones(N, dtype=torch.bool),
            **{k: v.to(logprobs.dtype) for k, v in vectors.items()},
        )
        loss = naive.policy_loss(logprobs, entropy, spec, rows)
        return loss, (loss, logprobs)

    loss, logprobs, *gradients = run_loss(row_path, inputs, targets, vectors, spec)
    kinds = (F64, torch.float32, torch.bfloat16)
    truth, single, plain = (by_formula(inputs, targets, d, reduce) for d in kinds)
    assert_near([loss, logprobs], single[:2], truth[:2], ulps=4)
    assert_near(gradients, plain[2:], truth[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_losses_are_as_near_the_truth_as_torch(row_path, spec, settings, dtype):
    inputs, targets = head_case(dtype, **settings)
    vectors = loss_vectors()
    mask = settings.get("mask", torch.ones(N, dtype=torch.bool))

    def reduce(logprobs, entropy):
        rows = Rows(mask=mask, **{k: v.to(logprobs.dtype) for k, v in vectors.items()})
        loss = naive.policy_loss(logprobs, entropy, spec, rows)
        return loss, (loss, logprobs)

    loss, *got = run_loss(row_path, inputs, targets, vectors, spec, **settings)
    dtypes = (torch.float64, torch.float32)
    truth, plain = (by_formula(inputs, targets, d, reduce, **settings) for d in dtypes)
    assert_near(got, plain[1:], truth[1:])
    # a sum of rows of both signs: their sizes, and not its own, are what rounds
    limit = 2 * float((plain[0].double() - truth[0]).abs()) + N * torch.finfo(torch.float32).eps
    assert float((loss.double() - truth[0]).abs()) <= limit * 5  # log-probs are about 5 in size


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_12_chunks_add_up_in_fp32(row_path, dtype):
    """300 rows that pull one way, in chunks of 5: sums in the dtype would lose the last of them."""
    rows = 30 if row_path.interpreted else 300
    hidden = normal(rows, D, scale=0.01, dtype=dtype) + 1.0
    weight, bias = normal(V, D, seed=5, scale=0.05, dtype=dtype), torch.zeros(V, dtype=dtype)
    targets = torch.zeros(rows, dtype=torch.int64)
    upstream = [torch.ones(rows), torch.full((rows,), 0.1)]
    got = run(row_path, [hidden, weight, bias], targets, upstream)
    assert_near_the_formula(got, [hidden, weight, bias], targets, weighted(upstream))
    spec = LossSpec(entropy_coef=-0.1)
    vectors = {"advantages": -torch.ones(rows)}
    _, *got = run_loss(row_path, [hidden, weight, bias], targets, vectors, spec)

    def reduce(logprobs, entropy):
        return (logprobs + 0.1 * entropy).sum(), (logprobs,)

    assert_near_the_formula(got, [hidden, weight, bias], targets, reduce)


def test_14_the_entropy_alone_has_a_gradient(row_path):
    inputs, targets = head_case(bias=False)
    upstream = [torch.zeros(N), torch.ones(N)]
    got = run(row_path, inputs, targets, upstream)
    assert got[2].any() and got[3].any()
    assert_near_the_formula(got, inputs, targets, weighted(upstream))


ROWWISE = {
    "log-probs": lambda lp, entropy, rows: -(rows.advantages * rows.row_weights * lp.exp()).sum(),
    "both": lambda lp, entropy, rows: (rows.advantages * lp + entropy.square())[rows.mask].mean(),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("loss_fn", ROWWISE.values(), ids=ROWWISE)
def test_a_loss_of_rows_is_differentiated_in_the_forward(row_path, loss_fn, settings, monkeypatch):
    """As after it, and with three products of each chunk, not four."""
    inputs, targets = head_case(**settings)
    vectors = loss_vectors()
    logits, seen = head._Products._logits, []
    monkeypatch.setattr(
        head._Products,
        "_logits",
        lambda self, hidden, out: (seen.append(len(hidden)), logits(self, hidden, out)),
    )
    vectors["advantages"][:3] = 0.0

    def both(**more):
        seen.clear()
        found = run_loss(
            row_path, inputs, targets, vectors, None, loss_fn=loss_fn, **settings, **more
        )
        return found, sum(seen)

    (late, twice), (early, once) = both(), both(rowwise=True)
    assert once == int(settings.get("mask", torch.ones(N)).sum())
    assert twice > 1.5 * once
    for found, expected in zip(early, late, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_a_loss_of_other_rows_too_is_differentiated_again(row_path):
    inputs, targets = head_case()

    def loss_fn(logprobs, entropy, rows):
        return (logprobs.mean() - logprobs).square().sum()

    expected = run_loss(row_path, inputs, targets, loss_vectors(), None, loss_fn=loss_fn)
    with pytest.warns(UserWarning, match="depend on other rows"):
        found = run_loss(
            row_path, inputs, targets, loss_vectors(), None, loss_fn=loss_fn, rowwise=True
        )
    assert same_bits(found, expected)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_weight_without_a_gradient_costs_no_product(row_path, dtype, monkeypatch):
    """The hidden states' and bias's gradients have the bits that they have beside it."""
    inputs, targets = head_case(dtype)
    upstream, vectors = [normal(N, seed=s, scale=1.0) for s in (2, 3)], loss_vectors()
    rowwise = {"loss_fn": ROWWISE["both"], "rowwise": True}
    spec = {"spec": SPECS["clip"]}

    def every(trained):
        found = []
        for more in (None, spec, rowwise):
            hidden, weight, bias = placed(row_path, inputs)
            weight.requires_grad_(trained)
            if more is None:
                outputs = row_path.call(
                    "linear_logprobs_and_entropy", hidden, weight, targets, bias=bias
                )
                torch.autograd.backward(outputs, [row_path.place(u) for u in upstream])
            else:
                out = row_path.call(
                    "linear_policy_loss", hidden, weight, targets, bias=bias, **vectors, **more
                )
                out.loss_sum.backward()
            assert (weight.grad is not None) is trained
            found += [hidden.grad.cpu(), bias.grad.cpu()]
        return found

    expected = every(True)
    monkeypatch.setattr(head._Products, "_weight_memory", None)  # nobody asks for it
    assert same_bits(every(False), expected)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_more_of_each_row_from_the_same_products(row_path, settings):
    """As from the logits; log-probs and entropy have their gradients."""
    inputs, targets = head_case(**settings)
    upstream = [normal(N, seed=s, scale=1.0) for s in (2, 3)]
    expected = run(row_path, inputs, targets, upstream, **settings)
    leaves = placed(row_path, inputs)
    found = row_path.call("linear_row_statistics", *leaves[:2], targets, bias=leaves[2], **settings)
    torch.autograd.backward((found.logprobs, found.entropy), [row_path.place(u) for u in upstream])
    got = [found.logprobs.detach(), found.entropy.detach(), *(v.grad for v in leaves)]
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-5, atol=1e-6)
    logits = torch.nn.functional.linear(*(v.double() for v in inputs))
    scale = settings.get("logit_scale", 1.0)
    of_logits = {k: v for k, v in settings.items() if k not in ("logit_scale", "softcap")}
    if cap := settings.get("softcap"):
        scaled = cap * (scale * logits / cap).tanh()
    else:
        scaled = scale * logits
    truth = Path("torch").call("row_statistics", scaled, targets, **of_logits)
    for name in ("sum_squares", "max_prob", "log_kept_mass"):
        torch.testing.assert_close(
            getattr(found, name).cpu().double(), getattr(truth, name), rtol=1e-5, atol=1e-6
        )
        assert not getattr(found, name).requires_grad
    assert torch.equal(found.argmax.cpu(), truth.argmax)


def test_5_masked_rows_and_the_padded_vocabulary_are_never_read(row_path):
    settings = SETTINGS["all"]
    mask, valid = settings["mask"], settings["valid_vocab"]
    inputs, targets = head_case(**settings)
    upstream, vectors = [normal(N, seed=s, scale=1.0) for s in (2, 3)], loss_vectors()

    def both():
        loss = run_loss(row_path, inputs, targets, vectors, SPECS["clip"], **settings)
        return run(row_path, inputs, targets, upstream, **settings) + loss

    expected = both()
    inputs[0][~mask], targets[~mask] = NAN, -1
    inputs[1][valid:] = inputs[2][valid:] = NAN
    for vector in vectors.values():
        vector[~mask] = NAN
    got = both()
    assert same_bits(got, expected)
    for hidden, weight, bias in (got[2:5], got[7:]):
        assert not hidden[~mask].any() and not weight[valid:].any() and not bias[valid:].any()


def test_17_everything_masked(row_path):
    inputs, _ = head_case()
    inputs[0][:] = NAN
    settings = {"mask": torch.zeros(N, dtype=torch.bool)}
    targets = torch.full((N,), -1)
    nothing = [normal(N, seed=s, scale=1.0) for s in (2, 3)]
    got = run(row_path, inputs, targets, nothing, **settings)
    got += run_loss(row_path, inputs, targets, loss_vectors(), SPECS["clip"], **settings)
    assert not any(v.any() for v in got)


def test_18_two_runs_of_one_shape_give_the_same_bits(row_path):
    """And the loss has the log-probs of the operation without a gradient."""
    inputs, targets = head_case()
    upstream, vectors = [normal(N, seed=s, scale=1.0) for s in (2, 3)], loss_vectors()

    def both():
        loss = run_loss(row_path, inputs, targets, vectors, SPECS["cispo"])
        return run(row_path, inputs, targets, upstream) + loss

    first = both()
    assert same_bits(first, both()) and torch.equal(first[0], first[6])


def test_one_nan_in_a_hidden_state_reaches_its_row_and_the_weight(row_path):
    inputs, targets = head_case()
    inputs[0][4, 2] = NAN
    upstream = [normal(N, seed=s, scale=1.0) for s in (2, 3)]
    logprobs, entropy, by_hidden, by_weight, _ = run(row_path, inputs, targets, upstream)
    for v in (logprobs, entropy, by_hidden):
        broken = v.reshape(N, -1).isnan().all(1)
        assert broken.nonzero().flatten().tolist() == [4]
    assert by_weight.isnan().all()
