"""docs/study.md: every command is accepted as it stands, and what it names is there."""

import json
import re
import shlex
from pathlib import Path

import pytest
from synthetic_study import make_study

from fastrl.cli import main
from fastrl.study.analysis import analyse
from fastrl.study.plan import DEFAULT_ARMS, StudySettings, read_plan
from fastrl.study.verify import verify

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "study.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
SMALL = StudySettings(
    arms=DEFAULT_ARMS, seeds=2, prompts=4, samples=2, samples_of_trained=2, long_prompts=2,
    template_prompts=2,
)  # fmt: skip


def test_every_command_is_of_a_kind_that_is_looked_at_here():
    kinds = [words[1] for words in COMMANDS]
    assert set(kinds) == {"study", "report"} and {words[0] for words in COMMANDS} == {"fastrl"}
    assert len(COMMANDS) == 14


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the configurations and a study, as a reader has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("first", "grid"):
        directory = tmp_path / "studies" / name
        study = analyse(make_study(directory, SMALL), directory)
        (directory / "study.json").write_text(json.dumps(study))
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_a_command_is_accepted(words, here, capsys):
    if words[1] == "report":
        assert main(words[1:]) == 0
        assert Path(words[words.index("--out") + 1]).is_file()
    elif "--cell" in words:
        plan = read_plan(Path(words[words.index("--output-dir") + 1], "plan.json"))
        assert plan.cell(words[words.index("--cell") + 1]).trains
    elif "--exact" in words:
        assert main([*words[1:], "--worlds", "1"]) == 2  # known, and refused: one has no spread
        assert "--worlds is 1" in capsys.readouterr().err
    elif "--verify" in words:
        study = json.loads(Path("studies/first/study.json").read_text())
        found = verify(study, Path(words[words.index("--verify") + 1]))
        assert len(found) > 20 and not all(c.holds for c in found)  # of figures that are made up
    else:
        words = [w if not w.startswith("studies/") else f"new/{w}" for w in words]
        assert main([*words[1:], "--dry-run"]) == 0
        assert "runs of" in capsys.readouterr().out


def test_the_flags_of_its_table_are_those_of_the_command(capsys):
    table = PAGE[PAGE.index("| flag |") : PAGE.index("## How it works")]
    named = set(re.findall(r"`(--[\w-]+)", table)) - {"--table"}
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert named <= known, named - known
