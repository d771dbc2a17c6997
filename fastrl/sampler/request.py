"""The groups of a call, refused in one sentence where they can never be sampled."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from fastrl.errors import UsageError
from fastrl.model import Decoder
from fastrl.sampler.philox import LIMITS, PromptKey, check_range
from fastrl.sampler.sequence import Group, SamplingParams


def groups_of(
    prompts: Seq[Seq[int]],
    params: SamplingParams | Seq[SamplingParams],
    keys: Seq[PromptKey] | None,
    *,
    model: Decoder,
    has_tokenizer: bool,
    block_size: int,
    num_blocks: int | None,
) -> list[Group]:
    """A group for each prompt, in order; `num_blocks` None is a pool of any size.

    Raises UsageError for tokens that the model does not have, lengths that fit neither its context
    nor the pool, and random numbers that are used twice or that the counter cannot hold.
    """
    every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    keys = [PromptKey(i) for i in range(len(prompts))] if keys is None else keys
    if len(every) != len(prompts) or len(keys) != len(prompts):
        raise UsageError(
            f"{len(prompts)} prompts came with {len(every)} params and {len(keys)} keys; give"
            " one each"
        )
    if len({p.seed for p in every}) > 1:
        raise UsageError("the params of one call have different seeds; give one seed")
    owners: dict[PromptKey, int] = {}
    for i, (prompt, p, key) in enumerate(zip(prompts, every, keys, strict=True)):
        if not len(prompt):
            raise UsageError(f"prompt {i} is empty; give at least one token")
        way_out = "encode it with the model's own tokenizer"
        # ids from valid_vocab on are never sampled, but a prompt may hold any row of the embedding
        check_known(f"prompt {i} has the token", prompt, model.config.vocab_size, way_out)
        check_known("stop_token_ids has", p.stop_token_ids, model.valid_vocab, "leave it out")
        if p.stop and not has_tokenizer:
            raise UsageError("stop strings need a tokenizer; give Sampler one")
        _check_lengths(i, len(prompt), p.max_tokens, model, block_size, num_blocks)
        if p.n > LIMITS["response"]:
            raise UsageError(
                f"n is {p.n}, but the random counter holds {LIMITS['response']} responses a prompt;"
                " give the prompt again with another draw for more"
            )
        check_range("position", p.max_tokens - 1)
        check_range("id", key.id)
        check_range("draw", key.draw)
        if (other := owners.setdefault(key, i)) != i:
            raise UsageError(
                f"prompts {other} and {i} have the same {key}, and so the same random numbers; give"
                " each an id or a draw of its own"
            )
    triples = zip(prompts, every, keys, strict=True)
    return [Group(i, list(prompt), p, key) for i, (prompt, p, key) in enumerate(triples)]


def check_known(name: str, token_ids: Iterable[int], vocab: int, way_out: str) -> None:
    """Raise UsageError for an id outside of 0..vocab - 1."""
    for token in token_ids:
        if not 0 <= token < vocab:
            raise UsageError(
                f"{name} {token}, which is outside the vocabulary 0..{vocab - 1}; {way_out}"
            )


def _check_lengths(
    i: int, tokens: int, max_tokens: int, model: Decoder, block_size: int, num_blocks: int | None
) -> None:
    total, context = tokens + max_tokens, model.config.max_position
    asked = f"prompt {i} has {tokens} tokens, which with max_tokens {max_tokens} exceed"
    if total > context:
        raise UsageError(f"{asked} the model's context of {context}; shorten one of them")
    if num_blocks is not None and total > num_blocks * block_size:
        raise UsageError(
            f"{asked} the pool of {num_blocks} blocks x {block_size} tokens; raise num_blocks to"
            f" {-(-total // block_size)}, or shorten one of them"
        )
