"""A sampler that is watched at every forward, over tiny models of the three families."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from transformers import PreTrainedModel

from fastrl.model import Decoder, DecoderConfig, PackedAttention
from fastrl.sampler import Sampler
from fastrl.weights import load_weights

FAMILIES = ("llama", "qwen2", "qwen3")


@functools.cache
def tiny_pair(family: str, **overrides: Any) -> tuple[PreTrainedModel, Decoder]:
    """The same weights in transformers and in a Decoder; both are shared, so never change them."""
    theirs = tiny_model(family, **({"num_hidden_layers": 2} | overrides))
    ours = Decoder(DecoderConfig.from_hf(theirs.config.to_dict()))
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        load_weights(ours, Path(directory))
    return theirs, ours


def tiny_decoder(family: str = "llama", **overrides: Any) -> Decoder:
    """The Decoder of `tiny_pair`."""
    return tiny_pair(family, **overrides)[1]


@torch.no_grad()
def packed_hidden(model: Decoder, prompt, response) -> torch.Tensor:
    """The hidden states from which the packed forward predicts each token of `response`."""
    token_ids = torch.tensor([*prompt, *response])
    rows = len(token_ids)
    offsets = torch.tensor([0, rows], dtype=torch.int32)
    hidden = model(token_ids, torch.arange(rows), PackedAttention(offsets, rows))
    return hidden[len(prompt) - 1 : rows - 1]


def all_nan(cache, blocks) -> bool:
    return all(tensor[blocks].isnan().all() for tensor in (*cache.k, *cache.v))


class AuditedSampler(Sampler):
    """Every call asserts, beside what it returns:

    blocks that nobody owns hold NaN at each forward and at the end, and a block's references are
    its owners; the rows that each layer computed are the distinct prompt tokens, the
    generated tokens (the last of each response excepted), the logged recomputation and the rows of
    steps that were begun too early.
    """

    def __init__(self, model: Decoder, **settings: Any) -> None:
        super().__init__(model, poison_free_blocks=True, **settings)

    def _begin(self, *arguments):
        self.call = super()._begin(*arguments)
        return self.call

    def _audit_blocks(self) -> None:
        pool, cache = self.call.scheduler.pool, self.call.runner.cache
        owners = Counter(b for s in self.call.scheduler.running for b in s.blocks)
        assert pool.references == [owners[block] for block in range(pool.num_blocks + 1)]
        assert sorted([*pool.free, *owners]) == list(range(1, pool.num_blocks + 1))
        assert all_nan(cache, pool.free)
        assert not any(tensor[0].any() for tensor in (*cache.k, *cache.v))

    def generate(self, prompt_token_ids, params, **settings):
        rows = [0] * len(self.model.layers)

        def count(layer, inputs, output):
            rows[layer] += output.shape[0]
            if layer == 0:
                self._audit_blocks()

        with ExitStack() as hooks:
            for index, layer in enumerate(self.model.layers):
                hook = layer.register_forward_hook(
                    lambda module, inputs, output, index=index: count(index, inputs, output)
                )
                hooks.callback(hook.remove)
            results = super().generate(prompt_token_ids, params, **settings)
        self._audit_blocks()
        assert len(self.call.scheduler.pool.free) == self.call.scheduler.pool.num_blocks
        lengths = [len(c.token_ids) for group in results for c in group]
        assert self.stats.generated_tokens == sum(lengths)
        assert set(rows) == {self.stats.rows_computed}
        if all(group[0].token_ids for group in results):  # else a prompt was cut by cancellation
            expected = sum(map(len, prompt_token_ids)) + sum(lengths) - len(lengths)
            extra = self.stats.recomputed_tokens + self.stats.discarded_rows
            assert self.stats.rows_computed == expected + extra
        return results
