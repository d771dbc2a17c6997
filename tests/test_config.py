"""Settings: strict, typed, and the same from a file and from the command line."""

import tomllib

import pytest

from fastrl import config
from fastrl.config import Config, all_keys, parse_overrides, read_toml, to_dict, write_toml
from fastrl.errors import UsageError


def write(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_a_file_and_the_command_line_give_the_same(tmp_path):
    path = write(
        tmp_path,
        '[objective]\nname = "tilted"\nbeta = 1\n[sampling]\nstop = ["\\n\\n", "END"]\n'
        "ignore_eos = true\n[optim]\nbetas = [0.9, 0.95]\n",
    )
    words = ["--objective", "tilted", "--objective.beta=1", "--sampling.stop", "\n\n,END"]
    words += ["--sampling.ignore-eos", "--optim.betas", "0.9,0.95"]
    # an item of a list keeps no surrounding white space on the command line
    overridden = parse_overrides(Config(), [*words[:4], "x,END", *words[5:]])
    assert read_toml(path).objective == overridden.objective
    assert read_toml(path).optim == overridden.optim
    assert overridden.sampling.ignore_eos is True and overridden.sampling.stop == ("x", "END")
    assert read_toml(path).objective.beta == 1.0


def test_short_flags():
    words = ["--model", "DIR", "--data", "gsm8k", "--max-steps", "7", "--seed=3"]
    words += ["--output-dir", "out", "--reward", "a.b:c"]
    c = parse_overrides(Config(), words)
    assert (c.model.name, c.data.source, c.train.max_steps, c.train.seed) == ("DIR", "gsm8k", 7, 3)
    assert (c.train.output_dir, c.reward.functions) == ("out", ("a.b:c",))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--objective.alhpa", "2"], "did you mean 'alpha'"),
        (["--objectve", "task"], "did you mean 'objective'"),
        (["--objective", "shrpen"], "did you mean 'sharpen'"),
        (["--train.max_steps", "ten"], "a whole number"),
        (["--train.max_steps", "1.5"], "a whole number"),
        (["--sampling.ignore_eos", "maybe"], "unexpected argument 'maybe'"),
        (["--train.seed"], "needs a value"),
        (["task"], "unexpected argument 'task'"),
        (["--nonsense.key", "1"], "tables are"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(words, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_overrides(Config(), words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("[objective]\nalhpa = 2", "did you mean 'alpha'"),
        ("[objectiv]\nalpha = 2", "did you mean 'objective'"),
        ("alpha = 2", "outside a table"),
        ("[objective\n", "not valid TOML"),
        ('[train]\nmax_steps = "10"', "a whole number"),
        ("[train]\nmax_steps = true", "a whole number"),
        ("[sampling]\nignore_eos = 1", "true or false"),
        ("[optim]\nbetas = 0.9", "a list"),
        ("[data]\ntask_args = 1", "a table"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_toml(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_toml(tmp_path / "none.toml")


def test_the_resolved_configuration_reads_back(tmp_path):
    c = parse_overrides(Config(), ["--objective.alpha", "2", "--sampling.stop", "a,b"])
    write_toml(c, tmp_path / "c.toml")
    assert read_toml(tmp_path / "c.toml") == c
    assert tomllib.loads((tmp_path / "c.toml").read_text()) == to_dict(c)


def test_help_names_every_key():
    text = config.help_text()
    assert all(f"--{key}  " in text for key in all_keys())
