"""Every configuration that ships is one that a run would accept."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.config import Config, parse_overrides, read_toml
from fastrl.objectives import check_contradictions
from fastrl.preparation import check_numbers
from fastrl.run import loss_spec

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_configuration_is_accepted(path):
    config = read_toml(path)
    check_contradictions(config)
    check_numbers(config)
    loss_spec(config)


RECIPES = [p for p in CONFIGS if "-math" in p.stem or "-deepscaler" in p.stem]
STUDY = {  # prompts x responses, steps, tokens in all
    "llama-3.2-3b-math": (32, 8, 500, 2048),
    "qwen2.5-3b-math": (32, 8, 500, 2048),
    "qwen3-4b-deepscaler": (64, 8, 1000, 4096),
}


def processes(path: Path) -> int:
    """Of a recipe, by its name."""
    found = re.search(r"-(\d)gpu$", path.stem)
    return int(found[1]) if found else 1


@pytest.fixture
def offline(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_fits_its_gpus(path, offline, capsys):
    words = ["--dry-run", "--memory", "80GB", "--processes", str(processes(path)), "--json"]
    assert main(["train", str(path), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    memory, setting = found["memory"], found["config"]["train"]["checkpoint_activations"]
    assert memory["fits"] and memory["checkpointed"] == (setting == "on")
    assert all("no network" in line or "not asked" in line for line in found["data"].values())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_the_studys(path):
    config = read_toml(path)
    sampling, optim = config.sampling, config.optim
    assert (
        sampling.prompts_per_step,
        sampling.responses_per_prompt,
        config.train.max_steps,
        sampling.max_total_tokens,
    ) == STUDY[re.sub(r"-\dgpu$", "", path.stem)]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (
        1e-6,
        (0.9, 0.999),
        1e-8,
        0.01,
    )
    assert (optim.grad_clip, optim.warmup_steps, optim.warmup_from) == (1.0, 50, 0.1)
    assert (optim.schedule, config.train.seed, config.loss.advantage) == ("constant", 42, "rloo")
    spec, _ = loss_spec(config)
    assert (spec.loss, spec.loss_agg_mode, spec.kl_coef) == ("reinforce", "token-mean", 0)
    assert (spec.sampler_correction, spec.sampler_correction_cap) == ("token_truncate", 20)
    assert config.eval.samples == 16 and config.model.dtype == "auto"
    assert sampling.prompts_per_step % processes(path) == 0


def test_the_recipes_of_a_model_differ_in_what_its_gpus_hold_alone():
    for stem in STUDY:
        for variant in (p for p in RECIPES if p.stem.startswith(f"{stem}-")):
            train = read_toml(variant).train
            one = read_toml(variant.with_name(f"{stem}.toml"))
            assert replace(read_toml(variant), train=one.train) == one
            kept = {
                k: getattr(one.train, k) for k in ("max_tokens_per_batch", "checkpoint_activations")
            }
            assert replace(train, **kept) == one.train


@pytest.mark.parametrize("objective", ["sharpen", "task", "tilted"])
@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem != "null"], ids=lambda p: p.stem)
def test_a_recipe_takes_every_objective_on_the_command_line(path, objective):
    config = parse_overrides(read_toml(path), ["--objective", objective])
    assert check_contradictions(config).name == objective


def test_the_quickstart_is_the_default_run():
    quick = read_toml(next(p for p in CONFIGS if p.stem == "quickstart"))
    assert check_contradictions(quick) == check_contradictions(Config())
    assert (quick.model, quick.data, quick.sampling) == (
        Config().model,
        Config().data,
        Config().sampling,
    )
