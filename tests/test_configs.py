"""Every configuration that ships is one that a run would accept."""

from pathlib import Path

import pytest

from fastrl.config import Config, parse_overrides, read_toml
from fastrl.objectives import check_contradictions
from fastrl.run import check_numbers, loss_spec

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_configuration_is_accepted(path):
    config = read_toml(path)
    check_contradictions(config)
    check_numbers(config)
    loss_spec(config)


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
