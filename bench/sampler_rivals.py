"""transformers on the same weights: what the sampler is validated against and timed beside.

Rivals return tokens only, no log-probs, at temperature 1 without filters. Their end tokens are
taken away, so that everybody makes the same number of tokens and nobody tests for an end.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrl.model import Decoder, DecoderConfig, PackedAttention, load_model
from fastrl.sampler import Sampler, SamplingParams
from fastrl.shapes import SHAPES
from fastrl.types import Completion
from fastrl.weights import hf_tensors

Prompts = Sequence[Sequence[int]]
SMOLLM2 = Path("~/.cache/fastrl/smollm2-135m-instruct")  # where bench/fetch_smollm2.py puts it
TIE = 1e-4  # greedy choices may differ between logits this close
SAMENESS = 1e-4  # fp32 log-probs across batch compositions


@dataclass(frozen=True)
class Subject:
    """A model, its twin in transformers, and where the weights are from."""

    name: str
    weights: str  # "random" or "loaded"
    model: Decoder
    theirs: Any


def subject(source: str, dtype: torch.dtype, device: torch.device) -> Subject:
    """The model of a directory, or of random weights at one of SHAPES."""
    if source in SHAPES:
        model = random_model(SHAPES[source], dtype, device)
        return Subject(source, "random", model, twin(model))
    model = load_model(source, dtype=dtype, device=device)
    return Subject(Path(source).name, "loaded", model, twin(model))


@torch.no_grad()
def random_model(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Normal matrices of spread 0.02, norms one, biases zero, drawn on the device."""
    torch.manual_seed(0)
    model = Decoder(config, dtype=dtype, device=device)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(1.0 if "norm" in name else 0.0)
    return model


