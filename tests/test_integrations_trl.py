"""TRL's own trainers with fastrl's log-probs: the same losses, gradients and metrics, step by step.

Each case trains twice from one seed, without the patch and with it: steps of a few responses with
models of random weights. Of what a step logs all is compared but times, and in the end the weights.
"""

import functools
import importlib.util
import json
import warnings

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_tokenizer, write_tiny_model

if importlib.util.find_spec("trl") is None:  # one that cannot be imported is a failure
    pytest.skip("trl is not installed; pip install 'fastrl[trl]'", allow_module_level=True)

from bench_table import table
from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from fastrl import ops
from fastrl.cli import main
from fastrl.errors import UsageError
from fastrl.integrations import trl as integration
from fastrl.ops import head

STEPS = 5
TIMES = ("_runtime", "_per_second", "step_time")
PROMPTS = ["1+1=", "23*", "(4+5)*2=", "7-"]
GRPO_CASES = {
    "dapo": {},
    "dapo, every temperature": {"temperature": 0.7},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.05},
    "sapo": {"loss_type": "sapo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 1e-3},
    "two updates": {"num_iterations": 2, "epsilon": 0.01, "delta": 1.5},
    "beta": {"beta": 0.1},
    "beta, corrected": {"beta": 0.1, "num_iterations": 2, "use_bias_correction_kl": True},
    "top entropy": {"top_entropy_quantile": 0.5},
    "entropy bonus": {"entropy_coef": 0.05},
    "off-policy mask": {"num_iterations": 2, "off_policy_mask_threshold": 0.01},
    "masked truncations": {"mask_truncated_completions": True},
    "gradient accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "head in fp32": {"cast_lm_head_to_fp32": True},
}
OF_TOKENS = [
    "dapo", "dapo, every temperature", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "two updates",
    "beta", "beta, corrected", "entropy bonus", "masked truncations", "gradient accumulation",
    "checkpointing", "head in fp32",
]  # fmt: skip


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """Chunks of seven rows, so that a loss in the forward is one of several."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 4 * VOCAB_SIZE * 7)
    monkeypatch.setattr(head, "CHUNK_ROWS", 1)
    yield
    integration.unpatch_trl()


def digits(completions, **_):
    return [sum(c.isdigit() for c in text) / 8 for text in completions]


def settings(directory, **changes):
    return {
        "output_dir": str(directory), "max_steps": STEPS, "logging_steps": 1, "report_to": "none",
        "learning_rate": 3e-3, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "bf16": False, "per_device_train_batch_size": 8, "gradient_checkpointing": False,
        "lr_scheduler_type": "constant", "seed": 3,
    } | changes  # fmt: skip


def policy(trainer, config, directory, family="llama", peft=None, **changes):
    """A trainer of a policy that samples."""
    size = {"num_generations": 4, "max_completion_length": 8}
    write_tiny_model(directory / "model", family)
    return trainer(
        model=str(directory / "model"),  # where the reference is read too
        reward_funcs=digits,
        args=config(**settings(directory, **size, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tiny_tokenizer(None),
        peft_config=peft,
    )


def trained(make, patch=None):
    """What each step logs but for times, the weights, and the calls of the fused head."""
    integration.unpatch_trl()
    if patch is not None:
        integration.patch_trl(**patch)
    before = integration.FusedHead.calls
    torch.manual_seed(0)
    trainer = make()
    trainer.train()
    integration.unpatch_trl()
    logs = [
        {name: value for name, value in log.items() if not name.endswith(TIMES)}
        for log in trainer.state.log_history
    ]
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return logs, weights, integration.FusedHead.calls - before


def assert_the_same(make, patch, rtol=2e-4, atol=2e-5):
    plain, weights, none = trained(make)
    found, ours, calls = trained(make, patch)
    assert none == 0 and calls >= STEPS
    assert len(found) == len(plain) == STEPS + 1
    for step, (log, right) in enumerate(zip(found, plain, strict=True)):
        assert log.keys() == right.keys()
        for name, value in right.items():
            limits = {} if value is None else {"rel": rtol, "abs": atol}  # TRL's word for a NaN
            assert log[name] == pytest.approx(value, **limits), (step, name)
    assert any(log.get("grad_norm", 0) > 0 for log in plain), "nothing was trained"
    for name, value in weights.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("changes", GRPO_CASES.values(), ids=GRPO_CASES)
def test_grpo(changes, tmp_path):
    make = functools.partial(policy, GRPOTrainer, GRPOConfig, tmp_path, **changes)
    assert_the_same(make, {})


@pytest.mark.parametrize("name", OF_TOKENS)
def test_grpo_with_its_loss_in_the_forward(name, tmp_path, monkeypatch):
    """Never a second time, and the backward has nothing left to do."""
    calls = []
    rowwise = head.rowwise_loss
    monkeypatch.setattr(head, "rowwise_loss", lambda *a: calls.append(1) or rowwise(*a))
    make = functools.partial(policy, GRPOTrainer, GRPOConfig, tmp_path, **GRPO_CASES[name])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*depend on other rows")
        assert_the_same(make, {"loss_in_forward": True})
    # of steps whose responses were all cut off there is nothing to compute
    assert len(calls) >= (1 if name == "masked truncations" else STEPS)


@pytest.mark.parametrize("name", sorted(GRPO_CASES.keys() - OF_TOKENS))
def test_a_loss_of_sequences_stays_after_the_forward(name, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "rowwise_loss", None)
    make = functools.partial(policy, GRPOTrainer, GRPOConfig, tmp_path, **GRPO_CASES[name])
    assert_the_same(make, {"loss_in_forward": True})


def test_prompts_and_padding_stay_out_of_the_head(tmp_path, monkeypatch):
    rows = []
    apply = integration.FusedHead.apply
    monkeypatch.setattr(
        integration.FusedHead, "apply", lambda *a: rows.append(len(a[3])) or apply(*a)
    )
    make = functools.partial(policy, GRPOTrainer, GRPOConfig, tmp_path)
    logs, _, _ = trained(make, {})
    lengths = [log["completions/mean_length"] for log in logs[:STEPS]]
    assert rows == [8 * mean for mean in lengths]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("patch", [{}, {"loss_in_forward": True}], ids=["first", "second"])
def test_families(family, patch, tmp_path):
    assert_the_same(functools.partial(policy, GRPOTrainer, GRPOConfig, tmp_path, family), patch)


@pytest.mark.parametrize("patch", [{}, {"loss_in_forward": True}], ids=["first", "second"])
def test_peft(patch, tmp_path, monkeypatch):
    """The head's weight takes no gradient, and none is computed."""
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed; pip install peft")
    from peft import LoraConfig

    monkeypatch.setattr(head._Products, "_weight_memory", None)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    make = functools.partial(
        policy, GRPOTrainer, GRPOConfig, tmp_path, peft=lora, gradient_checkpointing=True, beta=0.05
    )
    assert_the_same(make, patch)


