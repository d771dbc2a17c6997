"""Opens damaged and adversarial files, one after the other, as fastrl opens them for a user.

`python hostile_readers.py KIND FIRST LAST FOLDER` prints two lines of JSON for each case from FIRST
up to LAST: what was done to a file, and what came of it: "read", "refused: " with the sentence,
or "WRONG: " with what must not be: an exception that is no refusal, a file that its code made,
more than HEADROOM bytes of memory. What runs a program, unpickles or connects ends the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from hostile_files import KINDS, MARK, attack

from fastrl.alerts import alerts
from fastrl.capsule import read as read_capsule
from fastrl.checkpoint import damage, newest_valid, read_state
from fastrl.config import read_toml
from fastrl.datasources import load_examples
from fastrl.device_memory import peak_resident_bytes
from fastrl.errors import Failure, UsageError
from fastrl.guard import Vitals
from fastrl.model import load_model
from fastrl.run_directory import RunDirectory
from fastrl.shapes import outline
from fastrl.tokenizer import load_tokenizer

HEADROOM = 1 << 29  # of bytes of memory beside what the process had before a case
SECONDS = 30  # for one case


def read_weights(directory: Path) -> None:
    load_model(directory, device="cpu")


def read_tokenizer(directory: Path) -> None:
    outline(str(directory))
    tokenizer = load_tokenizer(directory)
    tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "1+1 \\boxed{2}"}]))


def read_rows(name: str) -> Callable[[Path], None]:
    def read(directory: Path) -> None:
        for example in load_examples(str(directory / name), split="all", limit=20_000):
            for turn in example.messages:
                turn["content"].encode()
            example.answer.encode()

    return read


def read_run(directory: Path) -> None:
    """What a resumption reads; the damaged checkpoint has to be named and passed over."""
    before = {p: p.read_bytes() for p in (directory / "checkpoints").rglob("*") if p.is_file()}
    run = RunDirectory.open(directory)
    read_toml(run.config)
    newest, skipped = newest_valid(run.checkpoints)
    if newest is None or damage(newest) is not None:
        raise AssertionError(f"no checkpoint is left: {skipped}")
    read_state(newest)
    step = int(newest.name.removeprefix("step_"))
    if len(skipped) != 2 - step:
        raise AssertionError(f"{newest.name} is used, and said is {skipped}")
    run.cut_back(step)
    run.read_metrics(), run.read_evaluations(), run.accuracies(), run.read_environment()
    run.has_evaluation(1, "validation")
    alerts(run.read_metrics())
    [Vitals.of_metrics(line) for line in run.read_metrics()]
    [run.attempt(step) for step in range(3)]
    run.capsules(0)
    if before != {p: p.read_bytes() for p in before}:
        raise AssertionError("a checkpoint was changed")


READERS: dict[str, Callable[[Path], object]] = {
    "weights": read_weights,
    "tokenizer": read_tokenizer,
    "jsonl": read_rows("rows.jsonl"),
    "parquet": read_rows("rows.parquet"),
    "capsule": read_capsule,
    "run": read_run,
}


def outcome(read: Callable[[Path], object], directory: Path) -> str:
    try:
        read(directory)
    except (UsageError, Failure) as error:
        sentence = str(error)
        is_clear = 20 < len(sentence) < 1200 and "\n" not in sentence
        return f"{'refused' if is_clear else 'WRONG'}: {sentence}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"WRONG: {type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
        )
    if list(directory.parent.rglob(MARK)):
        return "WRONG: code of a file was run"
    return "read"


def forbid() -> None:
    """From here on the process ends where it runs a program, unpickles or connects."""
    forbidden = {"pickle.find_class", "os.system", "os.exec", "os.fork", "os.posix_spawn",
                 "subprocess.Popen", "socket.connect"}  # fmt: skip

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in forbidden:
            print(f"FORBIDDEN {event} {arguments!r:.200}", flush=True)
            os._exit(3)

    sys.addaudithook(watch)


def forget_peak() -> int:
    """Give back what is free, and begin a new peak of resident memory: its bytes so far."""
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_resident_bytes()


def main(kind: str, first: int, last: int, folder: Path) -> None:
    prepare, read = KINDS[kind][0], READERS[kind]
    torch.set_num_threads(1)
    whole, case = folder / "whole", folder / "case"
    whole.mkdir(parents=True)
    prepare(whole)
    os.chdir(folder)
    shutil.copytree(whole, case)
    assert outcome(read, case) == "read"
    forbid()
    most = 0
    for number in range(first, last):
        shutil.rmtree(case)
        shutil.copytree(whole, case)
        what = attack(kind, number, case)
        print(json.dumps({"case": number, "what": what}), flush=True)
        before = forget_peak()
        signal.alarm(SECONDS)
        found = outcome(read, case)
        signal.alarm(0)
        grown = peak_resident_bytes() - before
        most = max(most, grown)
        if grown > HEADROOM:
            found = f"WRONG: {grown:,} bytes"
        print(json.dumps({"case": number, "found": found, "grown": most}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
