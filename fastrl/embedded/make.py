"""The script that makes the embedded models: `python fastrl/embedded/make.py [DIRECTORY]`.

For each share of trap prompts (see task.py) it draws responses from the law of the training data,
fits a small Llama to them by plain cross-entropy on the response tokens, from fixed seeds, and
writes a Hugging Face directory in bf16. It prints what each base model does. One took
320 s on one core of an Intel Xeon with AVX-512, beside other work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fastrl.embedded.measure import measure, show
from fastrl.embedded.task import OPENERS, PROMPT, SHARES, Problem, draw_response, problems
from fastrl.model import Decoder, DecoderConfig
from fastrl.packed_attention import PackedAttention
from fastrl.weights import save_model

BOS, EOS, PAD, UNK, USER, ASSISTANT = SPECIAL = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|unk|>",
    "<|user|>",
    "<|assistant|>",
)
CHARACTERS = "0123456789+-*()= \n{}\\?abcdefghijklmnopqrstuvwxyz"
WORDS = (PROMPT, *(opener for opener in OPENERS if opener), "\\boxed{")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('the embedded model knows user and assistant turns only') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One id a character, and one for each of WORDS; other characters are unknown."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS, *WORDS))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    inner.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens={"user_token": USER, "assistant_token": ASSISTANT},
        model_max_length=MAX_POSITION,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


MAX_POSITION = 256
IDS = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS, *WORDS))}
PIECES = re.compile("|".join(map(re.escape, (*SPECIAL, *WORDS))) + "|.", re.DOTALL)


def encode(text: str) -> list[int]:
    """What `make_tokenizer` gives for a text of the task, without its overhead."""
    return [IDS[piece] for piece in PIECES.findall(text)]


def shapes() -> DecoderConfig:
    """The embedded model's shapes."""
    return DecoderConfig(
        family="llama",
        vocab_size=len(IDS),
        hidden_size=64,
        intermediate_size=192,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position=MAX_POSITION,
        tie_embeddings=False,
    )


STEPS = 2000
SEQUENCES = 128  # of one step
PROBLEMS = 60_000  # different prompts; every visit to one draws a fresh response
PEAK_LR = 4e-3
WARM_UP = 100
SEED = 1


def prompt_text(problem: Problem) -> str:
    """The prompt of a problem as the chat template writes it."""
    return f"{BOS}{USER}{PROMPT}{problem.expression}{ASSISTANT}"


def batches(share: float, rng: random.Random) -> Iterator[tuple[list[list[int]], list[int]]]:
    """Batches without end: whole sequences of ids, and the length of each one's prompt."""
    drawn = list(itertools.islice(problems("train", SEED), PROBLEMS))
    prompts = [encode(prompt_text(problem)) for problem in drawn]
    while True:
        chosen = rng.choices(range(len(drawn)), k=SEQUENCES)
        responses = [encode(draw_response(drawn[i], share, rng)[0] + EOS) for i in chosen]
        yield (
            [prompts[i] + response for i, response in zip(chosen, responses, strict=True)],
            [len(prompts[i]) for i in chosen],
        )


def response_loss(
    model: Decoder, sequences: Sequence[Sequence[int]], prompts: Sequence[int]
) -> Tensor:
    """The mean cross-entropy of the response tokens, the end token included, in nats."""
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate(([0], lengths.cumsum()))
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    is_response = positions >= np.repeat(np.asarray(prompts), lengths)
    token_ids = torch.tensor(list(itertools.chain(*sequences)))
    attention = PackedAttention(torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()))
    hidden = model(token_ids, torch.from_numpy(positions), attention)
    targets = torch.from_numpy(np.flatnonzero(is_response))
    return F.cross_entropy(model.logits(hidden[targets - 1]), token_ids[targets])


def fit(share: float, steps: int = STEPS) -> Decoder:
    """A model fitted to the law of the training data with this share of trap prompts."""
    config = shapes()
    model = Decoder(config).init_weights(SEED, std=0.5 * config.hidden_size**-0.5)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05
    )
    started = time.perf_counter()
    data = batches(share, random.Random(f"fastrl embedded responses {SEED} {share}"))
    for step, (sequences, prompts) in enumerate(itertools.islice(data, steps)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)
        loss = response_loss(model, sequences, prompts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            seconds = time.perf_counter() - started
            print(f"share {share:g} step {step + 1} loss {loss.item():.4f} {seconds:.0f} s")
    return model


def save(model: Decoder, directory: Path) -> None:
    """Write a Hugging Face directory in bf16: config, weights, tokenizer, generation settings."""
    directory.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": IDS[BOS], "eos_token_id": IDS[EOS], "pad_token_id": IDS[PAD]}
    config = model.config.to_hf(dtype="bfloat16", **ids)
    generation = {**ids, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for name, values in (("config.json", config), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    make_tokenizer().save_pretrained(str(directory))
    save_model(model.to(torch.bfloat16), directory, directory)
    (directory / "model.safetensors").chmod(0o644)  # safetensors makes it the owner's alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the models, and print what each does on fresh test prompts."""
    parser = argparse.ArgumentParser(prog="python -m fastrl.embedded.make", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parent / "models")
    parser.add_argument("--share", type=float, choices=SHARES, action="append")
    parser.add_argument("--steps", type=int, default=STEPS)
    known = parser.parse_args(arguments)
    for share in known.share or SHARES:
        directory = known.directory / f"{share:g}"
        save(fit(share, known.steps), directory)
        show(measure(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
