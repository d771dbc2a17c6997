"""The claims where everything can be computed: worlds of a few hundred responses.

A world is a policy over a small trie, with a task reward for every response. Optima, accuracies and
distances are sums over all responses; policies are trained by the loop's own `train_step`.

Legend: R: responses of a world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastrl.config import ObjectiveConfig
from fastrl.objectives import Objective, make_objective
from fastrl.statistics import figure
from fastrl.study.claims import ROBUST, SHORT, UNFAVOURABLE, above, decided
from fastrl.study.trie import TablePolicy, Trainer, total_variation

ALPHAS = (1.25, 2.0, 4.0)
NOISE = 0.1  # of a perturbed reference, in nats of its logits
PERTURBATIONS = 20  # of each world
WORLDS = 200  # that are computed, of each kind
SLOPES = {"against": -2.0, "independent": 0.0, "aligned": 2.0}  # of log-odds of r in log p
STARTS = ("reference", "perturbed reference")
STAGES = ((0.1, 120), (0.03, 100), (0.01, 80))
TWICE = 2.0  # claim 2: how many times the base's spread sharpening's is at least

SHARPEN = ObjectiveConfig(name="sharpen", alpha=4.0)
TASK = ObjectiveConfig(name="task")
TASK_KL = ObjectiveConfig(name="task", beta=0.2)
TILTED = ObjectiveConfig(name="tilted", alpha=4.0, beta=0.01)


@dataclass(frozen=True)
class World:
    """A base policy and what is right."""

    logits: torch.Tensor  # [prefixes, symbols + 1]
    max_tokens: int
    right_R: np.ndarray  # 0 or 1, in the order of TablePolicy.responses

    @property
    def policy(self) -> TablePolicy:
        """The base."""
        policy = TablePolicy(self.logits.shape[1] - 1, self.max_tokens, seed=0)
        with torch.no_grad():
            policy.logits.copy_(self.logits)
        return policy

    @property
    def p_R(self) -> np.ndarray:
        """The base's probabilities."""
        return np.array(list(self.policy.distribution().values()))

    def perturbed(self, rng: np.random.Generator, noise: float = NOISE) -> World:
        """The same with normal noise in every logit."""
        more = torch.from_numpy(rng.normal(0, noise, tuple(self.logits.shape)))
        return World(self.logits + more, self.max_tokens, self.right_R)

    def trained(self, objective: ObjectiveConfig, seed: int = 0) -> tuple[np.ndarray, Trainer]:
        """What the loop's own step makes of it."""
        responses = self.policy.responses()
        rewards = dict(zip(responses, map(float, self.right_R), strict=True))
        trainer = Trainer.of(self.logits, rewards, self.max_tokens, objective, seed=seed)
        trainer.run(STAGES)
        return np.array(list(trainer.policy.distribution().values())), trainer


def optimum(p_R: np.ndarray, right_R: np.ndarray, objective: Objective) -> np.ndarray:
    """The distribution that an objective converges to, [R]; of the task reward alone p on r = 1."""
    if not objective.uses_likelihood:
        weight = p_R * right_R
    elif objective.mode == "likelihood":
        weight = (p_R == p_R.max()).astype(float)
    else:
        log_weight = objective.log_target(
            torch.from_numpy(np.log(p_R)), torch.from_numpy(right_R), torch.ones(len(p_R))
        ).numpy()
        weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def crowd() -> World:
    """A hundred right responses of probability .008, and a wrong one of .2."""
    p = np.array([1e-9, 0.2, *[0.008] * 100])  # the end token, and a symbol a response
    logits = torch.from_numpy(np.log(p / p.sum()))[None]
    policy = TablePolicy(101, 1, seed=0)
    right = np.array([0.0 if y in ((0,), (1,)) else 1.0 for y in policy.responses()])
    return World(logits, 1, right)


