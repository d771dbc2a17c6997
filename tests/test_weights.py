"""Weights from Hugging Face directories and back, and what is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_model import our_logits, their_logits
from tiny_models import write_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastrl.errors import UsageError
from fastrl.model import Decoder, DecoderConfig, load_model
from fastrl.weights import hf_tensors, load_weights, read_json, save_model

SOME = "model.layers.1.mlp.up_proj.weight"


def decoder(directory, dtype=torch.float32):
    config = DecoderConfig.from_hf(read_json(directory / "config.json"))
    return Decoder(config, dtype=dtype)


def rewrite(directory, change):
    """Let `change` edit the stored tensors."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
)
def test_a_saved_model_loads_in_transformers_with_the_same_logits(
    tmp_path, family, overrides, dtype
):
    write_tiny_model(tmp_path / "source", family, **overrides)
    model = load_model(tmp_path / "source", dtype=dtype, device="cpu").init_weights(3, std=0.2)
    save_model(model, tmp_path / "source", tmp_path / "out")

    # without dtype: config.json has to name the right one
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not any(report.values()), report
    assert loaded.dtype == dtype
    with torch.no_grad():
        actual, expected = our_logits(model.float()), their_logits(loaded.float())
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
        again = load_model(tmp_path / "out", dtype=torch.float32, device="cpu")
        assert torch.equal(our_logits(again), actual)
    assert again.valid_vocab == model.valid_vocab
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert ("lm_head.weight" in file.keys()) != model.config.tie_embeddings  # noqa: SIM118


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was touched")

    write_tiny_model(tmp_path / "source")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"never copied")
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refuse)
    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    model = load_model(tmp_path / "source", device="cpu")
    save_model(model, tmp_path / "source", tmp_path / "out")
    kinds = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert kinds <= {".json", ".safetensors", ".jinja"}


def test_an_older_dtype_key_does_not_outlive_the_save(tmp_path):
    write_tiny_model(tmp_path / "source")
    edit_config(tmp_path / "source", torch_dtype="float16")
    model = load_model(tmp_path / "source", dtype="bfloat16", device="cpu")
    save_model(model, tmp_path / "source", tmp_path / "out")
    saved = read_json(tmp_path / "out" / "config.json")
    assert saved["dtype"] == "bfloat16" and "torch_dtype" not in saved


def test_saving_over_the_source_keeps_its_files(tmp_path):
    write_tiny_model(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    model = load_model(tmp_path, device="cpu").init_weights(1)
    save_model(model, tmp_path, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    again = load_model(tmp_path, device="cpu")
    assert torch.equal(again.layers[2].qkv.weight, model.layers[2].qkv.weight)


def test_the_views_write_through_and_cover_every_parameter(tmp_path):
    write_tiny_model(tmp_path, "qwen2")
    model = decoder(tmp_path)
    for tensor in hf_tensors(model).values():
        tensor.fill_(7.0)
    for name, parameter in model.named_parameters():
        assert (parameter == 7.0).all(), name


def test_sharded_weights(tmp_path):
    theirs = write_tiny_model(tmp_path / "one", "qwen3")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    one, many = decoder(tmp_path / "one"), decoder(tmp_path / "many")
    load_weights(one, tmp_path / "one")
    load_weights(many, tmp_path / "many")
    assert torch.equal(our_logits(one), our_logits(many))

    shards[1].unlink()
    with pytest.raises(UsageError, match=f"lacks {shards[1].name}"):
        load_weights(many, tmp_path / "many")


def test_a_tensor_that_is_there_twice(tmp_path):
    theirs = write_tiny_model(tmp_path)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "model.safetensors").unlink()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    last = tmp_path / max(index.values())
    again = load_file(last) | {"model.embed_tokens.weight": torch.zeros(64, 48)}
    assert index["model.embed_tokens.weight"] != last.name
    save_file(again, last, metadata={"format": "pt"})
    with pytest.raises(UsageError, match="model.embed_tokens.weight is in .* and in .*"):
        load_weights(decoder(tmp_path), tmp_path)


def test_a_tied_head_stored_all_the_same(tmp_path):
    write_tiny_model(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    load_weights(decoder(tmp_path), tmp_path)
    rewrite(tmp_path, lambda t: t["lm_head.weight"].add_(1.0))
    with pytest.raises(UsageError, match="lm_head.weight.*tie_word_embeddings to false"):
        load_weights(decoder(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(SOME), f"lacks the weights {SOME}: "),
        (lambda t: [t.pop(n) for n in list(t) if "layers.0" in n], "input_layernorm.* and 6 more"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight: set tie_word_embeddings to true"),
        (lambda t: t.update({"model.extra": torch.ones(1)}), "no place for, model.extra"),
        (lambda t: t.update({SOME: torch.ones(2, 3)}), rf"{SOME} .*\[2, 3\].*\[80, 48\]"),
        (lambda t: t.update({SOME: t[SOME].to(torch.int8)}), f"{SOME} .*I8.*BF16"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, said):
    write_tiny_model(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(UsageError, match=said):
        load_weights(decoder(tmp_path), tmp_path)


def test_a_layer_too_many_and_a_layer_too_few(tmp_path):
    write_tiny_model(tmp_path)
    edit_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(UsageError, match=r"no place for, model\.layers\.2\."):
        load_weights(decoder(tmp_path), tmp_path)
    edit_config(tmp_path, num_hidden_layers=4)
    with pytest.raises(UsageError, match=r"lacks the weights model\.layers\.3\."):
        load_weights(decoder(tmp_path), tmp_path)


def test_old_rotary_buffers_are_no_weights(tmp_path):
    write_tiny_model(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda t: t.update({name: torch.ones(6)}))
    load_weights(decoder(tmp_path), tmp_path)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    write_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickle.*save_pretrained"):
        load_weights(decoder(tmp_path), tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match="no weights.*model.safetensors"):
        load_weights(decoder(tmp_path), tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    write_tiny_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="model.safetensors cannot be read"):
        load_weights(decoder(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="config.json is not JSON"):
        load_model(tmp_path)


def test_the_message_is_one_sentence_on_one_line(tmp_path):
    write_tiny_model(tmp_path)
    rewrite(tmp_path, lambda t: t.pop(SOME))
    with pytest.raises(UsageError) as caught:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(caught.value) and ". " not in str(caught.value)
