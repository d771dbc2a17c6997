"""TRL's GRPOTrainer as the rival of `fastrl bench step`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastrl.bench.kernels import DTYPES
from fastrl.datasources import load_examples
from fastrl.integrations.grader import completion_text
from fastrl.model import resolve_model


def share_of_letter_e(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that differs from response to response, as a small model's verdicts do not: without
    an advantage a loss need not be differentiated.
    """
    texts = [completion_text(c) for c in completions]
    return [text.count("e") / max(1, len(text)) for text in texts]


def trl_steps(
    prompts: Path,
    source: str,
    size: tuple[int, ...],
    kind: str,
    repeats: int,
    between: Callable[[], None],
) -> list[float]:
    """Seconds of each of its steps after the first; `between` is called after each of those.

    Its own defaults (no reference, its loss) but for what the step is: groups, lengths, one
    micro-batch a step, no end token before the last one, no checkpointing of activations, no files.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    examples = load_examples(str(prompts))
    rows = [{"prompt": list(e.messages), "solution": e.answer} for e in examples]
    count, group, new = size
    seconds: list[float] = []

    class Turns(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.started)
            if len(seconds) > 1:
                between()

    with tempfile.TemporaryDirectory() as directory:
        settings = GRPOConfig(
            output_dir=directory, max_steps=repeats + 1, num_generations=group,
            per_device_train_batch_size=count * group, gradient_accumulation_steps=1,
            max_completion_length=new, generation_kwargs={"min_new_tokens": new},
            learning_rate=1e-6, gradient_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            bf16=False, logging_strategy="no",
            model_init_kwargs={"dtype": DTYPES[kind]},
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=str(resolve_model(source)),
            reward_funcs=share_of_letter_e,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Turns()],
        )
        trainer.train()
    return seconds[1:]
