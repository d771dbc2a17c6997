"""Trains the embedded model and prints, after each step, what the process holds: bytes, open files,
threads. `python leaking_run.py STEPS WORD...`; with the word `--leak` it leaks some of each.
"""

import os
import sys
import threading

import fastrl.display
from fastrl.cli import main
from fastrl.device_memory import resident_bytes

steps, words = sys.argv[1], sys.argv[2:]
leaks = "--leak" in words
kept: list[object] = []
show = fastrl.display.Display.step


def step(self, metrics):
    show(self, metrics)
    if leaks:
        kept.append(bytearray(2_000_000))
        kept.append(open(os.devnull))  # noqa: SIM115
        kept.append(threading.Timer(3600, print))
        kept[-1].daemon = True
        kept[-1].start()
    held = resident_bytes(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    print(*held, file=sys.stderr, flush=True)


fastrl.display.Display.step = step
sys.exit(main(["train", "--train.max_steps", steps, *(w for w in words if w != "--leak")]))
