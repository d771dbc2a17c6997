"""The losses of TRL and verl by their presets, against what those frameworks' own code computed.

`golden/make.py` wrote the numbers down, with their versions. Some log-ratios pass e^20 there.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrl import ops
from fastrl.losses import PRESETS, loss_denominator
from fastrl.ops import library

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())
SMALLEST_RATIO = math.exp(-20)  # verl's; here ratios go to 0
CHANGES = {  # of the preset before the comma
    "two-sided": {"dual_clip": 1.5},
    "kl": {"kl_estimator": "k3", "kl_coef": 0.04},
    "corrected kl": {"kl_estimator": "k3-corrected", "kl_coef": 0.04},
}


def spec_of(name):
    preset, _, change = name.partition(", ")
    return replace(ops.LossSpec.preset(preset), **CHANGES.get(change, {}))


def computed(name, backend, dtype):
    """(loss, its gradient by the log-probs [B, L]) through the public operation."""
    values = GOLDEN["inputs"][name.partition("-")[0].partition(",")[0]]
    logprobs, old, ref, advantages = (
        torch.tensor(values[n], dtype=torch.float64)
        for n in ("logprobs", "old", "ref", "advantages")
    )
    mask = torch.tensor(values["mask"])
    rows, longest = logprobs.shape
    # two logits whose first log-prob is the given one: d log-prob / d logit is the other's p
    others = -torch.expm1(logprobs)
    first = logprobs - others.log()
    logits = torch.stack([first, torch.zeros_like(first)], -1).to(dtype).requires_grad_()
    spec = spec_of(name)
    denominator = loss_denominator(
        spec, num_tokens=int(mask.sum()), num_sequences=GOLDEN["losses"][name]["sequences"],
        max_tokens=longest,
    )  # fmt: skip
    output = ops.policy_loss(
        logits, torch.zeros_like(mask, dtype=torch.int64),
        advantages[:, None].expand(rows, longest), old_logprobs=old, ref_logprobs=ref, mask=mask,
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * longest,
        grad_scale=1 / denominator, spec=spec, backend=backend,
    )  # fmt: skip
    output.loss_sum.backward()
    return output.loss_sum.detach().double(), logits.grad[..., 0].double() / others


@pytest.mark.parametrize("name", GOLDEN["losses"])
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("torch", torch.float64, 1e-12), ("torch", torch.float32, 2e-5), ("cpu", torch.float32, 2e-5)],
    ids=["torch-fp64", "torch-fp32", "cpu-fp32"],
)
def test_a_preset_is_the_frameworks_own_loss(name, backend, dtype, tolerance):
    if backend == "cpu" and not library.HAS_EXTENSION:
        pytest.skip("the extension fastrl._C is not built")
    expected = GOLDEN["losses"][name]
    if name.startswith("verl"):
        tolerance = max(tolerance, SMALLEST_RATIO)
    loss, gradient = computed(name, backend, dtype)
    right = torch.tensor(expected["gradient"], dtype=torch.float64)
    scale = float(right.abs().max())
    assert abs(float(loss) - expected["loss"]) <= tolerance * max(1.0, abs(expected["loss"]))
    assert float((gradient - right).abs().max()) <= tolerance * scale
    assert scale > 0


def test_every_preset_of_a_framework_is_compared():
    compared = {name.partition(",")[0] for name in GOLDEN["losses"]}
    assert compared == set(PRESETS) - {"paper"}


def test_the_frameworks_differ_where_their_presets_do():
    """The numbers can tell presets apart: with another one's settings the test above would fail."""
    for name, other in (
        ("verl-ppo", "trl-dapo"),
        ("verl-cispo", "trl-cispo"),
        ("verl-gspo", "trl-gspo"),
    ):
        spec = ops.LossSpec.preset(other)
        assert spec != ops.LossSpec.preset(name)
        expected = GOLDEN["losses"][name]["loss"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(PRESETS, name, spec)
            loss, _ = computed(name, "torch", torch.float64)
        assert abs(float(loss) - expected) > 1e-3 * abs(expected)
