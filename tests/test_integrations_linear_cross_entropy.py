"""verl's functions by their signatures, against what verl's own computed; needs no verl.

`golden/make_verl.py` wrote the numbers down.
"""

import importlib
import importlib.machinery
import inspect
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from fastrl.errors import UsageError
from fastrl.integrations.linear_cross_entropy import (
    entropy_from_logits,
    entropy_from_logits_with_chunking,
    linear_cross_entropy,
    logprobs_from_logits,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "verl.json").read_text())
TEMPERATURE = GOLDEN["temperature"]
# of the largest entry; verl's own fp32 (the fused one's truth) is half of the second's error
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def given(name, dtype=torch.float64, part="inputs"):
    values = torch.tensor(GOLDEN[part][name], dtype=torch.float64)
    return values.long() if name == "labels" else values.to(dtype)


def leaves(dtype):
    return [given(name, dtype).requires_grad_() for name in ("hidden", "weight")]


def assert_near(found, name, part):
    right = given(name, part=part)
    tolerance = max(TOLERANCES[found.dtype], 2e-6 if part == "from_hidden" else 0)
    error = float((found.double().reshape(right.shape) - right).abs().max())
    assert error <= tolerance * float(right.abs().max()), name


def backward(logprobs, entropy):
    by_logprobs, by_entropy = (given(n).to(entropy) for n in ("by_logprobs", "by_entropy"))
    loss = (logprobs * by_logprobs.reshape(logprobs.shape)).sum()
    (loss + (entropy * by_entropy.reshape(entropy.shape)).sum()).backward()


@DTYPES
@pytest.mark.parametrize("part", ["from_logits", "from_hidden"])
def test_linear_cross_entropy_is_verls(dtype, part):
    hidden, weight = leaves(dtype)
    logprobs, entropy = linear_cross_entropy(hidden, weight, given("labels"), TEMPERATURE)
    assert logprobs.shape == entropy.shape == (given("labels").numel(),)
    assert logprobs.dtype == entropy.dtype == dtype and bool((logprobs < 0).all())
    backward(logprobs, entropy)
    for found, name in (
        (logprobs, "logprobs"),
        (entropy, "entropy"),
        (hidden.grad, "hidden_gradient"),
        (weight.grad, "weight_gradient"),
    ):
        assert_near(found, name, part)


@DTYPES
def test_the_functions_of_logits_are_verls(dtype):
    hidden, weight = leaves(dtype)
    logits = (hidden @ weight.T / TEMPERATURE).detach().requires_grad_()
    before = logits.detach().clone()
    logprobs = logprobs_from_logits(logits, given("labels"), inplace_backward=True)
    entropy = entropy_from_logits(logits)
    assert logprobs.shape == entropy.shape == logits.shape[:-1]
    backward(logprobs, entropy)
    assert_near(logprobs, "logprobs", "from_logits")
    assert_near(entropy, "entropy", "from_logits")
    assert_near(logits.grad, "logits_gradient", "from_logits")
    assert torch.equal(logits.detach(), before)
    flat = logits.detach().flatten(0, 1)
    assert torch.equal(entropy_from_logits_with_chunking(flat, 3), entropy.flatten())
    assert torch.equal(logprobs_from_logits(flat, given("labels").flatten()), logprobs.flatten())


def test_the_signatures_are_verls():
    def text(function):
        return [
            (p.name, p.default if p.default is not p.empty else "given")
            for p in inspect.signature(function).parameters.values()
        ]

    assert text(linear_cross_entropy) == [
        ("hidden", "given"), ("weight", "given"), ("labels", "given"), ("temperature", 1.0),
        ("reduction", "none"), ("dist_process_group", None),
    ]  # fmt: skip
    assert text(logprobs_from_logits) == [
        ("logits", "given"), ("labels", "given"), ("inplace_backward", True),
    ]  # fmt: skip


def test_a_reduction_is_of_the_logprobs_alone():
    x = [*leaves(torch.float64), given("labels"), TEMPERATURE]
    logprobs, entropy = linear_cross_entropy(*x)
    for name, reduced in (("sum", logprobs.sum()), ("Mean", logprobs.mean())):
        found, same = linear_cross_entropy(*x, name)
        assert torch.equal(found, reduced) and torch.equal(same, entropy)
    with pytest.raises(UsageError, match="reduction is 'max'; allowed: 'none', 'sum', 'mean'"):
        linear_cross_entropy(*x, "max")


def test_halves_give_results_in_fp32_and_gradients_in_halves():
    hidden, weight = leaves(torch.bfloat16)
    results = linear_cross_entropy(hidden, weight, given("labels"))
    assert {r.dtype for r in results} == {torch.float32}
    backward(*results)
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    logits = (hidden @ weight.T).detach()
    assert logprobs_from_logits(logits, given("labels")).dtype == torch.float32
    assert entropy_from_logits(logits).dtype == torch.float32


def test_a_part_of_a_vocabulary_is_refused():
    x = [*leaves(torch.float64), given("labels"), TEMPERATURE, "none"]
    one, two = (types.SimpleNamespace(size=lambda n=n: n) for n in (1, 2))
    assert len(linear_cross_entropy(*x, one)) == 2
    with pytest.raises(UsageError, match="a tensor-parallel group of 2 processes"):
        linear_cross_entropy(*x, two)
    x[1] = x[1].detach()
    x[1].full_tensor = lambda: x[1]  # as a DTensor has
    with pytest.raises(UsageError, match="the weight is a DTensor"):
        linear_cross_entropy(*x)


def test_it_loads_no_framework():
    code = (
        "import sys; import fastrl.integrations.linear_cross_entropy\n"
        "print({'verl', 'ray', 'transformers', 'numba'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def loading_verls_without(monkeypatch, verl):
    monkeypatch.setitem(sys.modules, "verl", verl)
    monkeypatch.delitem(sys.modules, "fastrl.integrations.verl", raising=False)
    importlib.import_module("fastrl.integrations.verl")


def test_without_verl_one_sentence_says_what_to_install(monkeypatch):
    sentence = r"^verl is not installed; run: pip install 'fastrl\[verl\]'$"
    with pytest.raises(UsageError, match=sentence):
        loading_verls_without(monkeypatch, None)


def test_a_version_that_was_never_tested_is_refused(monkeypatch):
    verl = types.ModuleType("verl")
    verl.__version__ = "0.1"
    verl.__spec__ = importlib.machinery.ModuleSpec("verl", None)
    with pytest.raises(UsageError, match=r"verl 0.1 is installed, .* was tested with 0\.9\.1 only"):
        loading_verls_without(monkeypatch, verl)
