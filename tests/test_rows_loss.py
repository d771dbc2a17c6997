"""The policy loss of rows of logits on every path, against its formula under autograd.

Of the list in `test_rows.py`: 5 what must not be read, 17 everything masked, and what a loss adds.
"""

from dataclasses import replace

import naive
import pytest
import torch
from row_backends import (
    INF,
    NAN,
    assert_near,
    by_formula,
    first,
    integers,
    logit_rows,
    normal,
    same_bits,
)
from row_backends import row_path as row_path

from fastrl.losses import LossSpec, Rows, coefficients, row_losses

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
N = 10
MANY = 96  # enough for torch's own largest error to be no matter of luck
SPECS = {
    "reinforce": LossSpec(),
    "reinforce, entropy": LossSpec(entropy_coef=0.7),
    "clip": LossSpec(loss="clip", clip_low=0.2, clip_high=0.3),
    "clip, no lower bound": LossSpec(loss="clip", clip_low=1.0, clip_high=0.1),
    "clip, dual": LossSpec(loss="clip", clip_low=0.2, clip_high=0.1, dual_clip=1.3),
    "clip, entropy": LossSpec(loss="clip", dual_clip=1.5, entropy_coef=-0.4),
    "cispo": LossSpec(loss="cispo", clip_low=0.3, clip_high=0.2),
    "cispo, entropy": LossSpec(loss="cispo", clip_low=1.0, clip_high=0.4, entropy_coef=0.3),
    "truncate": LossSpec(sampler_correction="token_truncate", sampler_correction_cap=1.2),
    "mask": LossSpec(sampler_correction="token_mask", sampler_correction_cap=1.2),
    "clip, truncate": LossSpec(
        loss="clip", sampler_correction="token_truncate", sampler_correction_cap=1.1
    ),
    "cispo, mask, entropy": LossSpec(
        loss="cispo", sampler_correction="token_mask", sampler_correction_cap=1.3, entropy_coef=0.2
    ),
}
SETTINGS = {
    "nothing": {},
    "all": {
        "temperature": torch.tensor([0.5, 0.8, 1.0, 2.0]).repeat(MANY),
        "softcap": 6.0,
        "logit_scale": 1.2,
        "valid": 117,
        "mask_N": torch.arange(4 * MANY) % 5 != 2,
    },
}


def loss_case(dtype=torch.float32, width=123, rows=N, **settings):
    """Rows of logits and of the loss; NaN in whatever the mask leaves out."""
    for name in ("temperature", "mask_N"):
        if name in settings:
            settings[name] = settings[name][:rows]
    targets = integers(settings.get("valid", width), rows)
    x = logit_rows(normal(rows, width, dtype=dtype), targets, **settings)
    zero = torch.zeros(rows)
    logprobs = by_formula(x, zero + 1, zero, torch.float64)[0].float()
    vectors = {
        "advantages": normal(rows, seed=4, scale=1.0),
        "old_logprobs": logprobs + normal(rows, seed=5, scale=0.4),
        "sampler_logprobs": logprobs + normal(rows, seed=7, scale=0.4),
        "row_weights": normal(rows, seed=8, scale=1.0).abs(),
    }
    # the first rows, which the slow interpreter takes, reach every branch
    for name, values in (
        ("advantages", [1.0, 0.7, -1.2, 0.0, -0.8]),
        ("old_logprobs", [-0.6, 0.6, -0.6, 0.1, 0.6]),
        ("sampler_logprobs", [-1.1, 1.1, -1.1, 0.0, 0.1]),
    ):
        first_few = torch.tensor(values)[:rows]
        vectors[name][:5] = first_few if name == "advantages" else first_few + logprobs[:5]
    if x.mask_N is not None:
        x.logits_NV[~x.mask_N] = NAN
        targets[~x.mask_N] = -7
        for vector in vectors.values():
            vector[~x.mask_N] = NAN
    x.logits_NV[:, x.valid :] = NAN
    mask = torch.ones(rows, dtype=torch.bool) if x.mask_N is None else x.mask_N
    return x, Rows(mask=mask, **vectors)


