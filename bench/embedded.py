"""What sharpening and task reward do to the embedded models, next to what the base alone predicted.

    python bench/embedded.py [--seeds 10] [--jobs 2]

Every run is `fastrl train` with its defaults on one thread, without the evaluations on the way. A
run that is finished in --runs-dir is not made again. Writes embedded.json and embedded.png to
--out-dir and prints the table of the README.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from fastrl.embedded import DIRECTORIES
from fastrl.embedded.measure import FIGURES
from fastrl.statistics import bootstrap_interval

DEFAULT = "embedded:0.25"
TASK_SEEDS = 3  # it ends within a few points of the same accuracy whatever the seed


def train(model: str, objective: str, seed: int, runs_dir: Path) -> dict[str, Any]:
    """The figures of one run on its test split: base, trained, and the seconds it took."""
    run = runs_dir / f"{model.replace(':', '-')}-{objective}-{seed}"
    if not (run / "curves.png").exists():
        shutil.rmtree(run, ignore_errors=True)
        fastrl = Path(sys.executable).parent / "fastrl"
        settings = {
            "--model": model,
            "--objective": objective,
            "--seed": str(seed),
            "--output-dir": str(run),
            "--train.threads": "1",
            "--eval.every": "0",
            "--checkpoint.every": "0",
        }
        command = [str(fastrl), "train", *itertools.chain(*settings.items())]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    base, trained = (line for line in lines if line["split"] == "test")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("accuracy", "ci95", "kl", "length_mean", "pass@4", "maj@4")
    return {
        "model": model,
        "objective": objective,
        "seed": seed,
        "steps": len(steps),
        "test_prompts": base["num_prompts"],
        "base": {key: base[key] for key in kept},
        "trained": {key: trained[key] for key in kept},
        "rollout_accuracy": [round(m["task_accuracy"], 4) for m in steps],
        "rollout_kl": [round(m["kl"], 3) for m in steps],
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a model: what was predicted, and accuracies as mean and 95 % interval over seeds."""
    figures = json.loads(FIGURES.read_text())
    result = []
    for model in DIRECTORIES:
        own = [r for r in rows if r["model"] == model]
        row: dict[str, Any] = {"model": model, **figures[model]["all"]}
        row["base"] = spread([r["base"]["accuracy"] for r in own if r["objective"] == "sharpen"])
        for objective in sorted({r["objective"] for r in own}):
            some = [r for r in own if r["objective"] == objective]
            row[objective] = spread([r["trained"]["accuracy"] for r in some])
            gains = [r["trained"]["accuracy"] - r["base"]["accuracy"] for r in some]
            row[f"{objective}_gain"] = spread(gains)
            row[f"{objective}_kl"] = float(np.mean([r["trained"]["kl"] for r in some]))
            row[f"{objective}_length"] = float(np.mean([r["trained"]["length_mean"] for r in some]))
        result.append(row)
    return result


def spread(values: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % bootstrap interval over seeds."""
    return float(np.mean(values)), *bootstrap_interval(np.array(values))


def markdown(rows: list[dict[str, Any]], seeds: int) -> str:
    """The table of the README."""

    def cell(values: tuple[float, float, float], scale: float = 100) -> str:
        mean, low, high = (scale * v for v in values)
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    lines = [
        "| model | base | Cov(r, log p) of the base | p^4 / Z, predicted | after `sharpen` |"
        " after `task` |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        task = cell(row["task"]) if "task" in row else "not run"
        lines.append(
            f"| `{row['model']}` | {cell(row['base'])} | {row['covariance']:+.2f} nats |"
            f" {100 * row['power_accuracy']:.1f} | {cell(row['sharpen'])} | {task} |"
        )
    note = (
        f"Accuracy in % on the test split: mean and 95 % bootstrap interval over {seeds} seeds"
        f" (`task`: {min(TASK_SEEDS, seeds)})."
    )
    return "\n".join([*lines, "", note])


def draw(rows: list[dict[str, Any]], runs: list[dict[str, Any]], path: Path) -> None:
    """Left: the gain of sharpening against its prediction. Right: accuracy over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = dict(zip(DIRECTORIES, ("#2b8a3e", "#1f5fa8", "#c92a2a"), strict=True))
    for row in rows:
        predicted = 100 * (row["power_accuracy"] - row["accuracy"])
        mean, low, high = (100 * v for v in row["sharpen_gain"])
        left.errorbar(
            [predicted], [mean], yerr=[[mean - low], [high - mean]], fmt="o", capsize=4,
            color=colors[row["model"]],
            label=f"{row['model']}, Cov(r, log p) {row['covariance']:+.2f}",
        )  # fmt: skip
    ends = np.array(left.get_xlim())
    left.plot(ends, ends, color="#888", linewidth=0.8, linestyle=":", label="as predicted")
    left.axhline(0, color="#888", linewidth=0.8)
    left.set_xlabel("predicted from samples of the base model, points")
    left.set_ylabel("reached after training, points")
    left.set_title("what `sharpen` does to accuracy", fontsize=10)
    for model, objective in sorted({(r["model"], r["objective"]) for r in runs}):
        curves = [
            r["rollout_accuracy"]
            for r in runs
            if (r["model"], r["objective"]) == (model, objective)
        ]
        right.plot(
            np.arange(1, len(curves[0]) + 1), 100 * np.mean(curves, axis=0), linewidth=1.4,
            linestyle="-" if objective == "sharpen" else "--", color=colors[model],
            label=f"{model}, {objective}",
        )  # fmt: skip
    right.set_xlabel("step")
    right.set_ylabel("accuracy of the rollouts, %")
    right.set_title("solid: sharpen (alpha 4), dashed: task", fontsize=10)
    right.set_ylim(0, 100)
    for axis in (left, right):
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.25, linewidth=0.5)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Make the runs that are missing, then the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--out-dir", type=Path, default=Path(__file__).parent / "results")
    known = parser.parse_args()
    sharpen = itertools.product(DIRECTORIES, ["sharpen"], range(known.seeds))
    task = itertools.product([DEFAULT], ["task"], range(min(TASK_SEEDS, known.seeds)))
    jobs = [(*case, known.runs_dir) for case in sorted([*sharpen, *task], key=lambda c: c[2])]
    with ThreadPoolExecutor(known.jobs) as pool:
        results = pool.map(lambda job: train(*job), jobs)
        runs = list(track(results, description="runs", total=len(jobs)))
    rows = table(runs)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    (known.out_dir / "embedded.json").write_text(
        json.dumps({**machine, "table": rows, "runs": runs}, indent=1) + "\n"
    )
    draw(rows, runs, known.out_dir / "embedded.png")
    print(markdown(rows, known.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
