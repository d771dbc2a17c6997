"""`fastrl grade`: a file or a live pipe of predictions, graded line by line, none of them lost."""

import io
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.errors import UsageError
from fastrl.grade_file import grade_file
from fastrl.grading import MODES, GradingPolicy

FASTRL = Path(sys.executable).parent / "fastrl"
# a user's Python, whose standard output is not written through at once
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
PATIENCE_S = 60  # that a busy machine may take; nothing waits that long otherwise

ROWS = [
    {"prediction": r"\boxed{7}", "gold": "7", "id": 3, "note": "日本"},
    {"prediction": r"\boxed{8}", "gold": "7", "mode": "box"},
    {"prediction": r"\boxed{7}", "gold": "1/0"},
    {"prediction": "none \ud800", "gold": "7"},
    {"prediction": r"\boxed{8}", "gold": ["7", "8"]},
    {"prediction": "the answer is 7", "gold": "7", "mode": "box_or_anchor"},
    {"prediction": "8", "gold": "8.0", "content": "answer"},
    {"prediction": r"\boxed{9}", "gold": "9"},
]
ADDED = [
    (True, "7", "correct"), (False, "8", "wrong"), (None, "7", "gold_empty"),
    (False, None, "no_answer"), (True, "8", "correct"), (True, "7", "correct"),
    (True, "8", "correct"), (True, "9", "correct"),
]  # fmt: skip


def lines_of(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def check_rows(text, rows=ROWS, added=ADDED):
    found = [json.loads(line) for line in text.decode().splitlines()]
    for row, source, (correct, answer, reason) in zip(found, rows, added, strict=True):
        assert row == {**source, "correct": correct, "answer": answer, "reason": reason}


def start(*words: str, env=ENVIRONMENT, **streams) -> subprocess.Popen:
    return subprocess.Popen([FASTRL, "grade", *words], env=env, **streams)


@pytest.mark.parametrize("batch", [1, 2, 3, 4096])
def test_a_file_is_graded_in_order(tmp_path, batch):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\r\n\n".join(map(json.dumps, ROWS)))  # no line end at the end
    summary = grade_file(str(source), str(target), batch=batch)
    check_rows(target.read_bytes())
    assert not summary.bad_lines and summary.graded == len(ROWS)
    assert str(summary).startswith("8 graded, 62.5 % correct (correct 5, wrong 1, ")
    assert summary.rows()[0] == ("correct", "5", "62.5 %")


@pytest.mark.parametrize("block", [1, 7, 64])
def test_lines_are_put_together_from_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr("fastrl.grade_file.BLOCK_BYTES", block)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines_of(ROWS[:3]) + b"\nno json\n" + lines_of(ROWS[3:]))
    read = []
    summary = grade_file(str(source), str(target), on_read=read.append)
    check_rows(target.read_bytes())
    assert [line.split(" of ")[0] for line in summary.bad_lines] == ["line 5"]
    assert sum(read) == source.stat().st_size


def test_every_mode_of_the_grader_may_be_named(tmp_path):
    predictions = [r"\boxed{7}", "Answer: 7", "so it is 7", "#### 7", "(A)", "<answer>7</answer>"]
    rows = [
        {"prediction": text, "gold": "A" if mode == "choice" else "7", "mode": mode}
        for text, mode in zip(predictions, MODES, strict=True)
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines_of(rows))
    assert grade_file(str(source), str(target)).reasons == {"correct": len(MODES)}


def test_options_are_for_the_rows_that_name_none(tmp_path, capsys):
    rows = [
        {"prediction": "the answer is 7", "gold": "7"},
        {"prediction": "the answer is 7", "gold": "7", "mode": "box"},
        {"prediction": r"\boxed{1}\boxed{2}\boxed{3}\boxed{4}", "gold": "4"},
        {"prediction": r"\boxed{50}", "gold": r"50\%"},
        {"prediction": r"\boxed{0.333333}", "gold": "1/3"},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines_of(rows))

    def verdicts(*words):
        assert main(["grade", str(source), "--out", str(target), *words]) == 0
        return [json.loads(line)["correct"] for line in target.read_text().splitlines()]

    assert verdicts() == [False, False, False, True, False]
    assert verdicts("--mode", "box_or_anchor")[:2] == [True, False]
    assert verdicts("--shotgun", "last")[2] is True
    assert verdicts("--no-bare-percent")[3] is False
    assert verdicts("--six-digits")[4] is True


BAD = [
    (b'{"prediction": "7", ', "no JSON"), (b"[1]", "not an object"), (b"7", "not an object"),
    (b'{"prediction": "7"}', "'gold' is missing"), (b'{"gold": "7"}', "'prediction' is missing"),
    (b'{"prediction": 7, "gold": "7"}', "'prediction' is missing or no string"),
    (b'{"prediction": "7", "gold": 7}', "'gold' is missing or no string"),
    (b'{"prediction": "7", "gold": []}', "'gold' is missing or no string"),
    (b'{"prediction": "7", "gold": ["7", 8]}', "'gold' is missing or no string"),
    (b'{"prediction": "7", "gold": "7", "mode": "eval"}', "mode 'eval' is not known; allowed: box"),
    (b'{"prediction": "7", "gold": "7", "mode": ["box"]}', "mode ['box'] is not known"),
    (b'{"prediction": "7", "gold": "7", "content": "x"}', "allowed: completion, answer"),
    (b'{"prediction": "\xff", "gold": "7"}', "utf-8"), (b"[" * 100_000, "nested too deeply"),
]  # fmt: skip