def run(path, x, rows, spec, scale=1.0, wanted=True):
    """Losses, log-probs, entropies and the gradient, written over a memory of NaN."""
    x = path.place(x)
    moved = Rows(**{k: path.place(v) for k, v in vars(rows).items()})
    out = torch.full_like(x.logits_NV, NAN) if wanted else None
    scale = torch.full((), scale, device=x.logits_NV.device)
    values = path.kernels.policy_loss(x, moved, spec, scale, out)
    return [v.cpu() for v in (*values, out) if v is not None]


def expected_of(x, rows, spec, dtype, scale=1.0):
    """The same by the naive formula and autograd, computed in `dtype`."""
    leaf = x.logits_NV.to(dtype).requires_grad_()
    t = x.temperature
    outputs = naive.logprobs_and_entropy(
        leaf, x.targets_N, temperature=t.to(dtype) if isinstance(t, torch.Tensor) else t,
        mask=x.mask_N, valid_vocab=x.valid, softcap=x.softcap, logit_scale=x.logit_scale,
    )  # fmt: skip
    rows = replace(rows, **{
        k: v.to(dtype) for k, v in vars(rows).items() if v is not None and v.is_floating_point()
    })  # fmt: skip
    each = [
        naive.policy_loss(outputs[0][i : i + 1], outputs[1][i : i + 1], spec, part)
        for i in range(len(x.targets_N))
        for part in [rows.select(slice(i, i + 1))]
    ]
    losses = torch.stack(each)
    (scale * losses.sum()).backward()
    return [losses.detach(), *(o.detach() for o in outputs), leaf.grad]


def assert_near_the_formula(path, x, rows, spec, scale=1.0, interpret=5):
    """The slow interpreter takes the first rows; torch's own error is that of all."""
    count = interpret if path.interpreted else len(x.targets_N)
    got = run(path, first(x, count), rows.select(slice(0, count)), spec, scale)
    assert [v.dtype for v in got] == [*[torch.float32] * 3, x.logits_NV.dtype]
    truth, plain = (expected_of(x, rows, spec, d, scale) for d in (torch.float64, torch.float32))
    padded = [torch.cat([v, p[count:].to(v.dtype)]) for v, p in zip(got, plain, strict=True)]
    # the interpreter truncates fp32 to bf16 where a GPU rounds
    truncated = path.interpreted and x.logits_NV.dtype == torch.bfloat16
    assert_near(padded, plain, truth, ulps=2 if truncated else 1)
    return got


@pytest.mark.parametrize("weights", [False, True], ids=["no weights", "weights"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_as_near_the_truth_as_torch(row_path, spec, settings, weights):
    x, rows = loss_case(rows=MANY, **settings)
    if not weights:
        rows = replace(rows, row_weights=None)
    got = assert_near_the_formula(row_path, x, rows, spec)
    rows = rows.select(slice(0, len(got[0])))
    assert not any(v[~rows.mask].any() for v in got) and not got[3][:, x.valid :].any()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["clip, entropy", "cispo, mask, entropy"])
def test_low_precision_is_as_near_the_truth_as_torch(row_path, name, dtype):
    x, rows = loss_case(dtype, rows=4 * MANY, **SETTINGS["all"])
    assert_near_the_formula(row_path, x, rows, SPECS[name], scale=0.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 1000, 32000, 151936])
def test_widths(row_path, width, dtype):
    x, rows = loss_case(dtype, width, rows=MANY if width < 1000 else 6)
    assert_near_the_formula(row_path, x, rows, SPECS["clip, entropy"], interpret=2)


def test_the_case_reaches_every_branch(row_path):
    """Both bounds bind and are left alone, the dual clip binds, corrections cut and keep."""
    x, rows = loss_case(rows=MANY)
    ratio = (row_path.statistics(x)[0] - rows.old_logprobs).exp()
    up, down = rows.advantages > 0, rows.advantages < 0
    for rho in (ratio > 1.4, ratio < 0.7, (ratio > 0.8) & (ratio < 1.1)):
        assert (rho & up).any() and (rho & down).any()
    correction = (rows.old_logprobs - rows.sampler_logprobs).exp()
    assert (correction > 1.3).any() and (correction < 1.1).any()


