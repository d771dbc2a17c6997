"""What only a GPU shows of the sampler: graphs, kernels of other libraries, steps begun ahead."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from audited_sampler import FAMILIES, tiny_decoder

from fastrl.sampler import Sampler, SamplingParams
from fastrl.sampler.attention import choose
from fastrl.sampler.decode import CAPTURED_AT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
PROMPTS = [[5], [6, 7, 8], list(range(3, 40))]
PARAMS = SamplingParams(n=4, max_tokens=40, seed=3)
MIXED = [PARAMS, SamplingParams(n=3, max_tokens=9, seed=3, temperature=0.7, top_k=9), PARAMS]


class Eager(Sampler):
    """Steps without graphs, read at once."""

    def _begin(self, *arguments):
        call = super()._begin(*arguments)
        call.runner.steps.captures, call.runner.steps.lag = False, 0
        return call


def on_gpu(family, dtype):
    return copy.deepcopy(tiny_decoder(family)).to("cuda", dtype)


@pytest.mark.parametrize("params", [PARAMS, MIXED], ids=["alike", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_sample_what_single_kernels_do(family, params):
    model = on_gpu(family, torch.float32)
    graphs, eager = (kind(model, max_batch_tokens=64) for kind in (Sampler, Eager))
    each = params if isinstance(params, list) else [params] * len(PROMPTS)
    # kernels one by one, captured, replayed; then of another key
    for seed in [3] * (CAPTURED_AT + 1) + [8]:
        seeded = [replace(p, seed=seed) for p in each]
        pairs = zip(graphs.generate(PROMPTS, seeded), eager.generate(PROMPTS, seeded), strict=True)
        for ours, theirs in pairs:
            for one, other in zip(ours, theirs, strict=True):
                assert one.token_ids == other.token_ids
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        if seed == 3:
            captured = bool(graphs._steps.graphs)
    assert captured


def test_the_gpu_samples_what_the_cpu_does():
    model = on_gpu("llama", torch.float32)
    ours = Sampler(model, max_batch_tokens=64).generate(PROMPTS, PARAMS)
    theirs = Sampler(tiny_decoder("llama")).generate(PROMPTS, PARAMS)
    for group, expected in zip(ours, theirs, strict=True):
        assert [c.token_ids for c in group] == [c.token_ids for c in expected]


def test_bfloat16_takes_the_kernels_that_are_installed():
    model = on_gpu("llama", torch.bfloat16)
    assert choose(model.embed.device, torch.bfloat16, 12).decode == "triton"
    sampler = Sampler(model, max_batch_tokens=16)  # chunks of a prompt, beside decode rows
    results = sampler.generate(PROMPTS, PARAMS)
    assert all(0 <= t < model.valid_vocab for g in results for c in g for t in c.token_ids)
