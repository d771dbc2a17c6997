"""A roofline picture of `fastrl bench kernels`: python bench/roofline.py RECORD.json PICTURE.png

Work over bytes that have to move, against the work done in a second; filled: fastrl, hollow: rest.
The slope is the bandwidth of a copy at the cases' footprint, the flat part the head's bare
products, both of the same run. Work of a row operation, an exponential counted as one: 7 a logit
(compare, subtract, multiply, 2^t, add, multiply-add), and 6 more for its gradient (subtract,
multiply, 2^t, multiply-add, multiply).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FORWARD, GRADIENT = 7, 6  # operations a logit
ROWS = {  # operations a logit, and logits moved
    "logprobs_and_entropy": (FORWARD, 1),
    "logprobs_and_entropy, backward": (2 * FORWARD + GRADIENT, 3),
    "policy_loss": (FORWARD + GRADIENT, 2),
}
PRODUCTS = {  # times T V D
    "linear_policy_loss": 6,
    "linear_policy_loss, any loss of rows": 6,
    "linear_logprobs_and_entropy": 8,
}
ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


def points(record: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Intensity (operations a byte) and speed (operations a second) of every contender."""
    found = []
    for row in record:
        size, shape = ELEMENT[row["dtype"]], row["shape"]
        if row["name"] in ROWS:
            work, moved = ROWS[row["name"]]
            logits = shape[0] * shape[1]
            work, moved = work * logits, moved * logits * size
        elif row["name"] in PRODUCTS:
            tokens, vocab, width = shape
            work = PRODUCTS[row["name"]] * tokens * vocab * width
            moved = 2 * size * width * (tokens + vocab)  # inputs and their gradients
        else:
            continue
        for name, ms in (("fastrl", row["ms"]), (row["baseline"], row["baseline_ms"])):
            if name and ms:
                found.append({"case": f"{row['name']}, {row['dtype']}", "who": name,
                              "intensity": work / moved, "speed": work / (1e-3 * ms)})  # fmt: skip
    return found


def draw(record: list[dict[str, Any]], path: Path) -> None:
    """The picture as a file."""
    known = points(record)
    copies = [row["copy_gb_per_s"] for row in record if "copy_gb_per_s" in row]
    bandwidth = 1e9 * sorted(copies)[len(copies) // 2]
    flat = max(p["speed"] for p in [p for p in known if "bare" in p["who"]] or known)
    figure, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
    left, right = 0.5 * min(p["intensity"] for p in known), 2 * max(p["intensity"] for p in known)
    ridge = flat / bandwidth
    axes.plot([left, ridge, max(right, ridge)], [left * bandwidth, flat, flat], color="0.3", lw=1.5)
    middle = (ridge / 2, ridge / 2 * bandwidth)
    axes.annotate(f"copy, {bandwidth / 1e9:.0f} GB/s", middle, (10, -10),
                  textcoords="offset points", color="0.3")  # fmt: skip
    axes.annotate("bare matrix products", (right / 2, flat), (-4, 6), textcoords="offset points",
                  ha="right", color="0.3")  # fmt: skip
    colours = {case: f"C{i}" for i, case in enumerate(dict.fromkeys(p["case"] for p in known))}
    labelled = set()
    for p in known:
        ours = p["who"] == "fastrl"
        label = p["case"] if ours and p["case"] not in labelled else None
        labelled.add(p["case"])
        colour = colours[p["case"]]
        axes.plot(p["intensity"], p["speed"], "o", ms=9 if ours else 5, color=colour,
                  mfc=colour if ours else "none", label=label, zorder=3 if ours else 2)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(None, 2 * flat),
             xlabel="operations a byte that has to move", ylabel="operations a second")  # fmt: skip
    axes.set_title(f"fastrl (filled) and others (hollow); {record[0]['machine']}", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the record, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("picture", type=Path)
    known = parser.parse_args()
    draw(json.loads(known.record.read_text()), known.picture)


if __name__ == "__main__":
    main()
