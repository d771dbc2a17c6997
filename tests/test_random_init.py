"""Runs of random weights: where shapes and tokenizer come from, checkpoints, resuming."""

import json

import pytest
import torch
from tiny_models import tiny_tokenizer, write_tiny_model

from fastrl.checkpoint import sha256
from fastrl.cli import main
from fastrl.config import Config, parse_overrides
from fastrl.errors import Unavailable, UsageError
from fastrl.model_config import DecoderConfig
from fastrl.random_init import random_model, random_sha256
from fastrl.run import assemble
from fastrl.shapes import HUB_IDS, SHAPES, outline

TINY = DecoderConfig("qwen3", 96, 24, 40, 2, 4, 2, 8, 256, tie_embeddings=True, qk_norm=True)
FEW = [
    "--model.random-init", "--train.max_steps", "2", "--eval.prompts", "0",
    "--eval.test_prompts", "0", "--sampling.prompts_per_step", "2", "--sampling.max_tokens", "12",
    "--optim.schedule", "constant", "--checkpoint.every", "1",
]  # fmt: skip


@pytest.fixture
def shapes(tmp_path) -> str:
    """A directory of shapes alone."""
    path = tmp_path / "shapes"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINY.to_hf()))
    return str(path)


def train(model: str, out, *words: str) -> int:
    return main(["train", "--model", model, "--output-dir", str(out), *FEW, *words])


def weights(run, step: int) -> str:
    return sha256(run / "checkpoints" / f"step_{step}" / "model.safetensors")


def test_a_run_of_shapes_alone_saves_resumes_and_loads_elsewhere(shapes, tmp_path, capsys):
    import shutil

    from transformers import AutoModelForCausalLM

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(shapes, whole) == 0
    assert "random weights: the shapes of" in capsys.readouterr().out
    assert [line["kl"] for line in metrics(whole)][0] == 0  # the reference has the same weights
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step_2")
    assert main(["resume", str(cut)]) == 0
    assert weights(cut, 2) == weights(whole, 2) != weights(whole, 1)
    theirs = AutoModelForCausalLM.from_pretrained(whole / "checkpoints" / "step_2")
    assert theirs.config.vocab_size == 96 and theirs.config.model_type == "qwen3"
    assert main(["sample", str(whole), "--prompt", "1+1", "--max-tokens", "4"]) == 0


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_resuming_insists_on_the_same_weights(shapes, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(shapes, run) == 0
    settings = run / "config.toml"
    settings.write_text(settings.read_text().replace("seed = 42", "seed = 43"))
    assert main(["resume", str(run)]) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err


def test_the_digest_is_that_of_seed_and_shapes(shapes):
    found = outline(shapes)
    other = type(found)(found.name, SHAPES["Qwen3-0.6B"], None)
    assert random_sha256(found, 1) == random_sha256(outline(shapes), 1)
    assert len({random_sha256(found, 1), random_sha256(found, 2), random_sha256(other, 1)}) == 3


def test_with_the_embedded_tokenizer_the_head_keeps_its_shape(shapes):
    run = assemble(parse_overrides(Config(), ["--model", shapes, *FEW]))
    policy, reference = run.learner.policy, run.learner.reference
    assert policy.valid_vocab == reference.valid_vocab == 96 > run.tokenizer.valid_vocab
    assert policy.eos_token_ids == run.tokenizer.eos_token_ids
    pairs = list(zip(policy.parameters(), reference.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert all(a.requires_grad and not b.requires_grad for a, b in pairs)
    assert run.tokenizer.decode([95, 90]) == ""


def test_a_models_own_tokenizer_is_taken(tmp_path):
    write_tiny_model(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    found = outline(str(tmp_path))
    assert found.has_tokenizer
    model = random_model(found, 0, dtype=torch.float32, device="cpu")
    assert model.valid_vocab == max(tiny_tokenizer().get_vocab().values()) + 1


def test_a_vocabulary_too_small_for_a_substitute_is_refused(tmp_path):
    values = TINY.to_hf(vocab_size=8)
    (tmp_path / "config.json").write_text(json.dumps(values | {"vocab_size": 8}))
    with pytest.raises(UsageError, match="vocabulary of 8.*own tokenizer"):
        random_sha256(outline(str(tmp_path)), 0)


def test_known_names_have_shapes_without_a_hub(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    for name, short in HUB_IDS.items():
        assert outline(name).config == SHAPES[short] and outline(name).directory is None
    with pytest.raises(UsageError, match="could not be had from the hub"):
        outline("nobody/nothing")
    assert issubclass(Unavailable, UsageError)


def test_without_random_init_a_model_that_is_not_here_is_refused(monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert main(["train", "--model", "Qwen/Qwen3-0.6B"]) == 2
    assert "could not be had from the hub" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["train", "--model.device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err