def test_rloo(tmp_path):
    assert_the_same(functools.partial(policy, RLOOTrainer, RLOOConfig, tmp_path, beta=0.05), {})


PAIRS = {
    "prompt": PROMPTS,
    "chosen": ["2", "46", "18", "2+1"],
    "rejected": ["3*", "1", "(0)", "77"],
}
OFFLINE = {
    "dpo": (DPOTrainer, DPOConfig, PAIRS, {}),
    "dpo, weighted": (DPOTrainer, DPOConfig, PAIRS, {"use_weighting": True}),
    "kto": (
        KTOTrainer, KTOConfig,
        {"prompt": PROMPTS, "completion": PAIRS["chosen"], "label": [True, False, True, False]},
        {"per_device_train_batch_size": 4},
    ),
    "sft": (SFTTrainer, SFTConfig, {"text": ["1+1=2", "23*46", "(4+5)*2=18", "7-2+1"]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFLINE)
def test_trainers_of_given_responses(name, tmp_path):
    kind, config, columns, changes = OFFLINE[name]

    def make():
        write_tiny_model(tmp_path / "model", pad_token_id=0)
        return kind(
            model=str(tmp_path / "model"), args=config(**settings(tmp_path, **changes)),
            train_dataset=Dataset.from_dict(columns), processing_class=tiny_tokenizer(None),
        )  # fmt: skip

    assert_the_same(make, {})


HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "scale": {"logit_scale": 0.3},
    "cap": {"final_logit_softcapping": 4.0},
}


@pytest.mark.parametrize("outputs", [(), ("entropy",), integration.OUTPUTS], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("changes", HEADS.values(), ids=HEADS)
def test_the_head_is_trls_function(changes, bias, outputs):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*n, generator=generator) for n in ((23, 16), (50, 16), (50,))]
    targets = torch.randint(50, (23,), generator=generator)
    targets[:9] = (values[0] @ values[1].T + bias * values[2]).argmax(1)[:9]
    call = {"temperature": 1.0, "chunk_size": 32, "outputs": outputs} | changes
    found = []
    integration.patch_trl()
    for apply in (by_keywords(ChunkedLogProbFunction.apply), integration.FusedHead.apply):
        hidden, weight, added = (v.clone().requires_grad_() for v in values)
        results = apply(hidden, weight, added if bias else None, targets, **call)
        loss = results[0].sin().sum() + (0 if results[1] is None else results[1].cos().sum())
        loss.backward()
        assert [r is not None and r.requires_grad for r in results[2:]] == [False] * 3
        found.append((*results, hidden.grad, weight.grad, added.grad))
    for right, ours in zip(*found, strict=True):
        assert (right is None) == (ours is None)
        if right is not None:
            torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def by_keywords(apply):
    """TRL's function, whose `apply` takes no names."""

    def call(hidden, weight, bias, targets, temperature, chunk_size, outputs,
             final_logit_softcapping=None, logit_scale=1.0):  # fmt: skip
        return apply(
            hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping,
            logit_scale, outputs,
        )  # fmt: skip

    return call


