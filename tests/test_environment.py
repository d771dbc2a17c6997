"""What a run was made with is in its directory, and what changed since is said or refused."""

import json
import shutil
import stat
import subprocess

from test_train import lines, train

from fastrl import environment
from fastrl.cli import main


def rows_in(path, first=0):
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[first:]))


def test_a_run_directory_says_what_made_it(tmp_path, capsys, monkeypatch):
    data, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows_in(data)
    words = ["--data", str(data), "--data.template", "{prompt}", "--eval.test_prompts", "4"]
    assert train(run, *words) == 0
    (line,) = lines(run / "environment.jsonl")
    assert line["packages"]["torch"] and line["processor"] and line["cores"] and line["step"] == 0
    assert set(line["data"]) == {"train", "validation", "test"}
    assert all(len(digest) == 64 for digest in line["data"].values())
    shutil.rmtree(run / "checkpoints/step_4")
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    assert capsys.readouterr().err == ""
    assert [e["step"] for e in lines(run / "environment.jsonl")] == [0, 2]
    monkeypatch.setattr(environment, "_version", lambda name: "0.0")
    assert main(["resume", str(run)]) == 0
    assert "not as at the start of the run" in capsys.readouterr().err
    rows_in(data, first=3)  # another data set under the same name
    assert main(["resume", str(run)]) == 2
    assert "prompts are not those that this run began with" in capsys.readouterr().err


def test_a_damaged_line_is_told_of_and_the_others_are_kept(tmp_path, capsys):
    assert train(tmp_path / "run") == 0
    metrics = tmp_path / "run/metrics.jsonl"
    whole = metrics.read_bytes().splitlines(keepends=True)
    shutil.rmtree(tmp_path / "run/checkpoints/step_4")
    metrics.write_bytes(whole[0][:20] + b"\0\0" + whole[0][22:] + b"".join(whole[1:]))
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "metrics.jsonl lacks 1 steps: their lines were damaged" in capsys.readouterr().err
    assert [line["step"] for line in lines(metrics)] == [2, 3, 4]


def test_a_run_directory_is_the_users_own(tmp_path):
    """Its rights are those that the user's umask leaves."""
    import os

    before = os.umask(0o077)
    try:
        assert train(tmp_path / "run", "--train.max_steps", "2") == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_commit_of_a_checkout(tmp_path):
    assert environment.commit(tmp_path) is None
    (tmp_path / "__init__.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    found = environment.commit(tmp_path)
    assert len(found) == 40
    (tmp_path / "__init__.py").write_text("changed")
    assert environment.commit(tmp_path) == f"{found}-dirty"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/__init__.py").touch()
    assert environment.commit(tmp_path / "other") is None  # installed inside of another's checkout
