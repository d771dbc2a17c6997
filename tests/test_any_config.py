"""Any configuration either runs two steps or is refused in one sentence."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, currently_in_test_context, given, note, settings
from hypothesis import strategies as st
from test_train import lines

from fastrl.cli import main

COMMON = {
    "objective.name": ["sharpen", "task", "tilted"],
    "objective.alpha": ["none", "1", "4", "0.5", "-1", "0", "nan", "1e300"],
    "objective.beta": ["none", "0.01", "1", "0", "-2", "inf"],
    "objective.beta_inv": ["none", "10", "0"],
    "objective.mode": ["tempered", "likelihood"],
    "objective.length_norm": ["sum", "mean", "power 0.5", "power x", ""],
    "model.name": ["embedded", "embedded:0", "embedded:0.5", "nowhere"],
    "model.dtype": ["auto", "float32", "bfloat16"],
    "model.device": ["auto", "cpu", "cuda", "tpu"],
    "data.source": ["embedded", "embedded-long", "nowhere.jsonl", "hf:", "reasoning-gym:nothing"],
    "data.template": ["", "{prompt}", "no place"],
    "data.max_prompt_tokens": ["0", "1", "12", "-3"],
    "data.limit": ["0", "1", "3", "50", "-1"],
    "reward.functions": [
        "math",
        "format_tags",
        "repetition",
        "random",
        "math,soft_overlong",
        "no.such:f",
        "",
    ],
    "reward.weights": ["", "1", "1,2", "nan"],
    "reward.mode": ["box", "flexible", "hash4", "choice", "tag"],
    "sampling.prompts_per_step": ["1", "2", "3", "0", "-1"],
    "sampling.responses_per_prompt": ["1", "2", "3", "0"],
    "sampling.max_rounds": ["1", "2", "0"],
    "sampling.max_tokens": ["1", "2", "9", "0", "-4", "99999999"],
    "sampling.max_total_tokens": ["0", "1", "30"],
    "sampling.temperature": ["1", "0.5", "2", "0", "-1", "nan", "1e-30"],
    "sampling.top_p": ["1", "0.9", "0", "2"],
    "sampling.top_k": ["0", "5", "-1"],
    "sampling.min_p": ["0", "0.1", "1.5"],
    "sampling.stop": ["", "a", "=,b"],
    "sampling.ignore_eos": ["true", "false"],
    "sampling.block_size": ["1", "7", "16", "0"],
    "sampling.num_blocks": ["0", "1", "9", "40"],
    "sampling.max_batch_tokens": ["1", "33", "4096", "0"],
    "loss.preset": ["", "paper", "trl-grpo", "verl-dapo", "none such"],
    "loss.loss": ["reinforce", "clip", "cispo", "gspo"],
    "loss.advantage": ["rloo", "grpo", "dr_grpo", "reinforce"],
    "loss.loss_agg_mode": ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"],
    "loss.clip_low": ["0.2", "0", "-1", "1"],
    "loss.kl": ["none", "k1", "k2", "k3"],
    "loss.kl_coef": ["0", "0.1", "-1"],
    "loss.entropy_coef": ["0", "0.01"],
    "loss.sampler_correction": ["none", "token_truncate", "token_mask", "sequence_truncate"],
    "loss.sampler_correction_cap": ["20", "0", "1"],
    "loss.drop_groups_without_signal": ["true", "false"],
    "loss.mask_truncated": ["true", "false"],
    "optim.lr": ["6e-4", "0", "-1", "nan"],
    "optim.betas": ["0.9,0.999", "0.9", "1,1"],
    "optim.eps": ["1e-8", "0", "-1"],
    "optim.grad_clip": ["1", "0", "-1"],
    "optim.warmup_steps": ["0", "5", "-1"],
    "optim.schedule": ["constant", "linear"],
    "optim.state": ["device", "host"],
    "train.max_tokens_per_batch": ["8192", "1", "64", "0"],
    "train.checkpoint_activations": ["auto", "on", "off"],
    "train.minibatches": ["1", "2", "0"],
    "train.epochs": ["1", "2", "0"],
    "train.threads": ["0", "1", "-1"],
    "train.deterministic": ["true", "false"],
    "train.share_prompts": ["auto", "on", "off"],
    "train.score_while_sampling": ["auto", "on", "off"],
    "train.reference": ["device", "host"],
    "train.seed": ["42", "0", "-1", "99999999999999999999"],
    "train.check": ["true", "false"],
    "eval.prompts": ["0", "1", "2", "-1"],
    "eval.samples": ["1", "2", "0"],
    "eval.every": ["0", "1", "-1"],
    "eval.test_prompts": ["0", "2"],
    "checkpoint.every": ["0", "1", "-1"],
    "checkpoint.keep_last": ["0", "1", "-1"],
    "checkpoint.keep_best": ["0", "1", "-1"],
    "checkpoint.background": ["auto", "on", "off"],
    "anomaly.nonfinite": ["stop", "skip", "roll_back"],
    "anomaly.entropy_floor": ["0.001", "0", "-1"],
    "anomaly.max_attempts": ["3", "0", "-1"],
    "watchdog.sample": ["3600", "0", "-1"],
}
SMALL = {
    "train.max_steps": "2", "sampling.prompts_per_step": "2", "sampling.responses_per_prompt": "2",
    "sampling.max_tokens": "6", "eval.prompts": "0", "eval.test_prompts": "0",
}  # fmt: skip
SOME = st.lists(st.sampled_from(sorted(COMMON)), min_size=1, max_size=4, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({k: st.sampled_from(COMMON[k]) for k in keys})
)


def outcome(changes, capsys) -> str:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [w for k, v in (SMALL | changes).items() for w in (f"--{k}", v)]
        if currently_in_test_context():
            note(f"fastrl train {' '.join(words)}")
        code = main(["train", *words, "--output-dir", str(run)])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        if code == 0:
            assert [m["step"] for m in lines(run / "metrics.jsonl")] == [1, 2]
            return "ran"
        assert code in (1, 2) and err.count("\n") == 1 and err.startswith("fastrl: ")
        assert code == 2 or "step " in err or "out of memory" in err
        return "refused"


def explore(capsys, examples):
    seen = []

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(SOME)
    def one(changes):
        seen.append(outcome(changes, capsys))

    one()
    with capsys.disabled():
        print(f"\n{len(seen)} configurations: {seen.count('ran')} ran, the others were refused")
    assert seen.count("ran") > examples / 10 and seen.count("refused") > examples / 10


def test_some_configurations(capsys):
    explore(capsys, 25)


@pytest.mark.slow
def test_many_configurations(capsys):
    explore(capsys, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("key", COMMON)
def test_every_value_alone(key, capsys):
    for value in COMMON[key]:
        outcome({key: value}, capsys)