@pytest.mark.parametrize("name", SPECS)
def test_without_old_logprobs_the_ratio_is_exactly_one(row_path, name):
    """A bound at 1 does not bind, and the correction is the trainer's policy over the sampler's."""
    x, rows = loss_case()
    spec = replace(SPECS[name], clip_low=0.0, clip_high=0.0, on_policy=True)
    absent = run(row_path, x, replace(rows, old_logprobs=None), spec)
    own = run(row_path, x, replace(rows, old_logprobs=row_path.statistics(x)[0]), spec)
    assert same_bits(absent, own)
    by_reinforce = run(
        row_path, x, replace(rows, old_logprobs=None), replace(spec, loss="reinforce")
    )
    assert same_bits(absent[3:], by_reinforce[3:])


@pytest.mark.parametrize("loss", ["reinforce", "clip", "cispo"])
def test_rows_with_advantage_0_get_exactly_zero(row_path, loss):
    x, rows = loss_case()
    rows.advantages[3] = 1.0
    rows.advantages[::2] = 0.0
    rows.advantages[4] = -0.0
    gradient = run(row_path, x, rows, LossSpec(loss=loss, clip_low=1.0, clip_high=9.0))[3]
    assert not gradient[::2].any() and gradient[1::2].any(1).all()
    with_entropy = run(row_path, x, rows, LossSpec(loss=loss, entropy_coef=0.1))[3]
    assert with_entropy.any(1).all()
    weightless = replace(rows, row_weights=torch.zeros(N))
    assert not run(row_path, x, weightless, LossSpec(loss=loss, entropy_coef=0.1))[3].any()


def test_clipped_rows_get_exactly_zero_however_far_their_ratio(row_path):
    x, rows = loss_case(rows=6)
    far = torch.tensor([2.0, 0.1, 800.0, 2.0, -2.0, 800.0])
    rows = replace(
        rows, advantages=torch.tensor([1.0, 0.5, 1.0, -1.0, -1.0, -1.0]), row_weights=None,
        old_logprobs=row_path.statistics(x)[0] - far,
    )  # fmt: skip
    losses, _, _, gradient = run(row_path, x, rows, LossSpec(loss="clip", dual_clip=9.0))
    assert gradient.any(1).tolist() == [False, True, False, True, False, False]
    expected = torch.tensor([-1.2, -0.5 * torch.tensor(0.1).exp(), -1.2, 7.389056, 0.8, 9.0])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1.0, 0.25, -3.0, 0.0])
def test_the_scale_is_that_of_the_gradient_alone(row_path, scale):
    x, rows = loss_case()
    whole = run(row_path, x, rows, SPECS["cispo, entropy"])
    got = run(row_path, x, rows, SPECS["cispo, entropy"], scale)
    assert same_bits(got[:3], whole[:3])
    expected = scale * whole[3].double()
    limit = 4 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert float((got[3] - expected).abs().max()) <= limit


def test_17_everything_masked(row_path):
    x, rows = loss_case(mask_N=torch.zeros(N, dtype=torch.bool))
    assert not any(v.any() for v in run(row_path, x, rows, SPECS["cispo, mask, entropy"]))
    settings = {k: v for k, v in vars(rows).items() if k != "advantages" and v is not None}
    leaf = row_path.place(x.logits_NV.clone()).requires_grad_()
    out = row_path.call(
        "policy_loss", leaf, x.targets_N, rows.advantages, spec=SPECS["clip, truncate"], **settings
    )
    out.loss_sum.backward()
    assert out.loss_sum == 0 and out.num_tokens == 0 and not leaf.grad.any()


def test_17_no_rows(row_path):
    x, rows = loss_case(rows=4)
    empty = logit_rows(x.logits_NV[:0], x.targets_N[:0])
    got = run(row_path, empty, rows.select(slice(0, 0)), SPECS["clip"])
    assert [v.shape for v in got] == [(0,)] * 3 + [(0, 123)]


