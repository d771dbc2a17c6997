"""A policy measured on prompts of the embedded task: what is paired, and what is told apart."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from fastrl.config import Config, with_values
from fastrl.model import load_model
from fastrl.objectives import check_contradictions
from fastrl.statistics import best_of_k
from fastrl.study.baselines import DRAWN, POOL, measured_baselines
from fastrl.study.cell import best_step
from fastrl.study.measure import Policy, Questions, difficulty, measure, measure_more
from fastrl.study.plan import StudySettings, make_plan
from fastrl.tokenizer import load_tokenizer

SETTINGS = StudySettings(
    arms=("sharpen", "task", "null", "random"), prompts=6, samples=8, long_prompts=4,
    template_prompts=3, power_steps=(1, 2),
)  # fmt: skip


class Watched(Policy):
    """A policy that keeps the draws it is asked for of longer prompts."""

    longer: ClassVar[list[int]] = []

    def evaluate(self, *args, step=0, longer=False, **more):
        self.longer.extend([step] if longer else [])
        return super().evaluate(*args, step=step, longer=longer, **more)


def silent(phase, total):
    return lambda event: None


@pytest.fixture(scope="module")
def policy():
    model = load_model("embedded", dtype=torch.float32, device="cpu")
    return Policy(model.requires_grad_(False), load_tokenizer("embedded"), None)


@pytest.fixture(scope="module")
def questions():
    return Questions.of(SETTINGS, Config())


@pytest.fixture(scope="module")
def base(policy, questions, tmp_path_factory):
    plan = make_plan(SETTINGS, Config(), tmp_path_factory.mktemp("study"))
    arms = [
        (a, check_contradictions(with_values(plan.config, a.values, from_text=False)))
        for a in plan.arms
    ]
    found = measure(policy, questions, 8, silent, base_of=arms)
    more = measure_more(policy, questions, SETTINGS, silent, long_samples=8, is_base=True)
    return replace(found, values=found.values | more)


def test_the_questions(questions):
    assert len(questions.test) == 6 and len(questions.long) == 4
    assert all(difficulty(e) for e in questions.test)
    assert Questions.of(replace(SETTINGS, long_prompts=0), Config()).long == []


def test_data_of_ones_own(tmp_path):
    rows = [{"prompt": f"Compute {i}+1", "answer": str(i + 1)} for i in range(60)]
    path, other = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    other.write_text("".join(json.dumps(r) + "\n" for r in [*rows[:9], {
        "prompt": "Compute " + "1+" * 150 + "1", "answer": "151"}]))  # fmt: skip
    data = {"data.source": str(path), "data.template": "{prompt}"}
    found = Questions.of(SETTINGS, with_values(Config(), data, from_text=False))
    assert 1 <= len(found.test) <= 6 and found.long == []
    assert [difficulty(e) for e in found.test] == [""] * len(found.test)
    # a file of test prompts is whole, but for what the model cannot read
    data["data.eval_source"] = str(other)
    config = with_values(Config(), data, from_text=False)
    assert len(Questions.of(replace(SETTINGS, prompts=500), config).test) == 9


def test_the_base_beforehand(base):
    values = base.values
    assert values["test.kl"].tolist() == [0.0] * 6
    np.testing.assert_allclose(values["test.pass@1"], values["test.accuracy"])
    np.testing.assert_allclose(values["base.best@1"], values["test.accuracy"])
    np.testing.assert_allclose(values["predicted.random"], values["test.accuracy"])
    # any of eight samples right is what the task reward can come to
    np.testing.assert_allclose(values["predicted.task"], values["test.pass@8"])
    assert set(base.log_z) == {"sharpen-a4"}
    low, high = base.log_z["sharpen-a4"]
    assert low < high <= 0
    assert len(base.texts) == 6 and len(base.texts[0]["responses"]) == 3
    assert len(values["test.greedy@please"]) == len(values["test.flipped@please"]) == 3


def test_the_same_model_measured_as_a_trained_one_is_the_same(policy, questions, base):
    """Every draw is on the same random numbers; and it solves what chance solves, not less."""
    trained = Watched(policy.model, policy.tokenizer, policy.model)
    trained.longer.clear()
    found = measure(trained, questions, 8, silent).values
    more = measure_more(trained, questions, SETTINGS, silent, long_samples=8)
    for name, values in (found | more).items():
        if name in ("test.lp", "test.kl"):  # scored by another forward pass
            np.testing.assert_allclose(values, base.values[name], atol=1e-4)
        else:
            np.testing.assert_array_equal(values, base.values[name], err_msg=name)
    # asked once, on the draw by which the base's unsolved prompts were not chosen
    assert trained.longer == [1]
    assert "long.first" not in more
    watched = Watched(policy.model, policy.tokenizer, None)
    watched.longer.clear()
    measure_more(watched, questions, SETTINGS, silent, long_samples=1, is_base=True)
    assert sorted(watched.longer) == [0, 1]
    fewer = measure(trained, questions, 2, silent).values
    assert "test.pass@2" in fewer and "test.pass@4" not in fewer
    no_templates = replace(SETTINGS, template_prompts=0)
    for brief in (
        measure_more(trained, questions, no_templates, silent),
        measure_more(trained, questions, SETTINGS, silent, other_words=False),
    ):
        assert list(brief) == ["test.greedy"]


def test_longer_answers_fit_the_context(policy, questions):
    params = replace(questions.params, max_tokens=200)
    long = replace(questions, params=params)
    found = policy.evaluate(long, questions.long, 1, longer=True)  # 300 would not fit 256
    assert len(found.completions) == 4


def test_baselines(policy, questions, tmp_path):
    plan = make_plan(SETTINGS, Config(), tmp_path)
    found = {b.name: b for b in measured_baselines(plan, policy, questions, silent)}
    assert list(found) == [
        "greedy", "temperature-4", "power-1", "best-1", "majority-1", "power-2", "best-2",
        "majority-2",
    ]  # fmt: skip
    for b in found.values():
        assert b.accuracy_P.shape == b.tokens_P.shape == (6,)
        assert ((b.accuracy_P >= 0) & (b.accuracy_P <= 1)).all() and (b.tokens_P > 0).all()
    assert set(found["greedy"].accuracy_P) <= {0.0, 1.0}
    assert (found["temperature-4"].accuracy_P * DRAWN % 1 == 0).all()
    # at equal tokens: k samples have as many as power sampling took
    pool = policy.evaluate(questions, questions.test, POOL, step=1)
    length = np.mean([[len(c.token_ids) for c in group] for group in pool.completions])
    for steps in (1, 2):
        k = found[f"best-{steps}"].about["k"]
        assert k == round(found[f"power-{steps}"].tokens_P.mean() / length) >= 1
        tokens = found[f"best-{steps}"].tokens_P.mean()
        assert tokens == pytest.approx(k * length)
        assert tokens == pytest.approx(found[f"power-{steps}"].tokens_P.mean(), abs=length / 2)
        lp, _ = policy.logprob_sums(pool, POOL)
        best = best_of_k(np.round(lp / 1e-3), pool.correct_Pn, k)
        np.testing.assert_allclose(found[f"best-{steps}"].accuracy_P, best)
    assert found["best-2"].about["k"] > found["best-1"].about["k"]


class Run:
    """A run directory of which only this is asked."""

    def __init__(self, path, accuracies, kept):
        self.checkpoints = path
        for step in kept:
            (path / f"step_{step}").mkdir()
        self._accuracies = accuracies

    def accuracies(self):
        return self._accuracies


@pytest.mark.parametrize(
    ("accuracies", "kept", "best"),
    [
        ({0: 0.5, 25: 0.7, 50: 0.6}, (25, 50), 25),
        ({0: 0.5, 25: 0.7, 50: 0.7}, (25, 50), 25),  # the earliest of equals
        ({0: 0.5, 25: 0.4}, (25,), 0),  # the model as it was
        ({0: 0.5, 25: 0.9, 50: 0.6}, (50,), 50),  # what was not kept cannot be measured
        ({}, (50,), 50),
    ],
)
def test_the_best_step_is_by_validation(tmp_path, accuracies, kept, best):
    assert best_step(Run(tmp_path, accuracies, kept), 50) == best


def test_a_perturbed_model_is_made_once(tmp_path):
    """Every tensor moves by the share of its size that was asked for, the same way each time."""
    from safetensors.torch import load_file

    from fastrl.embedded import model_dir
    from fastrl.study.cell import make_perturbed

    settings = replace(SETTINGS, perturbed=(0.05,), models=("embedded:0",))
    plans = [make_plan(settings, Config(), tmp_path / name) for name in "ab"]
    made = []
    for plan, name in zip(plans, "ab", strict=True):
        cell = plan.cell("embedded-0~0.05/task/seed-0")
        make_perturbed(tmp_path / name, cell)
        (file,) = (tmp_path / name / "models").glob("*/*.safetensors")
        before = file.stat().st_mtime_ns
        make_perturbed(tmp_path / name, cell)
        assert file.stat().st_mtime_ns == before
        assert load_model(cell.config.model.name).config
        made.append(load_file(file))
    assert not list(tmp_path.glob("*/models/*.partial"))
    (source,) = model_dir("embedded:0").glob("*.safetensors")
    for name, old in load_file(source).items():
        new, again = (m[name].float() for m in made)
        assert (new == again).all()
        moved = (new - old.float()).square().mean().sqrt().item()
        assert moved == pytest.approx(0.05 * old.float().square().mean().sqrt().item(), rel=0.3), (
            name
        )
