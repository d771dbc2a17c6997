"""A study as the README and docs show it: tables, a picture, and the figures that are kept.

    fastrl study --models embedded:0,embedded,embedded:0.5 --arms sharpen,task --seeds 10 \\
        --samples-of-trained 64 --output-dir DIR
    python bench/study.py DIR [--into README.md docs/study.md] [--expected FILE.json --command TEXT]

Writes study-NAME.json (study.json without responses) and study-NAME.png to --out-dir.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrl.bench.marked import put
from fastrl.study.page_rows import arms_of
from fastrl.study.tables import number, percent, points, share
from fastrl.study.verify import expectations

COLORS = ("#2b8a3e", "#1f5fa8", "#c92a2a", "#7048a8", "#d1711c", "#555555", "#0b7285")
STYLES, MARKERS = ("-", "--", "-.", ":"), "o^sDvPX"


def results(study: Mapping[str, Any]) -> str:
    """A row a model: what its samples predicted, and what training did."""
    arms = list(dict.fromkeys(row["arm"] for row in study["arms"]))
    heads = ["model", "base", "Cov(r, log p) of the base"]
    for arm in arms:
        sharpens = "sharpen" in arm
        heads += [f"`{arm}`, predicted", "after training"] if sharpens else [f"after `{arm}`"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = {(row["model"], row["arm"]): row for row in study["arms"]}
    for model, base in study["models"].items():
        cells = [f"`{model}`", share(base["accuracy"])]
        cells.append(f"{base['covariance']['mean']:+.2f} nats")
        for arm in arms:
            row = rows.get((model, arm))
            if "sharpen" in arm:
                cells.append(percent(row["predicted"]["accuracy"]) if row else "")
            cells.append(share(row["last"]["accuracy"]) if row else "")
        lines.append(f"| {' | '.join(cells)} |")
    seeds = min(len(row["seeds"]) for row in study["arms"])
    prompts = next(iter(study["models"].values()))["prompts"]
    lines += ["", f"Accuracy in % on {prompts} test prompts: mean and 95 % bootstrap interval over"
              f" prompts and {seeds} seeds."]  # fmt: skip
    return "\n".join(lines)


def every_arm(study: Mapping[str, Any]) -> str:
    """A row an arm: where it leads to, by its prediction and by training."""
    lines = [
        "| model | arm | converges to | predicted, % | after training, % | gain, points"
        " | best checkpoint, % | KL, nats | tokens |",
        "|---" * 9 + "|",
    ]
    for model, base in study["models"].items():
        cells = [f"`{model}`", "base", "`p`", "", share(base["accuracy"]), "", "", "0"]
        lines.append(f"| {' | '.join(cells)} | {number(base['length'])} |")
        for row in arms_of(study, model):
            last = row["last"]
            predicted = percent(row["predicted"]["accuracy"]) if "predicted" in row else ""
            cells = [
                "", f"`{row['arm']}`", f"`{row['target']}`", predicted, share(last["accuracy"]),
                points(last["gain"]), percent(row["best"]["accuracy"]), f"{last['kl']['mean']:.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} | {number(last['length'])} |")
    return "\n".join(lines)


def verdicts(study: Mapping[str, Any]) -> str:
    """The claims, a row a figure."""
    lines = [
        "| claim | verdict | figure | model | found | could have been found |",
        "|---" * 6 + "|",
    ]
    for claim in study["claims"]:
        for i, e in enumerate(claim["evidence"]):
            name = f"({claim['number']}) {claim['claim']}" if i == 0 else ""
            verdict = f"**{claim['verdict']}**" if i == 0 else ""
            lines.append(
                f"| {name} | {verdict} | {e['what']} | `{e['model']}` | {points(e)} |"
                f" {100 * e['detectable']:.1f} |"
            )
    return "\n".join(lines)


def baselines(study: Mapping[str, Any]) -> str:
    """What sampling alone gives, a column a model."""
    models = list(dict.fromkeys(row["model"] for row in study["baselines"]))
    if not models:
        return ""
    lines = [
        "| without training | " + " | ".join(f"`{m}`, % (tokens)" for m in models) + " |",
        "|---" * (len(models) + 1) + "|",
    ]
    rows: dict[str, dict[str, str]] = {}
    for row in study["baselines"]:
        steps = row.get("as_power_steps")
        label = (
            f"{row['label'].split(' of ')[0]}, tokens of {steps} moves" if steps else row["label"]
        )
        cell = f"{share(row['accuracy'])} ({row['tokens']['mean']:.0f})"
        rows.setdefault(label, {})[row["model"]] = cell
    for label, cells in rows.items():
        lines.append(f"| {label} | " + " | ".join(cells.get(m, "") for m in models) + " |")
    return "\n".join(lines)


def passes(study: Mapping[str, Any]) -> str:
    """pass@k and maj@k of each model and its arms, for every other power of two, in %."""
    ks = [k for k in next(iter(study["models"].values()))["pass"] if int(k).bit_length() % 2]
    heads = ["model", "arm", *(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for model, base in study["models"].items():
        rows = [("base", base), *((f"`{r['arm']}`", r["last"]) for r in arms_of(study, model))]
        for name, row in rows:
            of = [row[what].get(k) for what in ("pass", "maj") for k in ks]
            cells = [f"`{model}`", name, *("" if v is None else percent(v) for v in of)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PARTS = {
    "results": results, "arms": every_arm, "passes": passes, "verdicts": verdicts,
    "baselines": baselines,
}  # fmt: skip


def exact(found: Mapping[str, Any]) -> str:
    """The claims of exact.json, and what became of the crowd."""
    lines = [
        "| converges to | base, % | its optimum, % | trained, % | distance |",
        "|---" * 5 + "|",
    ]
    for row in found["crowd"]:
        shares = (f"{100 * row[k]:.2f}" for k in ("base", "optimum", "trained"))
        lines.append(f"| `{row['target']}` | {' | '.join(shares)} | {row['distance']:.4f} |")
    return "\n".join([*lines, "", verdicts(found)])


def rounded(value: Any) -> Any:
    """The same with seven digits of each number: tables of it round as those of all digits do."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def draw(study: Mapping[str, Any], path: Path) -> None:
    """Left: gains against their predictions. Right: accuracy over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    # one model: a colour for each kind of arm; more: a colour for each model
    which = "kind" if len(study["models"]) == 1 else "model"
    colors = list(dict.fromkeys(row[which] for row in study["arms"]))
    drawn: Counter[str] = Counter()  # arms of a colour, told apart by lines and marks
    for row in study["arms"]:
        color = COLORS[colors.index(row[which]) % len(COLORS)]
        line, mark = (signs[drawn[row[which]] % len(signs)] for signs in (STYLES, MARKERS))
        drawn[row[which]] += 1
        steps, curve = row["curves"]["step"], row["curves"]["task_accuracy"]["mean"]
        right.plot(
            steps, [100 * v for v in curve], linewidth=1.4, linestyle=line, color=color,
            marker=mark, markersize=5, markevery=(len(steps) // 10, max(1, len(steps) // 5)),
            label=row["arm"] if which == "kind" else f"{row['model']}, {row['arm']}",
        )  # fmt: skip
        gain = row["last"]["gain"]
        mean, low, high = (100 * gain[k] for k in ("mean", "low", "high"))
        left.errorbar(
            [100 * row["predicted"]["gain"]["mean"]], [mean], yerr=[[mean - low], [high - mean]],
            fmt=mark, capsize=4, color=color,
        )  # fmt: skip
    ends = [min(0, *left.get_xlim()), max(left.get_xlim())]
    left.plot(ends, ends, color="#888", linewidth=0.8, linestyle=":")
    left.annotate("as predicted", (ends[1], ends[1]), color="#888", fontsize=7, ha="right")
    left.axhline(0, color="#888", linewidth=0.8)
    left.set_xlabel("predicted from samples of the base model, points")
    left.set_ylabel("reached after training, points")
    left.set_title("the gain of the optimum, and of the trained policy", fontsize=10)
    right.set_xlabel("step")
    right.set_ylabel("accuracy of the rollouts, %")
    right.set_title("over the steps, means over seeds", fontsize=10)
    right.set_ylim(0, 100)
    for axis in (left, right):
        axis.grid(alpha=0.25, linewidth=0.5)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Write what is kept, and put the tables between the marks of files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", default="embedded")
    parser.add_argument("--into", type=Path, nargs="*", default=[])
    parser.add_argument("--out-dir", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--expected", type=Path, help="also write a file of expectations")
    parser.add_argument("--command", default="", help="that made the study, for --expected")
    known = parser.parse_args()
    if (known.directory / "exact.json").is_file():
        found = json.loads((known.directory / "exact.json").read_text())
        (known.out_dir / "exact.json").write_text(json.dumps(found, indent=1) + "\n")
        text = exact(found)
        print(text)
        for path in known.into:
            put(text, path, "exact", "study.py")
        return 0
    study = json.loads((known.directory / "study.json").read_text())
    kept = rounded({k: v for k, v in study.items() if k not in ("texts", "commands")})
    text = json.dumps(kept, indent=1).replace(str(Path.home()), "~")
    (known.out_dir / f"study-{known.name}.json").write_text(text + "\n")
    draw(study, known.out_dir / f"study-{known.name}.png")
    if known.expected:
        known.expected.write_text(json.dumps(expectations(study, known.command), indent=1) + "\n")
    for part, make in PARTS.items():
        text = make(study)
        print(text, end="\n\n")
        for path in known.into:
            put(text, path, f"study {known.name} {part}", "study.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
