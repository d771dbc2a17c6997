"""Policy losses against their formulas, values and gradients."""

import math
from dataclasses import replace

import naive
import pytest
import torch

from fastrl import ops
from fastrl.errors import UsageError
from fastrl.losses import LossSpec, Rows, make_loss_fn, sequence_sum
from fastrl.ops import definition
from fastrl.ops import head as head_rows

N, D, V, VALID = 24, 6, 20, 17
OFFSETS = torch.tensor([0, 5, 6, 6, 13, 20, 24], dtype=torch.int32)  # one of one row, one empty
HEAD = {"temperature": 0.8, "softcap": 9.0, "valid_vocab": VALID}
SPECS = {
    "reinforce": LossSpec(),
    "token-mean": LossSpec(loss_agg_mode="token-mean"),
    "sequence means": LossSpec(loss_agg_mode="seq-mean-token-mean"),
    "clip": LossSpec(loss="clip", clip_low=0.2, clip_high=0.3),
    "clip, no lower bound": LossSpec(loss="clip", clip_low=1.0, clip_high=0.1),
    "dual clip": LossSpec(loss="clip", dual_clip=1.5, loss_agg_mode="seq-mean-token-mean"),
    "cispo": LossSpec(loss="cispo", clip_low=0.4, clip_high=0.2),
    "gspo": LossSpec(loss="gspo", clip_low=0.05, clip_high=0.1),
    "gspo, dual clip": LossSpec(
        loss="gspo", dual_clip=1.1, clip_high=0.05, loss_agg_mode="seq-mean-token-mean"
    ),
    "k1": LossSpec(kl_estimator="k1", kl_coef=0.3),
    "k2": LossSpec(loss="clip", kl_estimator="k2", kl_coef=0.3),
    "k3": LossSpec(loss="gspo", kl_estimator="k3", kl_coef=0.3),
    "k3-corrected": LossSpec(kl_estimator="k3-corrected", kl_coef=0.3),
    "entropy": LossSpec(entropy_coef=0.7),
    "token_truncate": LossSpec(sampler_correction="token_truncate", sampler_correction_cap=1.2),
    "token_mask": LossSpec(
        loss="cispo", sampler_correction="token_mask", sampler_correction_cap=1.2
    ),
    "sequence_truncate": LossSpec(
        loss="clip", sampler_correction="sequence_truncate", sampler_correction_cap=1.2
    ),
    "sequence_mask": LossSpec(sampler_correction="sequence_mask", sampler_correction_cap=1.2),
    "everything": LossSpec(
        loss="gspo",
        clip_high=0.1,
        loss_agg_mode="seq-mean-token-mean",
        kl_estimator="k3-corrected",
        kl_coef=0.2,
        entropy_coef=0.5,
        sampler_correction="token_mask",
        sampler_correction_cap=1.5,
    ),
}
OF_ROWS = [n for n, spec in SPECS.items() if not spec.needs_sequences]


