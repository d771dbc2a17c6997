"""What a base model does on the embedded task, and what that predicts of sharpening.

`python fastrl/embedded/measure.py` prints the figures of the three models and keeps them in
figures.json. They come from samples of the base model alone, before any training.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np

from fastrl.config import ObjectiveConfig
from fastrl.embedded import DIRECTORIES, model_dir
from fastrl.embedded.task import EMPTY, boxed_answer, problems
from fastrl.model import load_model
from fastrl.objectives import make_objective
from fastrl.sampler import Sampler, SamplingParams
from fastrl.study.predictions import Drawn, covariance, optimum_accuracy
from fastrl.tokenizer import load_tokenizer
from fastrl.types import Completion

PROMPTS, RESPONSES, MAX_TOKENS = 200, 32, 64
SEED = 20_240
ALPHA = 4.0
POWER = make_objective(ObjectiveConfig(name="sharpen", alpha=ALPHA))
LIKELIEST = make_objective(ObjectiveConfig(name="sharpen", mode="likelihood"))
FIGURES = Path(__file__).parent / "figures.json"


def sort_of(text: str, answer: int) -> str:
    """right, slip, shortcut (one line of working, not right), empty, or broken (no answer)."""
    found = boxed_answer(text)
    if found == answer:
        return "right"
    if found is None:
        return "empty" if text == EMPTY else "broken"
    return "shortcut" if text.count("\n") == 1 else "slip"


def predict(lp: list[float], right: list[bool], responses: list[tuple[int, ...]]) -> dict:
    """What samples of p to one prompt say of p^alpha / Z: figures by name.

    `covariance`: Cov(r, log p) in nats, the slope of the accuracy in alpha at 1, unbiased.
    `power_accuracy`: the accuracy of p^ALPHA / Z. `best_accuracy`: whether the likeliest response
    is right, the limit of large alpha.
    """
    drawn = Drawn(np.array(lp), np.array(right), responses)
    return {
        "covariance": covariance(drawn),
        "power_accuracy": optimum_accuracy(POWER, drawn),
        "best_accuracy": optimum_accuracy(LIKELIEST, drawn),
    }


def measure(directory: Path, prompts: int = PROMPTS, responses: int = RESPONSES) -> dict:
    """Figures of the model in `directory` at temperature 1 on fresh test prompts, by kind.

    The kind `all` holds every prompt. Shares of responses by sort (`accuracy` is that of right
    ones), `length` in tokens with the end token, and the means of `predict` over prompts.
    """
    model, tokenizer = load_model(directory, device="cpu"), load_tokenizer(directory)
    drawn = list(itertools.islice(problems("test", SEED), prompts))
    sampler = Sampler(model)
    groups = sampler.generate(
        [tokenizer.encode_chat(problem.messages) for problem in drawn],
        SamplingParams(n=responses, max_tokens=MAX_TOKENS, seed=SEED),
        stream="eval",
    )
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for problem, group in zip(drawn, groups, strict=True):
        row = _figures(problem.answer, group, [tokenizer.decode(c.token_ids) for c in group])
        rows["all"].append(row)
        rows[problem.kind].append(row)
    return {
        kind: {name: round(fmean(row[name] for row in some), 4) for name in some[0]}
        for kind, some in rows.items()
    }


def _figures(answer: int, group: list[Completion], texts: list[str]) -> dict[str, float]:
    sorts = [sort_of(text, answer) for text in texts]
    names = {"right": "accuracy"} | {s: s for s in ("slip", "shortcut", "empty", "broken")}
    return {
        **{name: sorts.count(sort) / len(sorts) for sort, name in names.items()},
        "length": fmean(len(c.token_ids) for c in group),
        **predict(
            [sum(c.logprobs) for c in group],
            [sort == "right" for sort in sorts],
            [c.token_ids for c in group],
        ),
    }


def show(figures: dict) -> None:
    """Print the figures of one model as a table, a kind a line."""
    names = list(figures["all"])
    print(" " * 10 + " ".join(f"{name:>14}" for name in names))
    for kind, row in figures.items():
        print(f"{kind:<10}" + " ".join(f"{row[name]:>14.3f}" for name in names))


def main() -> None:
    """Measure the three models; print the figures and write them to figures.json."""
    figures = {}
    for name in DIRECTORIES:
        print(f"{name}: {PROMPTS} test prompts, {RESPONSES} responses each")
        figures[name] = measure(model_dir(name))
        show(figures[name])
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
