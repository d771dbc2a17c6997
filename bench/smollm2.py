"""The measured curves of runs of configs/smollm2.toml, as one JSON file and one picture.

python bench/fetch_smollm2.py
fastrl train configs/smollm2.toml --objective sharpen --output-dir runs/smollm2-sharpen
fastrl train configs/smollm2.toml --objective task --output-dir runs/smollm2-task
python bench/smollm2.py runs/smollm2-sharpen runs/smollm2-task
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from fastrl.config import read_toml, to_dict

KEPT = (
    "task_accuracy", "kl", "length_mean", "entropy", "reward_mean", "reward_group_std",
    "cov_reward_ref_logprob", "grad_norm", "mismatch_kl", "tokens_sampled",
)  # fmt: skip
PANELS = (
    ("task_accuracy", "accuracy of the rollouts"),
    ("kl", "KL(policy || base), nats a response"),
    ("length_mean", "response length, tokens"),
)


def read(run: Path) -> dict[str, Any]:
    """Settings, curves and evaluations of a run directory."""
    steps, evaluations = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "eval.jsonl")
    )
    settings = to_dict(read_toml(run / "config.toml"))
    settings["model"].pop("name")  # a path of one machine
    settings["train"].pop("output_dir")
    return {
        "objective": settings["objective"]["name"],
        "settings": settings,
        "curves": {key: [step[key] for step in steps] for key in KEPT},
        "evaluations": evaluations,
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel each for accuracy, KL and length over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle("SmolLM2-135M-Instruct, weights quantised to 4 bits", fontsize=10)
    for axis, (key, name) in zip(figure.subplots(1, 3), PANELS, strict=True):
        for run in runs:
            values = run["curves"][key]
            axis.plot(range(1, len(values) + 1), values, marker=".", label=run["objective"])
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Write smollm2.json and smollm2.png."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out-dir", type=Path, default=Path(__file__).parent / "results")
    known = parser.parse_args()
    runs = [read(path) for path in known.runs]
    record = {
        "model": "SmolLM2-135M-Instruct, weights quantised to 4 bits",
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "runs": runs,
    }
    (known.out_dir / "smollm2.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(runs, known.out_dir / "smollm2.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