@torch.no_grad()
def twin(model: Decoder) -> Any:
    """A transformers model of the same shapes, dtype and weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = model.config.to_hf()
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with model.embed.device:
        theirs = AutoModelForCausalLM.from_config(config, dtype=model.embed.dtype)
    missing, unexpected = theirs.load_state_dict(hf_tensors(model), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    theirs.tie_weights()
    theirs.generation_config = _generation(1, sample=False)  # what is left out is taken from here
    return theirs.eval()


def _generation(new: int, group: int = 1, sample: bool = True) -> Any:
    """Settings without end tokens; a sample is at temperature 1, no filter."""
    from transformers import GenerationConfig

    ends = {"eos_token_id": None, "pad_token_id": 0}
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    return GenerationConfig(
        do_sample=sample, num_return_sequences=group, max_new_tokens=new, **ends, **plain
    )


class Rival:
    """Something of transformers that makes `new` tokens for each of `group` responses a prompt."""

    def __init__(self, theirs: Any, prompts: Prompts, group: int, new: int) -> None:
        self.theirs, self.prompts, self.group, self.new = theirs, prompts, group, new
        self.tokens = len(prompts) * group * new

    def __call__(self) -> None:
        made = self.run()
        if made != self.tokens:
            raise RuntimeError(f"it made {made} tokens instead of {self.tokens}")

    def run(self) -> int:
        """Makes the tokens; returns their number."""
        raise NotImplementedError


class Generate(Rival):
    """`model.generate`, all responses in one batch."""

    def run(self) -> int:
        return _generate(self.theirs, self.prompts, _generation(self.new, self.group)).numel()


def _generate(theirs: Any, prompts: Prompts, settings: Any) -> Tensor:
    """The new tokens of prompts of one length: [responses, new]."""
    rows = torch.tensor(prompts, device=theirs.device)
    mask = torch.ones_like(rows)
    return theirs.generate(rows, attention_mask=mask, generation_config=settings)[
        :, rows.shape[1] :
    ]


class ContinuousBatching(Rival):
    """`model.generate_batch`; its manager and cache stay with the model for the next run.

    The cache has pages for everything at once: left to itself it takes 60 % of a CPU's memory,
    or 90 % of a GPU's.
    """

    def run(self) -> int:
        from transformers import ContinuousBatchingConfig

        # it reports as an error that a CPU without psutil has an unknown amount of memory
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        # small pages waste less; flash attention takes no others than 256
        page = 32 if self.theirs.device.type == "cpu" else 256
        longest = len(self.prompts[0]) + self.new
        pages = len(self.prompts) * self.group * -(-longest // page)
        config = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=8 + pages * 5 // 4,  # it admits no prompt where few are free
            max_batch_tokens=4096,
        )
        found = self.theirs.generate_batch(
            [list(prompt) for prompt in self.prompts],
            generation_config=_generation(self.new, self.group),
            continuous_batching_config=config,
            persistent_manager=True,
        )
        if failed := next((one.error for one in found.values() if one.error), None):
            raise RuntimeError(failed)
        return sum(len(one.generated_tokens) for one in found.values())


@torch.no_grad()
def check_greedy(sampler: Sampler, theirs: Any, prompts: Prompts, new: int) -> None:
    """Raises AssertionError where the greedy tokens differ from those of transformers' `generate`.

    From a difference on nothing is compared, if the two choices are as good as equal there.
    """
    params = SamplingParams(n=1, max_tokens=new, temperature=0.0, ignore_eos=True)
    for prompt, (completion,) in zip(prompts, sampler.generate(prompts, params), strict=True):
        wanted = _generate(theirs, [prompt], _generation(new, sample=False))[0].tolist()
        pairs = enumerate(zip(completion.token_ids, wanted, strict=True))
        at = next((i for i, (ours, other) in pairs if ours != other), None)
        if at is None:
            continue
        before = torch.tensor([[*prompt, *wanted[:at]]], device=theirs.device)
        logits = theirs(before, logits_to_keep=1).logits[0, -1].float()
        gap = float(logits.max() - logits[completion.token_ids[at]])
        if gap > TIE:
            raise AssertionError(
                f"greedy token {at} is {completion.token_ids[at]}, transformers takes {wanted[at]},"
                f" whose logit is {gap:.2g} larger"
            )


@torch.no_grad()
def check_logprobs(
    one: Subject, pairs: Sequence[tuple[Sequence[int], Completion]], temperature: float
) -> tuple[float, float]:
    """The largest error of our log-probs and of transformers' own, against a wider dtype.

    `pairs`: prompts and completions at that temperature. Raises AssertionError where our error
    passes twice transformers', or 1e-4 if that is more, or where the sampler is that far from the
    model's own packed forward: the largest in fp32, the root mean square in narrower dtypes, where
    the largest of a few hundred tokens says nothing of the rest.
    """
    model, theirs = one.model, one.theirs
    wide = torch.float64 if theirs.dtype == torch.float32 else torch.float32
    wider = copy.deepcopy(theirs).to(wide)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []  # errors, transformers', off the forward
    for prompt, completion in pairs:
        tokens = torch.tensor([*prompt, *completion.token_ids], device=theirs.device)
        count = len(completion.token_ids)
        ours = torch.tensor(completion.logprobs, dtype=torch.float64)
        packed, truth, other = (
            _logprobs(logits[:, : model.valid_vocab].double() / temperature, tokens)
            for logits in (
                _packed_logits(model, tokens, count),
                *(
                    hf(tokens[None], logits_to_keep=count + 1).logits[0, :-1]
                    for hf in (wider, theirs)
                ),
            )
        )
        columns.append((ours - truth, other - truth, ours - packed))
    errors = [torch.cat(column) for column in zip(*columns, strict=True)]
    largest = [float(e.abs().max()) for e in errors]
    typical = [float(e.square().mean().sqrt()) for e in errors]
    error, other_error, apart = largest if theirs.dtype == torch.float32 else typical
    limit = max(SAMENESS, 2 * other_error)
    if not (error <= limit and apart <= limit):
        raise AssertionError(
            f"log-probs are {error:.2g} from the truth and {apart:.2g} from the packed forward;"
            f" allowed: {limit:.2g} (transformers: {other_error:.2g})"
        )
    return largest[0], largest[1]


def _packed_logits(model: Decoder, tokens_N: Tensor, count: int) -> Tensor:
    rows = len(tokens_N)
    offsets = torch.tensor([0, rows], dtype=torch.int32, device=tokens_N.device)
    positions = torch.arange(rows, device=tokens_N.device)
    hidden_ND = model(tokens_N, positions, PackedAttention(offsets, rows))[-count - 1 : -1]
    # in fp32, as the sampler has them
    return hidden_ND.float() @ model.head_weight.float().T


def _logprobs(logits_NV: Tensor, tokens: Tensor) -> Tensor:
    """Those of the last tokens, on the CPU."""
    return logits_NV.log_softmax(-1).gather(1, tokens[-len(logits_NV) :, None])[:, 0].cpu()
