"""The decoder against transformers, and its attention against a loop over sequences."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_models import LLAMA3_ROPE, VOCAB_SIZE, tiny_model, write_tiny_model

from fastrl.errors import UsageError
from fastrl.model import Decoder, DecoderConfig, PackedAttention, load_model, resolve_model
from fastrl.weights import hf_tensors, load_weights

LENGTHS = (1, 7, 30, 7, 100, 2)
CASES = {
    "llama-grouped": ("llama", {}),
    "llama-multihead-rope3": ("llama", {"num_key_value_heads": 4, "rope_parameters": LLAMA3_ROPE}),
    "llama-multiquery-tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 20, "rms_norm_eps": 1e-5}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {"num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "qwen3-untied": ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def pair(request, tmp_path):
    """The same weights in transformers and in a Decoder, by way of the disk."""
    family, overrides = request.param
    theirs = tiny_model(family, **overrides)
    theirs.save_pretrained(tmp_path)
    ours = Decoder(DecoderConfig.from_hf(theirs.config.to_dict()))
    load_weights(ours, tmp_path)
    return theirs, ours


def packed(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(VOCAB_SIZE, (sum(lengths),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    offsets = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return token_ids, positions, offsets


def our_logits(model):
    token_ids, positions, offsets = packed()
    hidden = model(token_ids, positions, PackedAttention(offsets, max(LENGTHS)))
    return model.logits(hidden)


def their_logits(model):
    token_ids, _, _ = packed()
    return torch.cat([model(ids[None]).logits[0] for ids in token_ids.split(LENGTHS)])


def cast(model, dtype):
    """Cast the parameters alone: Module.to would round transformers' rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def test_fp32_logits_agree_with_transformers(pair):
    theirs, ours = pair
    with torch.no_grad():
        expected, actual = their_logits(theirs), our_logits(ours)
    assert expected.std() > 0.5  # a flat output would agree with anything
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_gradients_agree_with_transformers(pair):
    theirs, ours = pair
    weights = torch.randn(sum(LENGTHS), VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    (F.log_softmax(their_logits(theirs), -1) * weights).sum().backward()
    (F.log_softmax(our_logits(ours), -1) * weights).sum().backward()
    actual = hf_tensors(ours, lambda parameter: parameter.grad)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=2e-5 * scale, msg=name)


def test_bf16_is_no_further_from_the_truth_than_twice_transformers(pair):
    theirs, ours = pair
    with torch.no_grad():
        cast(theirs, torch.bfloat16)
        ours.bfloat16()
        their_error, our_error = their_logits(theirs).double(), our_logits(ours).double()
        truth = their_logits(cast(theirs, torch.float64))  # of the rounded weights
        their_error, our_error = their_error - truth, our_error - truth
    assert our_error.abs().max() <= 2 * their_error.abs().max()
    assert our_error.square().mean() <= 4 * their_error.square().mean()


def test_float64_runs_throughout(pair):
    theirs, ours = pair
    with torch.no_grad():
        expected, actual = their_logits(cast(theirs, torch.float64)), our_logits(ours.double())
    assert actual.dtype == torch.float64
    # transformers rounds its norms and angles to fp32 even here
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def test_rotary_frequencies_survive_a_change_of_dtype():
    ours = Decoder(DecoderConfig.from_hf(tiny_model("llama").config.to_dict())).init_weights(0, 0.3)
    cast(cast(ours, torch.bfloat16), torch.float32)  # so that what follows rounds no weight
    before = our_logits(ours)
    assert torch.equal(our_logits(ours.bfloat16().float()), before)


def test_init_weights_repeats_and_is_a_fair_start():
    config = DecoderConfig.from_hf(tiny_model("qwen2").config.to_dict())
    first, second = Decoder(config).init_weights(5), Decoder(config).init_weights(5)
    other = Decoder(config).init_weights(6)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))
        if parameter.dim() == 2:
            assert not torch.equal(parameter, other.get_parameter(name))
    assert first.layers[0].qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    narrow = 0.02 / (2 * config.num_layers) ** 0.5
    assert first.layers[0].down.weight.std().item() == pytest.approx(narrow, rel=0.05)
    assert (first.layers[0].qkv.bias == 0).all() and (first.norm.weight == 1).all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_config_round_trip(family):
    overrides = {"rope_parameters": LLAMA3_ROPE} if family == "llama" else {}
    config = DecoderConfig.from_hf(tiny_model(family, **overrides).config.to_dict())
    assert DecoderConfig.from_hf(config.to_hf()) == config


def test_config_of_older_transformers():
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    new = tiny_model("llama", rope_parameters=LLAMA3_ROPE).config.to_dict()
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": 500.0, "rope_scaling": scaling}
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(new)
    old["rope_scaling"] = None
    assert DecoderConfig.from_hf(old) == dataclasses.replace(
        DecoderConfig.from_hf(new), rope_scaling=None
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"rope_parameters": "yarn"}, "rotary settings 'yarn'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
    ],
)
def test_a_config_that_cannot_run_is_refused_by_name(change, named):
    values = tiny_model("llama").config.to_dict() | change
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(UsageError, match=named):
        DecoderConfig.from_hf(values)


def test_load_model_takes_valid_vocab_from_the_tokenizer(tmp_path):
    theirs = write_tiny_model(tmp_path, "qwen3")
    model = load_model(tmp_path, device="cpu")
    assert model.valid_vocab == 32 < model.config.vocab_size
    assert model.head_weight.dtype == torch.float32
    torch.testing.assert_close(our_logits(model), their_logits(theirs), rtol=0, atol=1e-4)


def test_load_model_dtypes(tmp_path):
    tiny = write_tiny_model(tmp_path)
    assert load_model(tmp_path, dtype="bfloat16", device="cpu").embed.dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float64, device="cpu").embed.dtype == torch.float64
    tiny.to(torch.float16).save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype="auto", device="cpu").embed.dtype == torch.float16
    with pytest.raises(UsageError, match="'int8'.*bfloat16"):
        load_model(tmp_path, dtype="int8", device="cpu")


def test_a_model_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no-such-model.*ORG/NAME"):
        resolve_model("no-such-model")
    with pytest.raises(UsageError, match="config.json"):
        resolve_model(tmp_path)

    def offline(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UsageError, match="org/name.*no route"):
        resolve_model("org/name")


def test_the_hub_is_asked_for_no_pickle(tmp_path, monkeypatch):
    asked = {}

    def snapshot(name, *, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve_model("org/name") == tmp_path
    assert not any(pattern.endswith(("bin", "pt", "*")) for pattern in asked["org/name"])


def test_importing_the_model_leaves_transformers_out():
    code = "import sys, fastrl.model, fastrl.weights; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