@pytest.mark.parametrize("bad", [NAN, INF], ids=["nan", "infinity"])
@pytest.mark.parametrize("name", ["reinforce", "clip", "cispo", "clip, dual", "clip, entropy"])
def test_nan_and_infinity_reach_their_row_and_no_other(row_path, name, bad):
    """The log-prob, the loss and the gradient of the row, whatever the sign of its advantage."""
    x, rows = loss_case(rows=8)
    x.logits_NV[2, 7], x.logits_NV[5, x.targets_N[5]] = bad, bad
    rows.old_logprobs[[2, 5]] = -3.0
    rows.advantages[2], rows.advantages[5] = 1.0, -1.0
    broken = (torch.arange(8) == 2) | (torch.arange(8) == 5)
    for v in run(row_path, x, rows, SPECS[name]):
        flat = v.reshape(8, -1)
        assert flat.isnan().all(1).tolist() == broken.tolist()
        assert flat.isfinite().all(1).tolist() == (~broken).tolist()


@pytest.mark.parametrize(
    "vector", ["advantages", "old_logprobs", "sampler_logprobs", "row_weights"]
)
def test_nan_in_a_vector_is_not_lost(row_path, vector):
    x, rows = loss_case(rows=4)
    rows.advantages[:] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    getattr(rows, vector)[1:3] = NAN
    for spec in (SPECS["cispo, mask, entropy"], SPECS["clip, truncate"], SPECS["truncate"]):
        losses = run(row_path, x, rows, spec)[0]
        if vector != "old_logprobs" or spec.loss != "reinforce" or spec.sampler_correction:
            assert losses[1:3].isnan().all()
        assert losses[[0, 3]].isfinite().all()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_memory_and_gradients_over_the_logits(row_path, dtype, settings):
    x, rows = loss_case(dtype, **settings)
    spec = SPECS["cispo, mask, entropy"]
    expected = run(row_path, x, rows, spec)
    x = row_path.place(x)
    moved = Rows(**{k: row_path.place(v) for k, v in vars(rows).items()})
    one = torch.ones((), device=row_path.device)
    memory = torch.full((2 * N, 170), 7.0, dtype=dtype, device=row_path.device)
    source = torch.full_like(memory, 7.0)[1::2, 20:143]
    source.copy_(x.logits_NV)
    x = replace(x, logits_NV=source)
    for out in (memory[::2, 5:128], source):
        if out is not source:
            out.fill_(NAN)
        values = row_path.kernels.policy_loss(x, moved, spec, one, out)
        assert same_bits([v.cpu() for v in (*values, out)], expected)
    memory[::2, 5:128] = 7.0
    assert (memory == 7.0).all()


def test_without_a_gradient_the_values_have_the_same_bits(row_path):
    x, rows = loss_case(rows=4, **SETTINGS["all"])
    for spec in SPECS.values():
        assert same_bits(
            run(row_path, x, rows, spec, wanted=False), run(row_path, x, rows, spec)[:3]
        )


@pytest.mark.parametrize("weights", [False, True], ids=["no weights", "weights"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_coefficients_are_the_derivatives_of_the_losses(spec, weights):
    """`fastrl.losses.coefficients`, from which kernels were written, against autograd."""
    x, rows = loss_case()
    rows = replace(rows, **{
        k: v.double() for k, v in vars(rows).items() if v is not None and v.is_floating_point()
    })  # fmt: skip
    rows = rows if weights else replace(rows, row_weights=None)
    zero = torch.zeros(N)
    leaves = [v.requires_grad_() for v in by_formula(x, zero + 1, zero, torch.float64)[:2]]
    losses = row_losses(spec, *leaves, rows)
    wanted = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    wanted = [torch.zeros(N).double() if v is None else v for v in wanted]
    got = coefficients(spec, *(v.detach() for v in leaves), rows)
    for value, expected in zip(got, [losses.detach(), *wanted], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
