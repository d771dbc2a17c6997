"""What a terminal of 80 columns shows while a run works."""

import io

from rich.console import Console

from fastrl.display import Display
from fastrl.metrics import METRICS

STEP = dict.fromkeys(METRICS, 1.0) | {"step": 130, "task_accuracy": 0.914, "length_mean": 123.4}


def test_eighty_columns_hold_every_figure():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    with Display(0, 260, console) as display:
        advance = display.count("evaluate", 1024)
        for _ in range(1024):
            advance(None)
        display.step(STEP)
        display.progress.refresh()
    shown = out.getvalue()
    for words in ("evaluate 1024/1024", "step 130/260", "left", "accuracy 91.4 %", "KL 1.00",
                  "length 123.4", "tokens/s", "s/step"):  # fmt: skip
        assert words in shown
    assert "…" not in shown


def test_without_a_terminal_a_run_prints_plain_lines():
    out = io.StringIO()
    with Display(0, 130, Console(file=out, width=80)) as display:
        display.phase("sample")
        display.step(STEP)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("step 130/130  accuracy 91.4 %")