def test_autocast_is_trls():
    """Products in bf16, as TRL takes them; its logits are rounded too."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (23, 50))
    targets = torch.randint(50, (23,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            apply(hidden, weight, None, targets, 1.0, 32, None, 1.0, ("entropy",))
            for apply in (ChunkedLogProbFunction.apply, integration.FusedHead.apply)
        ]
    exact = ops.linear_logprobs_and_entropy(
        hidden.bfloat16().float(), weight.bfloat16().float(), targets
    )
    for right, theirs, ours in zip(exact, *(f[:2] for f in found), strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - right).abs().max() <= 1e-5 < (theirs - right).abs().max() < 0.05


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_functions_of_logits(temperature, masked):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 50, generator=generator)
    index = torch.randint(50, (3, 7), generator=generator)
    mask = (index % 3 > 0).long() if masked else None

    def values():
        leaf = logits.clone().requires_grad_()
        first = utils.selective_log_softmax(leaf, index, temperature, mask)
        second, third = utils.selective_log_softmax_and_entropy(
            leaf, index, True, temperature, row_mask=mask
        )
        fourth = utils.entropy_from_logits(leaf)
        _, detached = utils.selective_log_softmax_and_entropy(leaf, index, False)
        assert not detached.requires_grad
        found = [first, second, third, fourth]
        (first + 2 * second.cos() + third.sin() + fourth).sum().backward()
        several = utils.selective_log_softmax(leaf, torch.stack([index, index // 2], -1))
        return [*found, leaf.grad, detached, several]

    plain = values()
    integration.patch_trl()
    for ours, right in zip(values(), plain, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


def test_every_name_is_replaced_and_comes_back():
    import trl.kernels
    from trl.trainer import grpo_trainer

    def held():
        return [
            trl.kernels.ChunkedLogProbFunction, utils._ChunkedLogProbFunction, utils._use_triton,
            utils.selective_log_softmax, utils.entropy_from_logits,
            utils.selective_log_softmax_and_entropy, grpo_trainer.GRPOTrainer._compute_loss,
        ]  # fmt: skip

    before = held()
    assert before[0] is ChunkedLogProbFunction
    for patches in ([{}], [{"loss_in_forward": True}, {}], [{}, {"loss_in_forward": True}]):
        for patch in patches:
            integration.patch_trl(**patch)
        count = 7 if patches[-1] else 6
        assert not any(a is b for a, b in zip(held()[:count], before, strict=False))
        assert all(a is b for a, b in zip(held()[count:], before[count:], strict=True))
        integration.unpatch_trl()
        integration.unpatch_trl()
        assert all(a is b for a, b in zip(held(), before, strict=True))


def test_the_benchmark_takes_turns(tmp_path):
    out = tmp_path / "rows.json"
    command = "bench step --only trl --model embedded --shape 2,4,4 --dtype float32 --repeats 1"
    assert main([*command.split(), "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["name"] for row in rows] == ["trl", "trl, patched", "trl, loss in the forward"]
    assert all(0 < row["loss_ms"] < row["ms"] for row in rows)
    assert [row["speedup"] for row in rows] == [
        None, *(pytest.approx(rows[0]["ms"] / row["ms"]) for row in rows[1:])
    ]  # fmt: skip
    assert "| trl, patched | embedded | 2 x 4 x 4 | float32 |" in table(rows, "trl")


def test_a_version_that_was_not_tried_is_refused(monkeypatch):
    import trl

    monkeypatch.setattr(trl, "__version__", "9.9.9")
    with pytest.raises(UsageError, match=r"trl 9.9.9 is installed.*tested with 1\.16\.0 only"):
        integration.patch_trl()


def test_a_head_in_parts_is_refused():
    hidden, weight = torch.randn(2, 4), torch.randn(5, 4)
    weight.ds_id = 0
    with pytest.raises(UsageError, match="ZeRO-3"):
        integration.FusedHead.apply(hidden, weight, None, torch.zeros(2).long(), 1.0, 8)
