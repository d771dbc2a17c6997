"""`fastrl bench`: its arguments, and the lines that it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastrl.errors import UsageError, check_folders


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("kernels", "grading", "sampler", "step"))
    parser.add_argument("--out", metavar="FILE.json", help="write the rows there")
    parser.add_argument("--only", metavar="NAME", help="one operation or workload")
    parser.add_argument(
        "--shape",
        metavar="N,N[,N]",
        help="of kernels: tokens, vocabulary, width of the head; of the sampler: responses, tokens"
        " of a prompt, new tokens; of the step: prompts, responses a prompt, new tokens",
    )
    parser.add_argument(
        "--dtype", metavar="D", help="of all but the grader: float32, bfloat16 or float16"
    )
    parser.add_argument("--model", metavar="DIR", help="of sampler and step; default: SmolLM2-135M")
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="turns of each; default: 7, of sampler and step 3"
    )
    parser.add_argument(
        "--once", action="store_true", help="run each case once, untimed, for a profiler"
    )


def bench_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl bench: validate, time, print a line a result, write JSON rows."""
    of_models = known.what in ("sampler", "step")
    usual = 3 if of_models else 7
    repeats = usual if known.repeats is None else known.repeats
    if repeats < 1:
        raise UsageError(f"--repeats is {known.repeats}; it must be at least 1")
    try:
        shape = tuple(int(n) for n in known.shape.split(",")) if known.shape else None
    except ValueError:
        raise UsageError(f"--shape is {known.shape!r}; write numbers, as 512,49152") from None
    if known.what == "grading" and (shape or known.dtype):
        raise UsageError("--shape and --dtype are not of `bench grading`; leave them out")
    if known.model and not of_models:
        raise UsageError("--model is of `bench sampler` and `bench step`; leave it out")
    check_folders(known.out)
    from fastrl.bench import grading, kernels, sampler, step

    if known.what == "kernels":
        found = kernels.run(known.only, shape, known.dtype, repeats, known.once)
    elif of_models:
        suite = sampler if known.what == "sampler" else step
        found = suite.run(known.only, shape, known.dtype, repeats, known.once, known.model)
    else:
        found = grading.run(known.only, repeats, known.once)
    rows = []
    for row in found:
        rows.append(row)
        where = "x".join(map(str, row["shape"]))
        line = f"{row['name']:<32} {where:<16} {row['dtype']:<9} {row['ms']:9.2f} ms"
        if "answers_per_s" in row:
            line += f"  {row['answers_per_s']:9,.0f} answers/s, threads {row['threads']}"
        if "tokens_per_s" in row:
            line += f"  {row['tokens_per_s']:9,.0f} tokens/s"
        if "share_of_bare_matmuls" in row:
            line += f", {100 * row['share_of_bare_matmuls']:.0f} % of bare matmuls"
        if "share_of_matmul_rate" in row:
            line += f"  {100 * row['share_of_matmul_rate']:.0f} % of the matmul rate"
        if "planned_bytes" in row:
            line += f"  at {row['value']:,}, memory planned {row['planned_bytes'] / 1e9:.2f} GB"
            if row["peak_bytes"] is not None:
                line += f", measured {row['peak_bytes'] / 1e9:.2f} GB"
        if row.get("baseline_failed"):
            line += f"  {row['baseline']:<24} did not run: {row['baseline_failed']}"
        elif row["baseline"]:
            line += f"  {row['baseline']:<24} {row['baseline_ms']:9.2f} ms  {row['speedup']:6.2f}x"
        print(line, flush=True)
        if known.out:  # after every row: a run that is cut off keeps what it has
            Path(known.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0
