"""The regimes: formulas, targets by name, and the settings they refuse."""

import pytest
import torch

from fastrl.config import Config, parse_overrides
from fastrl.errors import UsageError
from fastrl.objectives import check_contradictions, make_objective

LP, LPI, R, LENGTH = -6.0, -5.0, 1.0, 4.0


def objective(*words):
    return check_contradictions(parse_overrides(Config(), words))


@pytest.mark.parametrize(
    "words, name, target, reward",
    [
        ([], "tempered sampling", "p^4 / Z", 3 * LP + LP - LPI),
        (["--objective.alpha", "1.25"], "tempered sampling", "p^1.25 / Z", 0.25 * LP + LP - LPI),
        (
            ["--objective.mode", "likelihood"],
            "distribution sharpening",
            "the point mass on the likeliest response under p",
            4 * LP,
        ),
        (["--objective", "task"], "task reward", "any policy supported on r = 1", R),
        (
            ["--objective", "task", "--objective.beta", "0.5"],
            "KL-regularised RL from a verifier",
            "p exp(r / 0.5) / Z",
            R + 0.5 * (LP - LPI),
        ),
        (
            ["--objective", "tilted", "--objective.beta_inv", "100", "--objective.alpha", "2"],
            "tilted sampling",
            "p^2 exp(r / 0.01) / Z",
            R + 0.01 * (LP + LP - LPI),
        ),
        (
            ["--objective.length_norm", "mean"],
            "tempered sampling",
            "p exp(3 lp / |y|) / Z",
            3 * LP / LENGTH + LP - LPI,
        ),
        (
            ["--objective.length_norm", "power 0.5"],
            "tempered sampling",
            "p exp(3 lp / |y|^0.5) / Z",
            3 * LP / 2 + LP - LPI,
        ),
        (
            ["--objective.mode", "likelihood", "--objective.length_norm", "mean"],
            "distribution sharpening",
            "the point mass on the response with the largest lp / |y| under p",
            4 * LP / LENGTH,
        ),
        (
            ["--sampling.temperature", "0.7"],
            "tempered sampling",
            "p_T (T = 0.7)^4 / Z",
            3 * LP + LP - LPI,
        ),
    ],
)
def test_regimes(words, name, target, reward):
    found = objective(*words)
    assert (found.study_name, found.target) == (name, target)
    value = found.reward(*(torch.tensor([v]) for v in (LP, LPI, R, LENGTH)))
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(reward, abs=1e-12)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sampling.top_p", "0.9"], "support"),
        (["--sampling.top_k", "5"], "support"),
        (["--sampling.min_p", "0.1"], "support"),
        (["--loss.kl", "k3", "--loss.kl_coef", "0.1"], "forward KL"),
        (["--loss.preset", "verl-grpo"], "loss.preset .verl-grpo. has a KL in the loss"),
        (["--loss.entropy_coef", "0.01"], "entropy bonus"),
        (["--loss.advantage", "grpo"], "rounding noise"),
        (["--loss.drop_groups_without_signal"], "task reward alone"),
    ],
)
@pytest.mark.parametrize(
    "regime",
    [[], ["--objective", "tilted"], ["--objective", "task", "--objective.beta", "0.1"]],
    ids=["sharpen", "tilted", "task-beta"],
)
def test_what_contradicts_a_claimed_optimum_is_refused(regime, words, said):
    with pytest.raises(UsageError, match=said):
        objective(*regime, *words)
    objective("--objective", "task", *words)  # where none is claimed it may stand


@pytest.mark.parametrize(
    "words, said",
    [
        (["--objective.beta", "0.1"], "no task reward"),
        (["--objective", "task", "--objective.alpha", "2"], "takes no alpha"),
        (["--objective", "tilted", "--objective.beta", "1", "--objective.beta_inv", "1"], "both"),
        (["--objective", "tilted", "--objective.beta_inv", "0"], "--objective sharpen"),
        (["--objective", "task", "--objective.beta_inv", "0"], "without its reward"),
        (["--objective", "tilted", "--objective.beta_inv", "-1"], "positive"),
        (["--objective", "tilted", "--objective.beta", "0"], "positive"),
        (["--objective", "task", "--objective.mode", "likelihood"], "belongs to sharpen"),
        (["--objective.alpha", "0"], "positive"),
        (["--objective.alpha", "nan"], "positive"),
        (["--objective.length_norm", "median"], "allowed"),
        (["--objective.length_norm", "power x"], "allowed"),
        (["--objective", "task", "--objective.length_norm", "mean"], "leave it out"),
        (["--sampling.temperature", "0"], "above 0"),
    ],
)
def test_parameters_that_do_not_fit(words, said):
    with pytest.raises(UsageError, match=said):
        objective(*words)


def test_beta_and_its_inverse_are_one_setting():
    a = make_objective(
        parse_overrides(Config(), ["--objective", "task", "--objective.beta_inv", "4"]).objective
    )
    assert a.beta == 0.25


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--objective.alpha", "2.5"], 2.5 * LP),
        (["--objective.alpha", "1"], LP),
        (["--objective.length_norm", "mean"], LP + 3 * LP / LENGTH),
        (["--objective.length_norm", "power 0.5"], LP + 3 * LP / 2),
        (["--objective", "task", "--objective.beta", "0.5"], LP + R / 0.5),
        (
            ["--objective", "tilted", "--objective.alpha", "2", "--objective.beta", "0.5"],
            2 * LP + R / 0.5,
        ),
    ],
)
def test_the_log_of_the_optimum_is_what_the_reward_is_constant_beside(words, expected):
    """At the optimum, where lpi is its log less log Z, every response has the same reward."""
    found = objective(*words)
    lp, r = torch.tensor([LP, -2.0, -9.0]), torch.tensor([R, 0.0, 1.0])
    lengths = torch.tensor([LENGTH, 1.0, 6.0])
    log_target = found.log_target(lp, r, lengths)
    assert log_target.dtype == torch.float64
    assert log_target[0].item() == pytest.approx(expected)
    log_z = 0.7
    reward = found.reward(lp, log_target - log_z, r, lengths)
    assert reward == pytest.approx(torch.full((3,), (found.beta or 1.0) * log_z), abs=1e-5)


def test_an_optimum_without_a_density_has_no_log():
    one = torch.ones(1)
    for words in (["--objective", "task"], ["--objective.mode", "likelihood"]):
        with pytest.raises(UsageError, match="it has no density in p"):
            objective(*words).log_target(one, one, one)


@pytest.mark.parametrize(
    ("words", "power"),
    [
        ([], True),
        (["--objective.alpha", "1"], True),
        (["--objective.mode", "likelihood"], False),
        (["--objective.length_norm", "mean"], False),
        (["--objective", "task"], False),
        (["--objective", "task", "--objective.beta", "0.5"], False),
        (["--objective", "tilted"], False),
    ],
)
def test_which_optima_are_powers(words, power):
    assert objective(*words).is_power is power
