"""What the fused head and sampling are worth in a whole training step, against plain torch.

`python bench/loss_in_a_step.py MODEL --out FILE.json` runs the same training of a few steps in two
processes: one as it is, one with the loss, the scoring and the sampling replaced by what a codebase
without kernels has: whole logits, log_softmax, autograd; sort, softmax and Gumbel noise in torch.
The step's seconds are from the run's metrics, medians without the first step; memory is the
process's peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = 4
SETTINGS = {
    "--objective": "sharpen", "--max-steps": STEPS, "--sampling.prompts_per_step": 8,
    "--sampling.responses_per_prompt": 8, "--sampling.max_tokens": 48, "--eval.prompts": 0,
    "--eval.test_prompts": 0, "--train.max_tokens_per_batch": 2048,
}  # fmt: skip
PHASES = ("seconds_sample", "seconds_reference", "seconds_train")


def unfuse() -> None:
    """Replace the operations that a training step calls by plain torch."""
    import torch
    from torch import Tensor

    from fastrl import ops
    from fastrl.bench.rows import plain
    from fastrl.losses import make_loss_fn

    def eager(hidden: Tensor, weight: Tensor, targets: Tensor, settings: Any) -> Any:
        logits = torch.nn.functional.linear(hidden, weight)[..., : settings["valid_vocab"]]
        return plain(logits.float() / settings["temperature"], targets)

    def statistics_of(hidden: Tensor, weight: Tensor, targets: Tensor, **settings: Any) -> Any:
        return eager(hidden, weight, targets, settings)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, a: Tensor, **settings: Any) -> Any:
        names = ("mask", "old_logprobs", "ref_logprobs", "sampler_logprobs", "cu_seqlens")
        rows = ops.Rows(a, **{name: settings[name] for name in names})
        logprobs, entropy = eager(hidden, weight, targets, settings)
        total = make_loss_fn(settings["spec"])(logprobs, entropy, rows) * settings["grad_scale"]
        detached = logprobs.detach(), entropy.detach()
        return ops.PolicyLossOutput(total, rows.mask.sum(), *detached, {})

    sample = ops.sample
    ops.linear_logprobs_and_entropy, ops.linear_policy_loss = statistics_of, loss
    ops.sample = lambda *arguments, **rest: sample(*arguments, **rest, backend="torch")


def train(model: str, directory: str, plain: bool) -> int:
    """One training run in this process; writes its peak memory beside its metrics."""
    from fastrl import cli

    if plain:
        unfuse()
    words = [str(word) for pair in SETTINGS.items() for word in pair]
    code = cli.main(["train", "--model", model, "--output-dir", directory, *words])
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (Path(directory) / "peak_bytes").write_text(str(peak))
    return code


def measure(model: str, plain: bool) -> dict[str, float]:
    """Median seconds of the phases of a step and the peak memory in bytes, of a new process."""
    with tempfile.TemporaryDirectory() as name:
        directory = f"{name}/run"
        words = [sys.executable, __file__, model, "--train", directory]
        subprocess.run([*words, *(["--plain"] if plain else [])], check=True, capture_output=True)
        lines = (Path(directory) / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines][1:]
        found = {phase: statistics.median(step[phase] for step in steps) for phase in PHASES}
        tokens = statistics.median(step["tokens_sampled"] for step in steps)
        peak = int((Path(directory) / "peak_bytes").read_text())
        return found | {"seconds": sum(found.values()), "tokens": tokens, "peak_bytes": peak}


def main() -> int:
    """Measure both, print them, write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", metavar="DIR", help="a run in this process")
    parser.add_argument("--plain", action="store_true")
    known = parser.parse_args()
    if known.train:
        return train(known.model, known.train, known.plain)
    import torch

    from fastrl.bench.kernels import where

    record: dict[str, Any] = {"settings": SETTINGS, **where(torch.device("cpu"))}
    for name, plain in (("fastrl", False), ("plain torch", True)):
        record[name] = measure(known.model, plain)
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in record[name].items())
        print(f"{name}: {numbers}", flush=True)
    if known.out:
        known.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
