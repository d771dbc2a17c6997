"""TRL's GRPOTrainer as the rival of `fastrl bench step`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass
class Step:
    """Seconds of a step, and of what of it is not sampling and rewards: loss, gradient, update."""

    whole: float = 0.0
    training: float = 0.0


def trl_steps(
    prompts: Path,
    source: str,
    size: tuple[int, ...],
    kind: str,
    repeats: int,
    *,
    before: Callable[[int], None] = lambda step: None,
    after: Callable[[int], None] = lambda step: None,
) -> list[Step]:
    """`repeats` steps; `before` and `after` are called with the number of each, from 0.

    Its own defaults (no reference, its loss) but for what the step is: groups, lengths, one
    micro-batch a step, no end token before the last one, no checkpointing of activations, no files.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    examples = load_examples(str(prompts))
    rows = [{"prompt": list(e.messages), "solution": e.answer} for e in examples]
    count, group, new = size
    steps: list[Step] = []

    class Turns(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            before(len(steps))
            self.started = time.perf_counter()
            steps.append(Step())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps[-1].whole = time.perf_counter() - self.started
            steps[-1].training += steps[-1].whole
            after(len(steps) - 1)

    class Trainer(GRPOTrainer):
        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            prepared = super()._prepare_inputs(*args, **kwargs)
            steps[-1].training -= time.perf_counter() - started
            return prepared

    with tempfile.TemporaryDirectory() as directory:
        settings = GRPOConfig(
            output_dir=directory, max_steps=repeats, num_generations=group,
            per_device_train_batch_size=count * group, gradient_accumulation_steps=1,
            max_completion_length=new, generation_kwargs={"min_new_tokens": new},
            learning_rate=1e-6, gradient_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            bf16=False, logging_strategy="no",
            model_init_kwargs={"dtype": DTYPES[kind]},
        )  # fmt: skip
        trainer = Trainer(
            model=str(resolve_model(source)),
            reward_funcs=share_of_letter_e,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Turns()],
        )
        trainer.train()
    return steps


def head_error(kind: str) -> float:
    """The relative error of the gradients that TRL gets from fastrl's head, against fp64.

    Raises AssertionError where it is more than the dtype accounts for.
    """
    from fastrl.integrations.trl import FusedHead

    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(n, 64, generator=generator, dtype=torch.float64) for n in (40, 500)]
    targets = torch.randint(500, (40,), generator=generator)
    gradients = []
    for dtype in (torch.float64, DTYPES[kind]):
        hidden, weight = (v.to(DTYPES[kind]).to(dtype).requires_grad_() for v in values)
        if dtype == torch.float64:
            logprobs = (hidden @ weight.T).log_softmax(-1)
            entropy = -(logprobs.exp() * logprobs).sum(-1)
            logprobs = logprobs.gather(1, targets[:, None])[:, 0]
        else:
            logprobs, entropy, *_ = FusedHead.apply(
                hidden, weight, None, targets, 1.0, 8192, None, 1.0, ("entropy",)
            )
        (logprobs.cos().sum() + entropy.sum()).backward()
        gradients.append(torch.cat([x.grad.double().flatten() for x in (hidden, weight)]))
    truth, ours = gradients
    error = float((ours - truth).norm() / truth.norm())
    assert error < {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.002}[kind], error
    return error
