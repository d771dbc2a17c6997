"""What the operations and their losses refuse, and the sentence they say."""

import pytest
import torch

from fastrl import ops
from fastrl.errors import UsageError
from fastrl.losses import LossSpec

N, D, V = 4, 5, 9
META = {"device": "meta"}


def logits_call(**changes):
    return {"logits": torch.zeros(N, V), "targets": torch.tensor([0, 1, 2, 8])} | changes


def hidden_call(**changes):
    call = logits_call(hidden=torch.zeros(N, D), weight=torch.zeros(V, D)) | changes
    del call["logits"]
    return call


def loss_call(**changes):
    """A call that lacks nothing, whatever the loss."""
    names = ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs")
    offsets = torch.tensor([0, 2, N], dtype=torch.int32)
    return logits_call(**{name: torch.zeros(N) for name in names}, cu_seqlens=offsets) | changes


def integers(*values, **where):
    return torch.tensor(values, dtype=torch.int64, **where)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backend": "numpy"}, "is 'numpy'; allowed: 'auto', 'triton', 'cpu', 'torch'"),
        ({"logits": torch.zeros(())}, r"logits have shape \(\); allowed: \[\.\.\., V\]"),
        ({"logits": torch.zeros(N, 0)}, r"logits have shape \(4, 0\); allowed"),
        ({"logits": torch.zeros(N, V).int()}, "is torch.int32; allowed: float32, bfloat16"),
        ({"targets": integers(0, 1, 2)}, r"targets have shape \(3,\).* \(4,\) rows"),
        ({"targets": torch.zeros(N)}, "targets are torch.float32; allowed: int64, int32"),
        ({"targets": integers(0, 1, 2, 8, **META)}, "targets are on meta.* on cpu; move one"),
        ({"targets": integers(0, 1, 9, 0)}, r"row 2 is 9, outside the vocabulary 0\.\.8; mask"),
        ({"targets": integers(0, -1, 2, 0)}, r"row 1 is -1, outside the vocabulary 0\.\.8; mask"),
        ({"targets": integers(0, 1, 2, 6), "valid_vocab": 6}, r"row 3 is 6, outside .* 0\.\.5"),
        ({"valid_vocab": 0}, r"valid_vocab is 0; it must lie in 1\.\.9"),
        ({"valid_vocab": 10}, r"valid_vocab is 10; it must lie in 1\.\.9"),
        ({"softcap": 0.0}, "softcap is 0.0; it must be positive, or None"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"temperature": float("nan")}, "temperature is nan; it must be positive"),
        (
            {"temperature": torch.tensor([1, -1, 1, 1])},
            "temperature is -1.0 in row 1; it must be positive",
        ),
        ({"temperature": torch.ones(1)}, r"temperature has shape \(1,\).* of targets, \(4,\)"),
        ({"temperature": torch.ones(N, **META)}, "temperature is on meta, targets on cpu; move"),
        ({"mask": torch.ones(N)}, "mask is torch.float32; it must be bool, True"),
        ({"mask": torch.ones(N, 1).bool()}, r"mask has shape \(4, 1\).* of targets, \(4,\)"),
        ({"mask": torch.ones(N, **META).bool()}, "mask is on meta, targets on cpu; move one"),
    ],
)
def test_logits(changes, message):
    with pytest.raises(UsageError, match=message):
        ops.logprobs_and_entropy(**logits_call(**changes))
    with pytest.raises(UsageError, match=message):
        ops.policy_loss(**loss_call(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backend": "numpy"}, "backend is 'numpy'; allowed"),
        ({"weight": torch.zeros(V, 6)}, r"shape \(4, 5\) and weight \(9, 6\); allowed:"),
        ({"weight": torch.zeros(D)}, r"weight \(5,\); allowed: \[\.\.\., D\] and \[V, D\]"),
        ({"hidden": torch.zeros(())}, r"hidden has shape \(\) and weight"),
        (
            {"weight": torch.zeros(V, D, dtype=torch.bfloat16)},
            "hidden is torch.float32 on cpu, weight torch.bfloat16 on cpu; give both in one dtype",
        ),
        (
            {"weight": torch.zeros(V, D, **META)},
            "hidden is torch.float32 on cpu, weight torch.float32 on meta; give both in one dtype",
        ),
        (
            {"hidden": torch.zeros(N, D).int(), "weight": torch.zeros(V, D).int()},
            "is torch.int32; allowed: float32, bfloat16",
        ),
        ({"bias": torch.zeros(8)}, r"bias has shape \(8,\) on cpu; allowed: \(9,\) on cpu"),
        ({"bias": torch.zeros(V, **META)}, r"bias has shape \(9,\) on meta; allowed: .* on cpu"),
        ({"targets": integers(0, 1, 2, 9)}, r"row 3 is 9, outside the vocabulary 0\.\.8"),
        ({"targets": integers(0, 1, 2, 6), "valid_vocab": 6}, r"row 3 is 6, outside .* 0\.\.5"),
        ({"mask": torch.ones(N)}, "mask is torch.float32; it must be bool"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
    ],
)
def test_heads(changes, message):
    with pytest.raises(UsageError, match=message):
        ops.linear_logprobs_and_entropy(**hidden_call(**changes))
    with pytest.raises(UsageError, match=message):
        ops.linear_policy_loss(**hidden_call(**changes), advantages=torch.zeros(N))


@pytest.mark.parametrize(
    "backend, message",
    [("triton", "use backend='torch' for fp64"), ("cpu", "use backend='torch' for fp64")],
)
def test_a_named_backend_that_cannot_run_never_falls_back(backend, message):
    for operation, call in (
        (ops.logprobs_and_entropy, logits_call()),
        (ops.policy_loss, loss_call()),
        (ops.linear_logprobs_and_entropy, hidden_call()),
        (ops.linear_policy_loss, hidden_call(advantages=torch.zeros(N))),
    ):
        wide = {
            k: v.double() if k in ("logits", "hidden", "weight") else v for k, v in call.items()
        }
        with pytest.raises(UsageError, match=f"backend '{backend}' .*{message}"):
            operation(**wide, backend=backend)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"advantages": torch.ones(3)}, r"advantages has shape \(3,\).* of targets, \(4,\)"),
        ({"old_logprobs": torch.ones(N, 1)}, r"old_logprobs has shape \(4, 1\)"),
        ({"ref_logprobs": torch.ones(1)}, r"ref_logprobs has shape \(1,\)"),
        ({"sampler_logprobs": torch.ones(())}, r"sampler_logprobs has shape \(\)"),
        ({"row_weights": torch.ones(5)}, r"row_weights has shape \(5,\)"),
        ({"advantages": torch.ones(N, **META)}, "advantages is on meta, targets on cpu; move one"),
        ({"cu_seqlens": integers(1, 4)}, r"must rise from 0 to the 4 rows .*it is \[1, 4\]"),
        ({"cu_seqlens": integers(0, 3)}, r"must rise from 0 to the 4 rows .*it is \[0, 3\]"),
        ({"cu_seqlens": integers(0, 3, 2, 4)}, r"must rise .*it is \[0, 3, 2, 4\]"),
        ({"cu_seqlens": integers()}, r"must rise .*it is \[\]"),
        ({"cu_seqlens": integers([0, 4])}, r"in one dimension; it is \[0, 4\]"),
        ({"cu_seqlens": torch.tensor(4)}, "in one dimension"),
        ({"cu_seqlens": torch.tensor([0.0, 4.0])}, "is torch.float32 on cpu; allowed: int32, int"),
        ({"cu_seqlens": integers(0, 4, **META)}, "on meta; allowed: int32, int64 on cpu"),
        ({"grad_scale": torch.ones(1)}, r"grad_scale has shape \(1,\); allowed: a number or a 0-d"),
    ],
)
def test_rows(changes, message):
    for spec in (LossSpec(loss="clip"), LossSpec(loss="gspo")):
        with pytest.raises(UsageError, match=message):
            ops.policy_loss(**loss_call(**changes), spec=spec)


