"""Tensors that pass through a device, and a model that rests in host memory."""

import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fastrl.config import Config, parse_overrides
from fastrl.display import Display
from fastrl.errors import UsageError
from fastrl.model import load_model
from fastrl.offload import Piece, Resting, through_device
from fastrl.preparation import check_host
from fastrl.run import start
from fastrl.train import take_step

CPU = torch.device("cpu")


def test_pieces_come_and_go_in_order():
    state = torch.arange(10.0), torch.zeros(10)
    seen = []

    def work(first, second):
        seen.append(first.tolist())
        first.add_(1)
        second.copy_(first)

    parts = [slice(0, 4), slice(4, 4), slice(4, 8), slice(8, 12)]
    through_device([Piece([x[part] for x in state], work) for part in parts], CPU)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert state[0].tolist() == state[1].tolist() == [*range(1, 11)]
    through_device([], CPU)


def test_a_resting_model_is_the_model():
    model = load_model("embedded").requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    resting = Resting(model)
    kept = [p.data_ptr() for p in model.parameters()]
    with resting.awake():
        assert not {p.data_ptr() for p in model.parameters()} & {*kept}
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [p.data_ptr() for p in model.parameters()] == kept


def test_a_step_with_state_and_reference_in_host_memory_has_the_same_bits(tmp_path):
    results = []
    for name in ("device", "host"):
        words = ["--train.output_dir", str(tmp_path / name), "--sampling.prompts_per_step", "4"]
        run = start(parse_overrides(Config(), [*words, "--eval.prompts", "0"]))
        if name == "host":  # what a run on a CPU is refused, but the code is the same
            learner = run.learner
            learner.optimizer.config = replace(learner.optimizer.config, state="host")
            run.learner = replace(learner, resting=Resting(learner.reference))
        metrics = [take_step(run, Display(0, 1, Console(quiet=True))) for _ in range(2)]
        kept = {k: v for k, v in metrics[1].items() if not re.search("second|_per_s|memory", k)}
        results.append((kept, [p.clone() for p in run.learner.policy.parameters()]))
    (metrics, weights), (others, again) = results
    assert metrics == others
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))


@pytest.mark.parametrize("key", ["optim.state", "train.reference"])
def test_host_memory_is_that_of_a_gpu(key):
    config = parse_overrides(Config(), [f"--{key}", "host"])
    check_host(config, on_gpu=True)
    with pytest.raises(UsageError, match=f"{key} is 'host', which is the memory beside a GPU"):
        check_host(config, on_gpu=False)


def test_a_reference_is_shared_out_or_rests():
    config = parse_overrides(Config(), ["--train.reference", "host", "--train.keep_gathered=false"])
    with pytest.raises(UsageError, match="set one of them"):
        check_host(config, on_gpu=True)
