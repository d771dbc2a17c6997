"""The cache's size on a GPU, and what a sampler says of itself."""

from __future__ import annotations

import pytest
import torch
from audited_sampler import tiny_decoder

from fastrl.sampler import Sampler, SamplingParams, memory
from fastrl.sampler.cache import PagedCache


def test_a_block_has_the_bytes_that_the_cache_takes():
    model = tiny_decoder("qwen3")
    cache = PagedCache(model, 5, 4, False)
    taken = sum(x.nbytes for x in (*cache.k, *cache.v))
    assert memory.block_bytes(model, 4) * 7 == taken


def test_blocks_fill_what_a_forward_leaves_free():
    fit = memory.blocks_that_fit(10_000, 1_200, 100)
    assert (fit + 2) * 100 + 1_200 <= 10_000 * memory.SHARE < (fit + 3) * 100 + 1_200
    assert memory.blocks_that_fit(1_000, 5_000, 100) == 0


def test_a_cpu_gets_what_is_needed():
    room = memory.Room(tiny_decoder(), 4, 64)
    assert (room.num_blocks(77, 3, 8), room.limit(77, 3)) == (77, 77)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU's memory")
def test_a_gpu_hands_the_cache_back_and_takes_it_again():
    import copy

    model = copy.deepcopy(tiny_decoder()).cuda().bfloat16()
    sampler, params = Sampler(model), SamplingParams(n=4, max_tokens=8, seed=0)
    first = sampler.generate([[1, 2, 3]], params)
    free = torch.cuda.mem_get_info()[0]
    sampler.release()
    assert torch.cuda.mem_get_info()[0] > free
    for _ in range(50):
        assert sampler.generate([[1, 2, 3]], params) == first
        sampler.release()
    assert torch.cuda.mem_get_info()[0] > free


def test_release_keeps_a_cpus_cache():
    sampler = Sampler(tiny_decoder())
    sampler.generate([[1]], SamplingParams(n=1, max_tokens=2, seed=0))
    kept = sampler._steps
    sampler.release()
    assert sampler._steps is kept


def test_a_model_that_changed_its_dtype_gets_another_cache():
    import copy

    model = copy.deepcopy(tiny_decoder())
    sampler, params = Sampler(model), SamplingParams(n=2, max_tokens=5, seed=0)
    sampler.generate([[1, 2]], params)
    model.double()
    assert sampler.generate([[1, 2]], params) == Sampler(model).generate([[1, 2]], params)


def test_it_says_how_it_samples():
    import copy

    model = copy.deepcopy(tiny_decoder())
    words = "sampling in float32, attention: cpu, layers in C++ ("
    assert Sampler(model).describe().startswith(words)
    assert "bfloat16" in Sampler(model.bfloat16()).describe()
    assert Sampler(model.double()).describe() == "sampling in float64, attention: torch"
