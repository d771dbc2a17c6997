"""Every block of docs/integrations.md does what the page says."""

import ast
import importlib.metadata
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "integrations.md"
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)+)", PAGE.read_text(), re.M))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(title, language):
    return [text for kind, text in BLOCK.findall(SECTIONS[title]) if kind == language]


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; make test-integrations installs it")


def test_every_block_is_tested():
    counts = {title: [kind for kind, _ in BLOCK.findall(text)] for title, text in SECTIONS.items()}
    assert {title: kinds for title, kinds in counts.items() if kinds} == {
        "A loop of your own": ["python"] * 3,
        "TRL": ["bash", "python"],
        "verl, SkyRL, slime, AReaL": ["bash", "python"],
        "The grader as a reward": ["python"],
        "Their losses by name": ["python"],
    }


def test_a_loop_of_ones_own_ends_with_the_same_weights():
    start, *loops = blocks("A loop of your own", "python")
    ends = []
    for loop in loops:
        names = {}
        exec(start, names)
        before = names["head"].weight.detach().clone()
        exec(loop, names)
        ends.append(names["head"].weight.detach())
        assert (ends[-1] - before).abs().max() > 1e-3
        assert sum(len(line) > 0 for line in loop.splitlines()) <= 15
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "title", ["verl, SkyRL, slime, AReaL", "The grader as a reward", "Their losses by name"]
)
def test_blocks_that_need_no_framework(title):
    for text in blocks(title, "python"):
        names = {}
        exec(text, names)
    if "hidden" in names:
        assert names["hidden"].grad.any() and names["weight"].grad.any()


@pytest.mark.filterwarnings("ignore")
def test_trl(tmp_path, monkeypatch):
    needs("trl")
    monkeypatch.chdir(tmp_path)
    names = {}
    (text,) = blocks("TRL", "python")
    exec(text, names)
    from fastrl.integrations import trl as integration

    assert names["trainer"].state.global_step == 2
    assert integration.FusedHead.calls >= 2


def test_what_is_installed_has_its_name():
    extras = importlib.metadata.metadata("fastrl").get_all("Provides-Extra")
    commands = [text for title in SECTIONS for text in blocks(title, "bash")]
    named = re.findall(r"pip install 'fastrl\[(\w+)\]'", "".join(commands))
    assert named == ["trl", "verl"] and set(named) <= set(extras)


@pytest.mark.parametrize("package", ["trl", "verl"])
def test_what_is_installed_is_the_version_that_is_tested(package):
    """By the extra, by the tests, and by what the page says; else the integration refuses it."""
    source = (ROOT / "fastrl" / "integrations" / f"{package}.py").read_text()
    (version,) = ast.literal_eval(re.search(r"^TESTED_VERSIONS = (.+)$", source, re.M)[1])
    requirement = f"{package}=={version}"
    required = importlib.metadata.requires("fastrl")
    assert [r.partition(";")[0] for r in required if f'extra == "{package}"' in r] == [requirement]
    listed = (ROOT / "tests" / f"requirements-{package}.txt").read_text().splitlines()
    assert requirement in listed
    assert version in SECTIONS["Versions"]


def test_verls_configuration_takes_the_command():
    needs("verl")
    from hydra import compose, initialize_config_module

    from fastrl.integrations import grader

    (text,) = blocks("verl, SkyRL, slime, AReaL", "bash")
    command = text[text.index("python -m") :].replace("\\\n", " ")
    command = re.sub(r"\$\(.*?\)(?= )", grader.__file__, command)
    _, _, module, *overrides = shlex.split(command)
    assert importlib.util.find_spec(module) is not None
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides)
    assert config.actor_rollout_ref.model.external_lib == "fastrl.integrations.verl"
    assert config.reward.custom_reward_function.path == grader.__file__
