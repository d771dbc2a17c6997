"""docs/guide.md: every block is run, in order and in one directory.

A block of kind `sh` has commands, one of kind `python` is executed, with the names of those before,
unless its first line is the name of a file: then it is that file. What is shown with its full size
is run small: QUICK goes after the words of a `fastrl train` that does not name it, FEW after those
of `fastrl eval`, STUDY after those of `fastrl study`. A comment `# exit code N: TEXT` is what the
command ends with and says. NOT_RUN has the reason of every command that is not run, and what is
done instead.
"""

import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.config import parse_overrides, read_toml
from fastrl.objectives import check_contradictions
from fastrl.preparation import check_numbers

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guide.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [
    (PAGE[: m.start()].count("\n") + 2, m[1], m[2])  # the line it begins on, its kind, its text
    for m in BLOCK.finditer(PAGE)
]
QUICK = {
    "train.max_steps": "2", "sampling.prompts_per_step": "2", "sampling.responses_per_prompt": "2",
    "eval.prompts": "2", "eval.test_prompts": "2", "eval.samples": "2", "checkpoint.every": "1",
    "train.check": "false", "data.limit": "200",
}  # fmt: skip
FEW = ["--samples", "2", "--prompts", "4"]
STUDY = {
    "train.max_steps": "1", "sampling.prompts_per_step": "2", "sampling.responses_per_prompt": "2",
    "eval.prompts": "2", "train.check": "false", "prompts": "4", "samples": "2",
    "samples-of-trained": "2", "long-prompts": "0", "template-prompts": "0",
}  # fmt: skip
NOT_RUN = {  # by how a command begins
    "make ": "installs packages; the target has to be there",
    "pip ": "installs packages; the extras have to be there",
    "torchrun ": "needs processes with a GPU each; the settings have to be accepted",
    "tensorboard ": "serves until it is stopped; the run before it has to be there",
    "fastrl train --model Qwen/Qwen2.5-3B-Instruct --data math ": "needs a network; a dry run",
}
TRACKERS = ("tensorboard", "wandb")  # without one of them the command is refused
EXIT = re.compile(r"# exit code (\d)(?:: (.+))?")


def commands(text):
    """The commands of a block: their words, the exit code, and what is to be said."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            found = EXIT.search(line)
            yield words, int(found[1]) if found else 0, (found and found[2]) or ""


def test_every_block_is_counted():
    assert {kind for _, kind, _ in BLOCKS} == {"sh", "python", "text"}
    listed = [words for _, kind, text in BLOCKS if kind == "sh" for words, _, _ in commands(text)]
    left_out = [w for w in listed if any(f"{shlex.join(w)} ".startswith(k) for k in NOT_RUN)]
    python = [text for _, kind, text in BLOCKS if kind == "python"]
    assert (len(listed) - len(left_out), len(left_out), len(python)) == (32, 10, 8)
    assert {words[0] for words in listed} == {"fastrl", *(k.split()[0] for k in NOT_RUN)}


def small(words):
    """The words of a command of fastrl, with what makes it quick."""
    if words[0] == "eval":
        return [*words, *FEW]
    if words[0] == "study":
        return [*words, *(w for k, v in STUDY.items() for w in (f"--{k}", v))]
    if words[0] != "train" or {"--dry-run", "--help", "--help-metrics"} & set(words):
        return words
    given = " ".join(words).replace("-", "_")
    return [*words, *(w for k, v in QUICK.items() if k not in given for w in (f"--{k}", v))]


def instead(words):
    """What can be said of a command that is not run."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {w for w in words[1:] if "=" not in w} <= set(targets)
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for names in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(names.split(",")) <= set(extras["optional-dependencies"])
    elif words[0] == "torchrun":
        words = words[words.index("fastrl") + 1 :]
        if words[0] == "train":
            config = parse_overrides(read_toml(words[1]), words[2:])
            check_contradictions(config)
            check_numbers(config)
    elif words[0] == "tensorboard":
        assert Path(words[words.index("--logdir") + 1]).is_dir()
    elif words[0] == "fastrl":
        assert main([*words[1:], "--dry-run", "--gpu", "h200"]) == 0


def run(words):
    """The exit code of a command of fastrl."""
    try:
        return main(small(words))
    except SystemExit as end:  # of --help
        return end.code


def test_every_block_does_what_the_page_says(tmp_path, monkeypatch, capsys):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setitem(sys.modules, "my_rewards", None)  # so that it is as before afterwards
    del sys.modules["my_rewards"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names = {}
    for line, kind, text in BLOCKS:
        where = f"docs/guide.md, line {line}"
        if kind == "python":
            file = re.match(r"# (\S+\.py)\n", text)
            if file:
                Path(file[1]).write_text(text)
            else:
                exec(compile(text, where, "exec"), names)
        for words, code, said in commands(text) if kind == "sh" else ():
            if any(f"{shlex.join(words)} ".startswith(k) for k in NOT_RUN):
                instead(words)
                continue
            capsys.readouterr()
            package = next((p for p in TRACKERS if f"--tracking.{p}" in words), "")
            if package and importlib.util.find_spec(package) is None:
                code, said = 2, f"{package} is not installed"
            found = run(words[1:])
            out, err = capsys.readouterr()
            assert found == code, f"{where}: {shlex.join(words)}\n{out[-2000:]}\n{err}"
            assert said in out + err, f"{where}: {shlex.join(words)}\n{out[-2000:]}\n{err}"


def anchors(page):
    """The names by which GitHub knows the headings of a page."""
    text = BLOCK.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", *sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_every_link_leads_somewhere(page):
    path = ROOT / page
    text = BLOCK.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{page}: {target}"


def test_settings_and_metrics_that_are_named_are_there():
    from fastrl.config import TABLES, all_keys
    from fastrl.metrics import METRICS

    prose = BLOCK.sub("", PAGE)
    for word in re.findall(r"`(?:--)?([a-z]+\.[a-z_-]+)(?: [^`]*)?`", prose):
        table = word.partition(".")[0]
        if table in TABLES and not word.endswith((".jsonl", ".toml")):
            assert word.replace("-", "_") in all_keys(), word
    tables = re.findall(r"^\| `(\w+)`", PAGE[PAGE.index("## Reading the metrics") :], re.M)
    assert tables and set(tables) <= set(METRICS), set(tables) - set(METRICS)
