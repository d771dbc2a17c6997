"""The gradient of a step is that of its responses, however they are split, ordered and packed."""

import random

import numpy as np
import pytest
import torch
from random_groups import random_groups

from fastrl.batch import pays, saved_rows
from fastrl.config import Config
from fastrl.losses import LossSpec
from fastrl.model import load_model
from fastrl.objectives import check_contradictions
from fastrl.optim import Optimizer
from fastrl.scoring import score_responses
from fastrl.step import TRAINED, Learner, backward, pack_responses

PROMPTS, GROUP = 5, 4
SPECS = {
    "sum": LossSpec(on_policy=True, sampler_correction="token_truncate"),
    "token-mean": LossSpec(on_policy=True, loss_agg_mode="token-mean"),
    "seq-mean": LossSpec(loss="gspo", on_policy=True, loss_agg_mode="seq-mean-token-mean"),
}


def responses_of(model, seed=0):
    groups = random_groups(model, prompts=PROMPTS, size=GROUP, seed=seed)
    return [s for group in groups for s in group]


def gradient(model, spec, responses, groups, *, budget=1 << 20, share="off", checkpointed=False):
    """Of the whole step, from the functions of the loop; and the rows that were computed."""
    objective = check_contradictions(Config())
    optimizer = Optimizer(model, Config().optim, 1)
    learner = Learner(
        model, model, objective, spec, "rloo", optimizer, budget, 40, share_prompts=share
    )
    roles = [TRAINED] * len(responses)
    (batches,) = pack_responses(learner, responses, roles, groups)
    scores = score_responses(model, model, batches, [s.completion for s in responses], 1.0)
    advantages = np.array([s.task_reward - 0.5 for s in responses])
    model.zero_grad()
    model.checkpoint_activations = checkpointed
    loss, *_ = backward(learner, batches, scores.batches, advantages, roles)
    model.checkpoint_activations = False
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    return flat, loss, batches


@pytest.fixture(scope="module")
def model():
    return load_model("embedded")


def assert_alike(one, other):
    assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("share", ["on", "off"])
@pytest.mark.parametrize("budget", [1, 50, 128, 400, 1 << 20])
def test_any_budget_and_shared_prompts(model, spec, budget, share):
    responses = responses_of(model)
    expected, loss, (whole,) = gradient(model, spec, responses, GROUP)
    found, again, batches = gradient(model, spec, responses, GROUP, budget=budget, share=share)
    assert_alike(found, expected)
    assert again == pytest.approx(loss, rel=1e-5)
    rows = sum(len(b.token_ids_N) for b in batches)
    assert sum(b.unshared_rows for b in batches) == len(whole.token_ids_N)
    assert (rows < len(whole.token_ids_N)) == (share == "on" and budget >= 50)
    assert len(batches) > 1 or budget >= 400


def test_any_order(model):
    """Groups in another order, responses in another order inside of them."""
    responses = responses_of(model)
    expected, loss, _ = gradient(model, SPECS["sum"], responses, GROUP)
    draw = random.Random(1)
    groups = [responses[i : i + GROUP] for i in range(0, len(responses), GROUP)]
    draw.shuffle(groups)
    shuffled = [s for group in groups for s in draw.sample(group, GROUP)]
    found, again, _ = gradient(model, SPECS["sum"], shuffled, GROUP, budget=128, share="on")
    assert_alike(found, expected)
    assert again == pytest.approx(loss, rel=1e-5)


def test_another_batch_has_another_gradient(model):
    one, two = (gradient(model, SPECS["sum"], responses_of(model, s), GROUP)[0] for s in (0, 1))
    assert (one - two).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("share", ["on", "off"])
def test_layers_computed_again_give_the_same_bits(model, share):
    responses = responses_of(model)
    settings = {"budget": 128, "share": share}
    plain, _, _ = gradient(model, SPECS["sum"], responses, GROUP, **settings)
    again, _, _ = gradient(model, SPECS["sum"], responses, GROUP, checkpointed=True, **settings)
    assert torch.equal(plain, again)


def test_the_rows_that_sharing_saves(model):
    responses = responses_of(model)
    sequences = {i: (s.prompt.token_ids, s.completion.token_ids) for i, s in enumerate(responses)}
    groups = {i: i // GROUP for i in sequences}
    saved, rows = saved_rows(sequences, groups)
    (whole,) = gradient(model, SPECS["sum"], responses, GROUP)[2]
    (shared,) = gradient(model, SPECS["sum"], responses, GROUP, share="on")[2]
    assert (rows, rows - saved) == (len(whole.token_ids_N), len(shared.token_ids_N))
    assert pays(sequences, groups) and not pays(sequences, {i: i for i in sequences})