@pytest.mark.parametrize(
    "fields, missing, message",
    [
        ({"loss": "clip"}, "old_logprobs", "loss 'clip' needs old_logprobs.*on_policy=True"),
        ({"loss": "cispo"}, "old_logprobs", "loss 'cispo' needs old_logprobs"),
        ({"loss": "gspo"}, "old_logprobs", "loss 'gspo' needs old_logprobs"),
        (
            {"kl_estimator": "k3-corrected", "kl_coef": 0.1},
            "old_logprobs",
            "KL estimator 'k3-corrected' needs old_logprobs",
        ),
        (
            {"kl_estimator": "k2", "kl_coef": 0.1},
            "ref_logprobs",
            "KL estimator 'k2' needs ref_logprobs; give them",
        ),
        (
            {"sampler_correction": "token_mask"},
            "sampler_logprobs",
            "'token_mask' needs sampler_logprobs; give them, or sampler_correction=None",
        ),
        (
            vars(LossSpec.preset("paper")),
            "sampler_logprobs",
            "'token_truncate' needs sampler_logprobs",
        ),
        ({"loss": "gspo"}, "cu_seqlens", "loss 'gspo' with .*; give cu_seqlens"),
        (
            {"loss_agg_mode": "seq-mean-token-mean"},
            "cu_seqlens",
            "'seq-mean-token-mean' and .*; give cu_seqlens",
        ),
        (
            {"sampler_correction": "sequence_mask"},
            "cu_seqlens",
            "'sequence_mask' is one of whole sequences; give cu_seqlens",
        ),
    ],
)
def test_a_loss_that_lacks_what_it_needs(fields, missing, message):
    spec = LossSpec(**fields)
    with pytest.raises(UsageError, match=message):
        ops.policy_loss(**loss_call(**{missing: None}), spec=spec)
    ops.policy_loss(**loss_call(), spec=spec)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"loss": "ppo"}, "loss is 'ppo'; allowed: 'reinforce', 'clip', 'cispo', 'gspo'"),
        (
            {"loss_agg_mode": "mean"},
            "is 'mean'; allowed: 'token-mean', 'seq-mean-token-mean', 'seq-mean-token-sum-norm'",
        ),
        ({"kl_estimator": "k4"}, "is 'k4'; allowed: None, 'k1', 'k2', 'k3', 'k3-corrected'"),
        (
            {"sampler_correction": "truncate"},
            "is 'truncate'; allowed: None, 'token_truncate', 'token_mask', 'sequence_truncate', 's",
        ),
        ({"dual_clip": 1.0}, "dual_clip is 1.0; it must be above 1, or None"),
        ({"clip_low": -0.1}, r"clip_low -0.1 must lie in 0\.\.1"),
        ({"clip_low": 1.5}, r"clip_low 1.5 must lie in 0\.\.1"),
        ({"clip_high": -0.1}, "clip_high -0.1 must not be negative"),
        ({"clip_high": float("nan")}, "clip_high nan must not be negative"),
        ({"sampler_correction_cap": 0.0}, "correction_cap is 0.0; it must be positive"),
        ({"kl_estimator": "k1", "kl_coef": float("inf")}, "kl_coef is inf; it must be finite"),
        ({"entropy_coef": float("nan")}, "entropy_coef is nan; it must be finite"),
        ({"kl_coef": 0.1}, "kl_coef is 0.1 without a kl_estimator; name one of 'k1', 'k2', 'k3', "),
    ],
)
def test_specs(fields, message):
    with pytest.raises(UsageError, match=message):
        LossSpec(**fields)


def test_an_unknown_preset():
    with pytest.raises(UsageError, match="there is no loss preset 'drgrpo'; allowed: paper"):
        LossSpec.preset("drgrpo")


@pytest.mark.parametrize(
    "loss_fn, message",
    [
        (lambda lp, h, rows: lp, r"returned a tensor of shape \(4,\); return a scalar"),
        (lambda lp, h, rows: rows.advantages.sum(), r"shape \(\) without a gradient; return a s"),
    ],
)
def test_a_loss_fn_that_is_none(loss_fn, message):
    with pytest.raises(UsageError, match=message):
        logits = torch.zeros(N, V, requires_grad=True)
        ops.policy_loss(**loss_call(logits=logits), loss_fn=loss_fn)