def random_world(seed: int, slope: float) -> World:
    """A random base over responses of up to four of three symbols.

    A response is right by chance, the likelier the larger its log p where `slope` is positive; the
    base's accuracy is 0.5 on average, and between 0.2 and 0.8.
    """
    rng = np.random.default_rng(seed)
    while True:
        policy = TablePolicy(3, 4, int(rng.integers(2**31)))
        log_p = np.log(list(policy.distribution().values()))
        z = (log_p - log_p.mean()) / log_p.std()
        low, high = -20.0, 20.0
        for _ in range(60):  # the log-odds at the mean, by bisection
            bias = (low + high) / 2
            chance = 1 / (1 + np.exp(-slope * z - bias))
            low, high = (bias, high) if np.exp(log_p) @ chance < 0.5 else (low, bias)
        right = (rng.random(len(z)) < chance).astype(float)
        if 0.2 <= np.exp(log_p) @ right <= 0.8:
            return World(policy.logits.detach(), 4, right)


def exact_study(trained: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure, and the claims that they decide; `trained`: worlds that are trained on."""
    say("an unfavourable optimum")
    unfavourable = _crowd()
    say(f"gains over {WORLDS} worlds of each kind")
    gains = {kind: _gains(slope) for kind, slope in SLOPES.items()}
    say(f"references with noise, {PERTURBATIONS} a world")
    instability = _instability()
    runs = []
    for i in range(trained):
        say(f"training on world {i + 1} of {trained}")
        runs += list(_train(i))
    found = {
        "crowd": unfavourable,
        "gains": gains,
        "instability": instability,
        "trained": runs,
        "noise": NOISE,
        "worlds": WORLDS,
        "perturbations": PERTURBATIONS,
    }
    return found | {"claims": _claims(found)}


def _crowd() -> list[dict[str, Any]]:
    """Accuracy of base, optimum and trained policy, and the distance of the two."""
    world = crowd()
    p, right = world.p_R, world.right_R
    rows = []
    objectives = [ObjectiveConfig(name="sharpen", alpha=a) for a in ALPHAS]
    for config in (*objectives, TILTED):
        objective = make_objective(config)
        best = optimum(p, right, objective)
        made, _ = world.trained(config)
        rows.append(
            {
                "target": objective.target,
                "base": float(p @ right),
                "optimum": float(best @ right),
                "trained": float(made @ right),
                "distance": float(0.5 * np.abs(made - best).sum()),
            }
        )
    return rows


def _gains(slope: float) -> dict[str, Any]:
    """What the optima gain in accuracy over the base, over worlds."""
    found: dict[str, list[float]] = {}
    for seed in range(WORLDS):
        world = random_world(seed, slope)
        p, right = world.p_R, world.right_R
        base = float(p @ right)
        configs = [ObjectiveConfig(name="sharpen", alpha=a) for a in ALPHAS]
        names = [f"sharpen {a:g}" for a in ALPHAS]
        gains = [float(optimum(p, right, make_objective(c)) @ right) - base for c in configs]
        likeliest = ObjectiveConfig(name="sharpen", mode="likelihood")
        gains.append(float(optimum(p, right, make_objective(likeliest)) @ right) - base)
        log_p = np.log(p)
        covariance = float(p @ ((right - base) * log_p))
        task = 1 - base
        row = dict(zip((*names, "likelihood"), gains, strict=True))
        row |= {"best of these": max(*gains, 0.0), "task": task, "covariance": covariance}
        row["short"] = task - row["best of these"]
        row["predicted sign"] = float((covariance > 0) == (gains[0] > 0))
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: figure(values) for name, values in found.items()}


def _instability() -> dict[str, Any]:
    """How far optima move when the reference is perturbed, relative to the reference itself."""
    moved: dict[str, list[float]] = {}
    spread: dict[str, list[float]] = {}
    switched = []
    for seed in range(WORLDS // 4):
        world = random_world(seed, 0.0)
        rng = np.random.default_rng(10_000 + seed)
        others = [world.perturbed(rng) for _ in range(PERTURBATIONS)]
        p, right = world.p_R, world.right_R
        q = [other.p_R for other in others]
        targets = {f"sharpen {a:g}": ObjectiveConfig(name="sharpen", alpha=a) for a in ALPHAS}
        targets |= {"tilted": TILTED, "task with beta": TASK_KL, "task": TASK}
        of_base = np.mean([_divergence(p, x) for x in q])
        spread.setdefault("base", []).append(float(np.std([x @ right for x in q])))
        for name, config in targets.items():
            objective = make_objective(config)
            best = optimum(p, right, objective)
            perturbed = [optimum(x, right, objective) for x in q]
            far = np.mean([_divergence(best, x) for x in perturbed])
            moved.setdefault(name, []).append(float(far / of_base))
            spread.setdefault(name, []).append(float(np.std([x @ right for x in perturbed])))
        switched.append(float(np.mean([x.argmax() != p.argmax() for x in q])))
    return {
        "divergence": {name: figure(values) for name, values in moved.items()},
        "spread": {name: figure(values) for name, values in spread.items()},
        "less_twice_base": figure(
            np.subtract(spread["sharpen 4"], np.multiply(TWICE, spread["base"]))
        ),
        "less_twice_task": figure(
            np.subtract(spread["sharpen 4"], np.multiply(TWICE, spread["task with beta"]))
        ),
        "likeliest_switched": figure(switched),
    }


def _divergence(p_R: np.ndarray, q_R: np.ndarray) -> float:
    """KL(p || q) in nats; 0 log 0 is 0."""
    some = p_R > 0
    return float(p_R[some] @ np.log(p_R[some] / q_R[some]))


def _train(seed: int) -> Iterator[dict[str, Any]]:
    """A world of each kind, trained from its reference and from a perturbed one."""
    for kind, slope in SLOPES.items():
        world = random_world(1_000 + seed, slope)
        noisy = world.perturbed(np.random.default_rng(seed))
        for start, one in zip(STARTS, (world, noisy), strict=True):
            for config in (SHARPEN, TASK):
                made, trainer = one.trained(config, seed)
                right = world.right_R
                row = {
                    "world": kind,
                    "seed": seed,
                    "start": start,
                    "arm": "sharpen" if config is SHARPEN else "task",
                    "base": float(one.p_R @ right),
                    "trained": float(made @ right),
                }
                if config is SHARPEN:
                    row["distance"] = total_variation(
                        trainer.policy.distribution(), trainer.target()
                    )
                yield row


def _claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The four claims in these worlds; what is exact has no interval."""
    crowd4 = next(row for row in found["crowd"] if row["target"] == "p^4 / Z")
    lost = crowd4["base"] - max(crowd4["optimum"], crowd4["trained"])
    exactly = {"mean": lost, "error": 0.0}
    robust: dict[tuple[str, str], list[float]] = {}  # the starts of a world are no two worlds
    for row in found["trained"]:
        if row["arm"] == "task":
            gains = robust.setdefault((row["world"], row["start"]), [])
            gains.append(row["trained"] - row["base"])
    return [
        decided(
            1,
            "The optimum of sharpening can be unfavourable",
            f"in some world optimum and trained policy are over {100 * UNFAVOURABLE:g} points less"
            " accurate than the base",
            [[above("accuracy lost with alpha 4", "crowd", exactly, UNFAVOURABLE, exact=True)]],
            some=True,
        ),
        decided(
            2,
            "Sharpening is unstable",
            f"with noise in the reference the accuracy of p^4 / Z varies over {TWICE:g} times as"
            " much as the base's own, and as that of task reward with beta",
            [
                [
                    above(what, "independent", found["instability"][key], 0.0)
                    for what, key in (
                        (f"spread of sharpen 4 less {TWICE:g} times the base's", "less_twice_base"),
                        (f"less {TWICE:g} times that of task with beta", "less_twice_task"),
                    )
                ]
            ],
            each=2,
        ),
        decided(
            3,
            "The gains of sharpening are limited",
            f"in every kind of world the best of the sharpened optima gains at least"
            f" {100 * SHORT:g} points less than task reward",
            [
                [
                    above(
                        "gain of task less the best of sharpening",
                        kind,
                        found["gains"][kind]["short"],
                        SHORT,
                    )
                    for kind in SLOPES
                ]
            ],
        ),
        decided(
            4,
            "A task reward gives robust gains",
            f"in every kind of world, from the reference and from a perturbed one, the trained"
            f" policy gains over {100 * ROBUST:g} points",
            [
                [
                    above(f"gain of task reward, from the {start}", kind, figure(gains), ROBUST)
                    for (kind, start), gains in robust.items()
                ]
            ],
            each=len(STARTS),
        ),
    ]
