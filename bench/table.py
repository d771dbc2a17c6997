"""Rows of `fastrl bench` as a Markdown table, on the standard output or between a file's marks.

python bench/table.py bench/results/kernels-cpu.json [--into README.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastrl.bench.marked import put


def mark(record: list[dict[str, Any]]) -> str:
    """The name of the place where a file holds the table of such rows."""
    keys = {"answers_per_s": "grading", "tokens_per_s": "sampler", "rows": "step", "loss_ms": "trl"}
    return next((name for key, name in keys.items() if key in record[0]), "kernels")


def table(record: list[dict[str, Any]]) -> str:
    """The times, then the errors against fp64, then the machine."""
    machine = f"{record[0]['machine']}; {record[0]['versions']}."
    if "answers_per_s" in record[0]:
        return f"{rates(record)}\n\n{machine}"
    if "tokens_per_s" in record[0]:
        return "\n\n".join(part for part in (speeds(record), costs(record), machine) if part)
    if "rows" in record[0]:
        return "\n\n".join((steps(record), machine))
    if "loss_ms" in record[0]:
        return "\n\n".join((patched(record), machine))
    parts = [times(record), errors(record), machine]
    return "\n\n".join(part for part in parts if part)


def _groups(record: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in record:
        key = (row["name"], *row["shape"], row["dtype"], row.get("model"))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def rates(record: list[dict[str, Any]]) -> str:
    """Answers a second of each workload, with one thread and more, beside the rival's."""
    lines = [
        "| half of them wrong | threads | fastrl, answers/s | wrong | Math-Verify, answers/s"
        " | wrong | faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record:
        rival = ["did not run", "", ""]
        if row["baseline_ms"] is not None:
            share = row["baseline_wrong_verdicts"] / row["baseline_graded"]
            rival = [
                f"{row['baseline_answers_per_s']:,.0f}",
                f"{100 * share:.1f} %",
                f"{row['speedup']:,.0f}x",
            ]
        ours = [f"{row['answers_per_s']:,.0f}", str(row["wrong_verdicts"])]
        cells = [f"{row['shape'][0]:,} {row['name']}", str(row["threads"]), *ours, *rival]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PHASES = ("sample", "grade", "reference", "train")


def steps(record: list[dict[str, Any]]) -> str:
    """Whole steps by phase beside TRL's; then the training pass alone, as a share of its bound."""
    lines = [
        "| | model | prompts x responses x new | dtype | a step | sampling | grading | scoring"
        " | training | TRL's step | faster |",
        "|---" * 11 + "|",
    ]
    alone = [
        "| | model | sequences x prompt x new | dtype | rows | time | TFLOP/s"
        " | of the matmul rate |",
        "|---" * 8 + "|",
    ]
    for row in record:
        head = [row["name"], row["model"], _shape(row), row["dtype"]]
        if "train_ms" in row:
            rival = ["did not run" if row["baseline"] else "", ""]
            if row["baseline_ms"] is not None:
                rival = [_ms(row["baseline_ms"]), f"{row['speedup']:.1f}x"]
            phases = [_ms(row[f"{phase}_ms"]) for phase in PHASES]
            lines.append("| " + " | ".join([*head, _ms(row["ms"]), *phases, *rival]) + " |")
        else:
            share = f"{100 * row['share_of_matmul_rate']:.0f} %"
            cells = [*head, f"{row['rows']:,}", _ms(row["ms"]), f"{row['tflops']:.3f}", share]
            alone.append("| " + " | ".join(cells) + " |")
    return "\n\n".join("\n".join(part) for part in (lines, alone) if len(part) > 2)


def patched(record: list[dict[str, Any]]) -> str:
    """Steps of TRL, its own functions and fastrl's in turns."""
    lines = [
        "| | model | prompts x responses x new | dtype | a step | loss, gradient, update"
        " | faster |",
        "|---" * 7 + "|",
    ]
    for row in record:
        faster = "" if row["speedup"] is None else f"{row['speedup']:.2f}x"
        head = [row["name"], row["model"], _shape(row), row["dtype"]]
        lines.append(f"| {' | '.join([*head, _ms(row['ms']), _ms(row['loss_ms']), faster])} |")
    return "\n".join(lines)


LIMITS = {  # share of what: the column's name
    "share_of_bare_matmuls": "of bare matmuls",
    "share_of_limit": "of the limit",
    "share_of_matmul_rate": "of the matmul rate",
}


def speeds(record: list[dict[str, Any]]) -> str:
    """Tokens a second of the sampler, as shares of the bounds, and transformers' beside it."""
    groups = [rows for rows in _groups(record) if "baseline_rows_computed" not in rows[0]]
    if not groups:
        return ""
    shares = [key for key in LIMITS if any(key in rows[0] for rows in groups)]
    titles = [
        "", "model", "responses x prompt x new", "dtype", "fastrl, tokens/s",
        *(LIMITS[key] for key in shares), "others, tokens/s",
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for rows in groups:
        row = rows[0]
        others = _others(rows, lambda r: f"{r['baseline_tokens_per_s']:,.0f}")
        cells = [
            row["name"], _model(row), _shape(row), row["dtype"], f"{row['tokens_per_s']:,.0f}",
            *(f"{100 * row[key]:.0f} %" if key in row else "" for key in shares), others,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(record: list[dict[str, Any]]) -> str:
    """Rows that the sampler computed and the time of one, beside the same work otherwise."""
    found = [row for row in record if "baseline_rows_computed" in row]
    if not found:
        return ""
    lines = [
        "| | model | responses x prompt x new | dtype | rows computed | as a padded batch | time"
        " | a row | beside it | rows computed | time | a row |",
        "|---" * 12 + "|",
    ]
    for row in found:
        cells = [
            row["name"], _model(row), _shape(row), row["dtype"], f"{row['rows_computed']:,}",
            f"{row['padded_rows']:,}", _ms(row["ms"]), _ms(row["us_per_row"] / 1000),
            row["baseline"], f"{row['baseline_rows_computed']:,}", _ms(row["baseline_ms"]),
            _ms(row["baseline_us_per_row"] / 1000),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _others(rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], str]) -> str:
    """Every rival of a case with its figure and how many times as long it took."""
    return "; ".join(
        f"{r['baseline']} did not run"
        if r["baseline_ms"] is None
        else f"{r['baseline']} {figure(r)} ({r['speedup']:.1f}x)"
        for r in rows
        if r["baseline"]
    )


def _model(row: dict[str, Any]) -> str:
    return row["model"] + (", random weights" if row["weights"] == "random" else "")


def times(record: list[dict[str, Any]]) -> str:
    """A line for each operation, shape and dtype; rivals' times beside ours."""
    lines = [
        "| operation | shape | dtype | fastrl | of a copy's bandwidth | peak memory | others |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in _groups(record):
        row = rows[0]
        share = f"{100 * row['fraction_of_copy']:.0f} %" if "fraction_of_copy" in row else ""
        others = _others(rows, lambda r: _ms(r["baseline_ms"]))
        cells = [
            row["name"], _shape(row), row["dtype"], _ms(row["ms"]), share,
            _bytes(row["peak_bytes"]), others,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def errors(record: list[dict[str, Any]]) -> str:
    """The largest error against fp64 of everybody, where rivals' were measured."""
    groups = [
        (rows[0], {r["baseline"]: r.get("baseline_max_error") for r in rows})
        for rows in _groups(record)
        if any(r.get("baseline_max_error") is not None for r in rows)
    ]
    names = list(dict.fromkeys(name for _, found in groups for name in found))
    if not names:
        return ""
    lines = [
        "Largest absolute error against fp64, of values and gradients:",
        "",
        "| operation | shape | dtype | " + " | ".join(["fastrl", *names]) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row, found in groups:
        others = (found.get(name) for name in names)
        numbers = ["" if error is None else f"{error:.1e}" for error in (row["max_error"], *others)]
        lines.append("| " + " | ".join([row["name"], _shape(row), row["dtype"], *numbers]) + " |")
    return "\n".join(lines)


def _shape(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["shape"]))


def _ms(value: float) -> str:
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"


def _bytes(value: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"


def main() -> int:
    """Print the table, or put it between the marks of a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--into", type=Path)
    known = parser.parse_args()
    record = json.loads(known.record.read_text())
    text = table(record)
    if known.into is None:
        print(text)
        return 0
    if put(text, known.into, mark(record), "table.py"):
        return 0
    print(f"{known.into} lacks the marks of {mark(record)}; add them", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