def test_a_bad_line_is_named_and_loses_no_other(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps(ROWS[0]).encode()
    source.write_bytes(b"\n".join(line for bad, _ in BAD for line in (good, bad)) + b"\n" + good)
    assert main(["grade", str(source), "--out", str(target)]) == 2
    check_rows(target.read_bytes(), [ROWS[0]] * (len(BAD) + 1), [ADDED[0]] * (len(BAD) + 1))
    said = capsys.readouterr().err.splitlines()
    for i, (_, reason) in enumerate(BAD):
        assert said[i].startswith(f"fastrl: line {2 * i + 2} of {source} was left out: ")
        assert reason in said[i]
    assert said[-1] == f"{len(BAD) + 1} graded, 100.0 % correct (correct {len(BAD) + 1})"


def test_an_empty_file_is_no_mistake(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.touch()
    assert main(["grade", str(source), "--out", str(target)]) == 0
    assert target.read_bytes() == b"" and capsys.readouterr().err == "0 graded\n"


def test_grade_is_a_pipe(monkeypatch, capfdbinary):
    text = "\n".join([*map(json.dumps, ROWS), "nonsense"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["grade", "-", "--out", "-"]) == 2
    out, err = capfdbinary.readouterr()
    check_rows(out)
    assert b"line 9 of - was left out" in err


def test_a_producer_that_waits_for_each_answer_gets_it():
    process = start("-", "--out", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        for rows, added in ((ROWS[:1], ADDED[:1]), (ROWS[1:4], ADDED[1:4])):
            process.stdin.write(lines_of(rows))
            process.stdin.flush()
            answers = b""
            while answers.count(b"\n") < len(rows):
                assert select.select([process.stdout], [], [], PATIENCE_S)[0], "no answer came"
                answers += os.read(process.stdout.fileno(), 1 << 16)
            check_rows(answers, rows, added)
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


def test_a_reader_that_leaves_between_two_answers_is_no_error():
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start("-", "--out", "-", **streams) as process:
        for rows in (ROWS[:1], ROWS[1:2]):
            process.stdin.write(lines_of(rows))
            process.stdin.flush()
            if not process.stdout.closed:
                check_rows(process.stdout.readline(), ROWS[:1], ADDED[:1])
                process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_a_reader_that_has_enough_is_no_error(target):
    line = json.dumps(ROWS[0])
    shell = f"yes '{line}' | head -n 20000 | {FASTRL} grade - --out {target} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f'{shell}; echo "${{PIPESTATUS[2]}}"'], env=ENVIRONMENT, capture_output=True
    )
    first, status = done.stdout.splitlines()
    check_rows(first, ROWS[:1], ADDED[:1])
    assert status == b"0" and done.stderr == b""


def test_a_terminal_shows_a_bar_and_a_table(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines_of(ROWS))
    ours, theirs = pty.openpty()
    env = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "80"}
    env.pop("NO_COLOR", None)
    process = start(str(source), "--out", str(target), stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], PATIENCE_S)[0]:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # how the end of a terminal reads
            break
    os.close(ours)
    assert process.wait(PATIENCE_S) == 0
    size = source.stat().st_size
    for part in (f"{size}/{size} bytes", "8 graded", "reason", "gold_empty", "62.5 %"):
        assert part in shown.decode(), part
    check_rows(target.read_bytes())


def test_grading_starts_without_torch_and_numpy(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines_of(ROWS))
    code = (
        "import sys; from fastrl.cli import main; status = main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'rich', 'datasets', 'transformers'} & sys.modules.keys()\n"
        "print(status, sorted(heavy))"
    )
    for words, status in ((["--out", str(tmp_path / "out.jsonl")], 0), (["--lint"], 2)):
        command = [sys.executable, "-c", code, "grade", str(source), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == [f"{status} []"], done.stderr


def test_files_that_cannot_be_used(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[0]))
    (tmp_path / "link.jsonl").symlink_to(source)
    for target in (source, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="is the file to be read; give another --out"):
            grade_file(str(source), str(target))
    with pytest.raises(UsageError, match="cannot read .*missing.jsonl: No such file"):
        grade_file(str(tmp_path / "missing.jsonl"), str(tmp_path / "out.jsonl"))
    with pytest.raises(UsageError, match="mode is 'eval'; allowed: box"):
        grade_file(str(source), str(tmp_path / "out.jsonl"), mode="eval")
    with pytest.raises(UsageError, match="policy.shotgun is 'any'"):
        grade_file(str(source), str(tmp_path / "out.jsonl"), policy=GradingPolicy(shotgun="any"))
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UsageError, match="cannot write .*: No such file.*give another --out"):
        grade_file(str(source), str(tmp_path / "no" / "out.jsonl"))
    assert json.loads(source.read_text()) == ROWS[0]


@pytest.mark.parametrize(
    "words, said",
    [
        (["in.jsonl"], "give --out FILE.jsonl, or --lint"),
        (["in.jsonl", "--lint", "--out", "x"], "give one of them"),
        (["in.jsonl", "--out", "-", "--mode", "eval"], "invalid choice: 'eval'"),
    ],
)
def test_words_that_do_not_fit(capsys, words, said):
    assert main(["grade", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastrl: ") and said in err