def normal(*shape, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def case(dtype=torch.float64, mask=True, with_old=True):
    """Hidden states, weight and bias; targets; the rows, NaN wherever the mask leaves them out."""
    head = [normal(N, D, seed=0), normal(V, D, seed=1), normal(V, seed=2)]
    head = [x.to(dtype) for x in head]
    targets = torch.randint(VALID, (N,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logprobs, _ = plain(*(x.double() for x in head), targets)
    kept = torch.ones(N, dtype=torch.bool)
    if mask:
        kept[[1, 5, 8, 9, 20]] = False  # all of the sequence of one row
    vectors = {
        "advantages": normal(N, seed=4),
        "old_logprobs": logprobs + normal(N, seed=5, scale=0.5),
        "ref_logprobs": logprobs + normal(N, seed=6, scale=0.5),
        "sampler_logprobs": logprobs + normal(N, seed=7, scale=0.5),
        "row_weights": normal(N, seed=8).abs(),
    }
    vectors["advantages"][3] = 0.0
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in vectors.items():
        value[~kept] = float("nan")
        vectors[name] = value.to(wide)
    if not with_old:
        del vectors["old_logprobs"]
    targets = torch.where(kept, targets, -1)
    return head, targets, Rows(mask=kept, cu_seqlens=OFFSETS, **vectors)


def plain(hidden, weight, bias, targets, mask=None):
    logits = torch.nn.functional.linear(hidden, weight, bias) * 0.9
    return naive.logprobs_and_entropy(logits, targets, mask=mask, **HEAD)


def vectors(rows):
    return {k: v for k, v in vars(rows).items() if k != "advantages" and v is not None}


def linear_loss(head, targets, rows, **more):
    hidden, weight, bias = head
    return ops.linear_policy_loss(
        hidden, weight, targets, rows.advantages, bias=bias, logit_scale=0.9,
        **(vectors(rows) | HEAD | more),
    )  # fmt: skip


def logits_loss(head, targets, rows, **more):
    (logits,) = head
    return ops.policy_loss(logits, targets, rows.advantages, **(vectors(rows) | HEAD | more))


def logits_of(head):
    hidden, weight, bias = head
    return [torch.nn.functional.linear(hidden, weight, bias) * 0.9]


def backward(operation, inputs, *rest, upstream=1.0, **more):
    """The output of an operation, its loss detached, and the gradients by its inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = operation(leaves, *rest, **more)
    if isinstance(out, torch.Tensor):
        (upstream * out).backward()
        return out.detach(), [x.grad for x in leaves]
    (upstream * out.loss_sum).backward()
    return replace(out, loss_sum=out.loss_sum.detach()), [x.grad for x in leaves]


def by_formula(head, targets, rows, spec, scale=1.0):
    outputs = plain(*head, targets, rows.mask)
    return scale * naive.policy_loss(*outputs, spec, rows)


def by_formula_from_logits(logits, targets, rows, spec):
    outputs = naive.logprobs_and_entropy(*logits, targets, mask=rows.mask, **HEAD)
    return naive.policy_loss(*outputs, spec, rows)


def assert_equal(got, expected, rel=1e-9):
    for x, y in zip(got, expected, strict=True):
        limit = rel * float(y.abs().max())
        assert float((x - y).abs().max()) <= limit


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_losses_of_hidden_states_in_chunks(monkeypatch, spec, masked):
    monkeypatch.setattr(head_rows, "CHUNK_ROWS", 1)
    monkeypatch.setattr(head_rows, "CHUNK_BYTES", 8 * VALID * 5)  # five rows of fp64
    head, targets, rows = case(mask=masked)
    loss, expected = backward(by_formula, head, targets, rows, spec)
    head[0][~rows.mask] = head[1][VALID:] = head[2][VALID:] = float("nan")
    out, got = backward(linear_loss, head, targets, rows, spec=spec)
    assert_equal([out.loss_sum], [loss])
    assert_equal(got, expected)
    assert not got[0][~rows.mask].any() and not got[1][VALID:].any() and not got[2][VALID:].any()
    assert int(out.num_tokens) == int(rows.mask.sum()) and not out.num_tokens.is_floating_point()


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_losses_of_logits(spec, masked):
    head, targets, rows = case(mask=masked)
    logits = logits_of(head)
    logits[0][~rows.mask] = float("nan")
    out, got = backward(logits_loss, logits, targets, rows, spec=spec)
    loss, expected = backward(by_formula_from_logits, logits, targets, rows, spec)
    assert_equal([out.loss_sum], [loss])
    assert_equal(got, expected)
    assert not got[0][~rows.mask].any() and not got[0][:, VALID:].any()


def test_the_cases_reach_every_branch():
    """Both bounds bind and are left alone, the dual clip binds, corrections cut and keep."""
    head, targets, rows = case()
    logprobs, _ = plain(*head, targets, rows.mask)
    kept = rows.mask
    ratio, advantage = (logprobs - rows.old_logprobs).exp()[kept], rows.advantages[kept]
    up, down = advantage > 0, advantage < 0
    for rho in (ratio > 1.3, ratio < 0.8, (ratio > 0.8) & (ratio < 1.2)):
        assert (rho & up).any() and (rho & down).any()
    assert ((ratio > 1.5) & down).any()
    correction = (rows.old_logprobs - rows.sampler_logprobs)[kept].exp()
    assert (correction > 1.5).any() and (correction < 1.2).any()
    for name in ("gspo", "gspo, dual clip"):
        clipped = linear_loss(head, targets, rows, spec=SPECS[name]).stats["clipped"]
        assert 0 < clipped < kept.sum()


@pytest.mark.parametrize("loss", ["clip", "cispo", "gspo"])
def test_on_policy_without_old_logprobs_is_reinforce(loss):
    head, targets, rows = case(with_old=False)
    rows = replace(rows, row_weights=None)
    spec = LossSpec(loss=loss, on_policy=True, sampler_correction="token_truncate")
    _, got = backward(linear_loss, head, targets, rows, spec=spec)
    _, expected = backward(
        linear_loss, head, targets, rows, spec=LossSpec(sampler_correction="token_truncate")
    )
    if loss == "gspo":  # a ratio of the sequence: its rows share the mean of their coefficients
        _, expected = backward(by_formula, head, targets, rows, spec)
    assert_equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 1 / 3])
@pytest.mark.parametrize("name", ["clip", "entropy", "everything"])
def test_low_precision_is_as_near_the_truth_as_torch(dtype, upstream, name):
    """Plain torch here widens its input to fp32, as the operations do."""
    head, targets, rows = case(dtype)
    exact = replace(rows, **{
        k: v.double() for k, v in vars(rows).items() if v is not None and v.is_floating_point()
    })  # fmt: skip
    out, got = backward(linear_loss, head, targets, rows, spec=SPECS[name], upstream=upstream)

    def widened(leaves, *rest):
        return by_formula([x.float() for x in leaves], *rest)

    loss, torch_gradients = backward(widened, head, targets, rows, SPECS[name], upstream=upstream)
    true_loss, truth = backward(
        by_formula, [x.double() for x in head], targets, exact, SPECS[name], upstream=upstream
    )
    assert out.loss_sum.dtype == torch.float32 and [x.dtype for x in got] == [dtype] * 3
    sizes = [N, *(float(true.abs().max()) for true in truth)]  # the loss: terms of about 1
    for x, torch_x, true, size in zip(
        [out.loss_sum, *got], [loss, *torch_gradients], [true_loss, *truth], sizes, strict=True
    ):
        floor = torch.finfo(x.dtype).eps * size
        error, torch_error = (float((v.double() - true).abs().max()) for v in (x, torch_x))
        assert error <= 2 * torch_error + floor


SCALES = {
    "number": 0.25,
    "fp32": torch.tensor(0.25),
    "fp64": torch.tensor(0.25, dtype=torch.float64),
    "bf16": torch.tensor(0.25, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["clip", "gspo"])
def test_grad_scale_and_upstream(scale, dtype, name):
    head, targets, rows = case(dtype)
    plain_out, expected = backward(linear_loss, head, targets, rows, spec=SPECS[name])
    out, got = backward(linear_loss, head, targets, rows, spec=SPECS[name], grad_scale=scale)
    assert out.loss_sum.dtype == dtype
    # a power of two scales exactly
    assert torch.equal(out.loss_sum, 0.25 * plain_out.loss_sum)
    assert all(torch.equal(x, 0.25 * y) for x, y in zip(got, expected, strict=True))
    _, got = backward(
        linear_loss, head, targets, rows, spec=SPECS[name], grad_scale=scale, upstream=-2.0
    )
    assert all(torch.equal(x, -0.5 * y) for x, y in zip(got, expected, strict=True))


def test_the_graph_can_be_kept_and_used_again():
    head, targets, rows = case()
    leaves = [x.requires_grad_() for x in head]
    loss = linear_loss(leaves, targets, rows, spec=SPECS["entropy"]).loss_sum
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(3 * loss, leaves)
    assert_equal(again, [3 * x for x in first], rel=1e-15)


def test_only_the_loss_is_differentiable():
    head, targets, rows = case()
    out = linear_loss([x.requires_grad_() for x in head], targets, rows, spec=SPECS["everything"])
    assert out.loss_sum.requires_grad
    rest = [out.num_tokens, out.logprobs, out.entropy, *out.stats.values()]
    assert not any(x.requires_grad for x in rest)


@pytest.mark.parametrize("name", ["clip", "gspo"])
def test_a_second_derivative_is_refused(name):
    head, targets, rows = case()
    leaves = [x.requires_grad_() for x in head]
    loss = linear_loss(leaves, targets, rows, spec=SPECS[name]).loss_sum
    with pytest.raises(UsageError, match="create_graph=True asks .*leave create_graph out"):
        torch.autograd.grad(loss, leaves, create_graph=True)


def test_no_gradient_where_none_is_asked():
    head, targets, rows = case()
    out = linear_loss(head, targets, rows, spec=SPECS["clip"])
    with_gradient, _ = backward(linear_loss, head, targets, rows, spec=SPECS["clip"])
    assert not out.loss_sum.requires_grad and torch.equal(out.loss_sum, with_gradient.loss_sum)
    frozen = [head[0].clone().requires_grad_(), head[1], head[2]]
    linear_loss(frozen, targets, rows, spec=SPECS["clip"]).loss_sum.backward()
    _, expected = backward(linear_loss, head, targets, rows, spec=SPECS["clip"])
    assert torch.equal(frozen[0].grad, expected[0])
    assert head[1].grad is None and head[2].grad is None


def test_outputs_are_those_of_the_log_prob_operation():
    head, targets, rows = case()
    hidden, weight, bias = head
    expected = ops.linear_logprobs_and_entropy(
        hidden, weight, targets, bias=bias, logit_scale=0.9, mask=rows.mask, **HEAD
    )
    shape = (2, N // 2)
    shaped = {k: v.view(shape) for k, v in vars(rows).items() if k != "cu_seqlens"}
    for spec in (SPECS["clip"], SPECS["gspo"]):
        out = linear_loss(
            [hidden.view(*shape, D), weight, bias], targets.view(shape),
            Rows(**shaped, cu_seqlens=OFFSETS), spec=spec,
        )  # fmt: skip
        for x, y in zip((out.logprobs, out.entropy), expected, strict=True):
            assert x.shape == shape and torch.equal(x.flatten(), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", ["clip", "gspo"])
def test_rows_without_a_part_in_the_loss_get_exactly_zero(loss, dtype):
    """Advantage 0, or a ratio beyond its bound, be it beyond every number of the dtype."""
    logits = normal(6, V, seed=0).to(dtype)
    targets = torch.arange(6)
    logprobs, _ = ops.logprobs_and_entropy(logits, targets)
    far = torch.tensor([2.0, 0.0, 800.0, 2.0, -2.0, 0.1], dtype=dtype)
    advantages = torch.tensor([1.0, 0.0, 1.0, -1.0, -1.0, 0.5], dtype=dtype)
    out, (gradient,) = backward(
        lambda x: ops.policy_loss(
            *x, targets, advantages, old_logprobs=logprobs - far,
            cu_seqlens=torch.arange(7, dtype=torch.int32), spec=LossSpec(loss=loss),
        ),
        [logits],
    )  # fmt: skip
    assert not gradient[[0, 1, 2, 4]].any()
    assert gradient[3].any() and gradient[5].any()
    expected = -1.2 + 0 - 1.2 + math.exp(2) + 0.8 - 0.5 * math.exp(0.1)
    assert float(out.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert out.stats["clipped"] == 3


@pytest.mark.parametrize("dtype, rel", [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_the_gradient_does_not_depend_on_how_rows_are_split(name, dtype, rel):
    head, targets, rows = case(dtype)
    whole, expected = backward(linear_loss, head, targets, rows, spec=SPECS[name], grad_scale=0.1)
    loss, total = 0.0, [torch.zeros_like(x) for x in head]
    for first, last in ((0, 3), (3, 4), (4, 6)):
        offsets = OFFSETS[first : last + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        some = replace(rows.select(part), cu_seqlens=offsets - offsets[0])
        out, gradients = backward(
            linear_loss, [head[0][part], *head[1:]], targets[part], some,
            spec=SPECS[name], grad_scale=0.1,
        )  # fmt: skip
        loss += out.loss_sum
        total[0][part] = gradients[0]
        for sum_, gradient in zip(total[1:], gradients[1:], strict=True):
            sum_ += gradient
    assert_equal(total, expected, rel)
    # the rows' losses are of both signs and about 1 each
    assert float(loss) == pytest.approx(float(whole.loss_sum), abs=rel * 0.1 * N)


@pytest.mark.parametrize("name", OF_ROWS)
def test_losses_of_rows_may_be_split_anywhere(name):
    spec = replace(SPECS[name], loss_agg_mode="token-mean")
    head, targets, rows = case(torch.float64)
    logits = logits_of(head)
    _, (expected,) = backward(logits_loss, logits, targets, rows, spec=spec)
    parts = [slice(i, i + 7) for i in range(0, N, 7)]
    got = [
        backward(logits_loss, [logits[0][p]], targets[p], rows.select(p), spec=spec)[1][0]
        for p in parts
    ]
    assert torch.equal(torch.cat(got), expected)


@pytest.mark.parametrize("name", [*OF_ROWS, "gspo", "everything"])
def test_chunks_do_not_change_the_bits_of_a_gradient(monkeypatch, name):
    head, targets, rows = case(torch.float32)
    rows.row_weights[::3] = 0.0  # rows without a gradient beside rows with one
    more = {"spec": SPECS[name], "temperature": normal(N, seed=9).abs() + 0.5, "backend": "torch"}
    logits = logits_of(head)
    _, (expected,) = backward(logits_loss, logits, targets, rows, **more)
    for size in (1, 2, 5):
        monkeypatch.setattr(definition, "CHUNK_BYTES", 4 * VALID * size)
        _, (got,) = backward(logits_loss, logits, targets, rows, **more)
        assert torch.equal(got, expected)


def test_autocast_does_not_round():
    head, targets, rows = case(torch.float32)
    for spec in (SPECS["entropy"], SPECS["everything"]):
        out, expected = backward(linear_loss, head, targets, rows, spec=spec)
        with torch.autocast("cpu", torch.bfloat16):
            got_out, got = backward(linear_loss, head, targets, rows, spec=spec)
        assert torch.equal(got_out.loss_sum, out.loss_sum)
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_everything_masked():
    head, targets, rows = case(torch.float32)
    rows = replace(rows, mask=torch.zeros(N, dtype=torch.bool))
    nothing = [torch.full_like(head[0], float("nan")), *head[1:]]
    for spec in SPECS.values():
        out, gradients = backward(linear_loss, nothing, targets, rows, spec=spec)
        values = [out.loss_sum, out.logprobs, out.entropy, *out.stats.values()]
        assert out.num_tokens == 0 and not any(x.any() for x in values + gradients)


def test_zero_rows():
    head, targets, rows = case(torch.float32)
    offsets = torch.zeros(1, dtype=torch.int32)
    rows = replace(rows.select(slice(0, 0)), cu_seqlens=offsets)
    for spec in SPECS.values():
        out, gradients = backward(
            linear_loss, [head[0][:0], *head[1:]], targets[:0], rows, spec=spec
        )
        assert out.loss_sum == 0 and out.num_tokens == 0 and not any(x.any() for x in gradients)


@pytest.mark.parametrize("name", ["clip", "gspo", "everything"])
def test_a_loss_fn_equals_the_built_in_loss(name):
    head, targets, rows = case(mask=False)
    spec = replace(SPECS[name], loss_agg_mode="token-mean")
    out, got = backward(linear_loss, head, targets, rows, loss_fn=make_loss_fn(spec))
    expected_out, expected = backward(linear_loss, head, targets, rows, spec=spec)
    assert_equal([out.loss_sum], [expected_out.loss_sum])
    assert_equal(got, expected)


@pytest.mark.parametrize("operation, inputs", [(linear_loss, list), (logits_loss, logits_of)])
def test_any_loss_fn(operation, inputs):
    head, targets, rows = case()

    def loss_fn(logprobs, entropy, given):
        assert torch.equal(given.cu_seqlens, OFFSETS)
        # some rows weigh by their entropy alone; masked ones are left to the operation
        weights = torch.where(torch.arange(N) % 3 > 0, given.row_weights, 0.0).nan_to_num(2.0)
        return (weights * logprobs * (1 + entropy)).sum().square() + entropy.square().sum()

    def by_hand(leaves, *_):
        if operation is linear_loss:
            return 0.5 * loss_fn(*plain(*leaves, targets, rows.mask), rows)
        outputs = naive.logprobs_and_entropy(*leaves, targets, mask=rows.mask, **HEAD)
        return 0.5 * loss_fn(*outputs, rows)

    out, got = backward(
        operation, inputs(head), targets, rows, loss_fn=loss_fn, grad_scale=0.5, spec=SPECS["gspo"]
    )
    loss, expected = backward(by_hand, inputs(head))
    assert_equal([out.loss_sum], [loss])
    assert_equal(got, expected)


@pytest.mark.parametrize("name", ["reinforce", "clip", "dual clip", "cispo", "gspo", "everything"])
def test_stats(name):
    spec = SPECS[name]
    head, targets, rows = case()
    stats = linear_loss(head, targets, rows, spec=spec).stats
    logprobs, entropy = (x[rows.mask] for x in plain(*head, targets, rows.mask))
    gap = rows.ref_logprobs[rows.mask] - logprobs
    mismatch = rows.sampler_logprobs[rows.mask] - logprobs
    expected = {
        "logprobs": logprobs.sum(),
        "entropy": entropy.sum(),
        "kl_k1": -gap.sum(),
        "kl_k3": (gap.exp() - 1 - gap).sum(),
        "mismatch": mismatch.sum(),
        "mismatch_ratio_max": (-mismatch).exp().max(),
    }
    assert stats.keys() == {*expected, "clipped"}
    for key, value in expected.items():
        assert float(stats[key]) == pytest.approx(float(value), rel=1e-9), key

    log_ratio = torch.where(rows.mask, plain(*head, targets, rows.mask)[0] - rows.old_logprobs, 0)
    clipped = 0
    for start, end in zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True):
        sequence = [i for i in range(start, end) if rows.mask[i]]
        for i in sequence:
            rho = float(
                log_ratio[sequence].mean().exp() if spec.loss == "gspo" else log_ratio[i].exp()
            )
            advantage = rows.advantages[i]
            above = rho > 1 + spec.clip_high and (advantage >= 0 or spec.loss == "cispo")
            below = rho < 1 - spec.clip_low and (advantage < 0 or spec.loss == "cispo")
            dual = spec.dual_clip is not None and rho > spec.dual_clip and advantage < 0
            clipped += spec.loss != "reinforce" and (above or below or dual)
    assert int(stats["clipped"]) == clipped
    assert spec.loss == "reinforce" or clipped > 0


def test_sums_over_sequences_leave_masked_rows_out():
    head, targets, rows = case()
    values = torch.where(rows.mask, torch.arange(N).double(), float("nan"))
    parts = [part[~part.isnan()] for part in values.split(OFFSETS.diff().tolist())]
    repeats = OFFSETS.diff().long()
    for mean in (False, True):
        each = [part.sum() / max(1, len(part)) if mean else part.sum() for part in parts]
        expected = torch.stack(each).repeat_interleave(repeats)
        assert_equal([sequence_sum(values, rows, mean=mean)], [expected], rel=1e-15)


def test_stats_hold_only_what_was_given():
    logits, targets = normal(3, V, seed=0), torch.arange(3)
    stats = ops.policy_loss(logits, targets, torch.ones(3)).stats
    assert stats.keys() == {"logprobs", "entropy"}
