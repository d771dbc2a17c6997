"""fastrl sample: what is written, when, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from fastrl import sample_text as module
from fastrl.cli import main
from fastrl.evaluate import Located
from fastrl.model import load_model
from fastrl.sample_text import Growing, Headed, JsonLines, Request, Screen, _outputs
from fastrl.sampler import Event, Progress, Sampler, SamplingParams
from fastrl.tokenizer import load_tokenizer
from fastrl.types import Completion

PROMPTS = ["3+4*2-5", "1+2"]
WORDS = ["sample", "embedded", "--prompt", PROMPTS[0], "--prompt", PROMPTS[1]]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def sampled(tokenizer):
    """What the library gives for WORDS with --n 3 --seed 5 --max-tokens 20 --stop 8."""
    sampler = Sampler(load_model("embedded"), tokenizer=tokenizer)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": p}]) for p in PROMPTS]
    params = SamplingParams(n=3, max_tokens=20, seed=5, stop=("8",))
    events = []
    sampler.generate(prompts, params, stream="eval", on_event=events.append)
    assert {e.completion.finish_reason for e in events} == {"stop", "length"}
    assert {e.completion.stop_reason for e in events} >= {None, "8"}
    return events


def row_of(event, tokenizer):
    completion = event.completion
    return {
        "prompt": event.prompt,
        "response": event.response,
        "text": tokenizer.decode(completion.token_ids),
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "log_kept_mass": list(completion.log_kept_mass),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }


FEW = ["--n", "3", "--seed", "5", "--max-tokens", "20", "--stop", "8"]


def test_json_has_what_the_library_gives_in_the_order_of_finishing(sampled, tokenizer, capsys):
    assert main([*WORDS, *FEW, "--json"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert rows == [row_of(event, tokenizer) for event in sampled]
    tokens = sum(len(row["token_ids"]) for row in rows)
    assert captured.err.startswith(f"6 responses, {tokens} tokens in ")
    assert captured.err.endswith(" tokens/s\n") and captured.err.count("\n") == 1


def test_several_responses_stand_under_headers(sampled, tokenizer, capsys):
    assert main([*WORDS, *FEW]) == 0
    expected = ""
    for event in sampled:
        c = event.completion
        end = "length" if c.finish_reason == "length" else "stop"
        end += " at '8'" if c.stop_reason == "8" else ""
        expected += f"--- prompt {event.prompt}, response {event.response}: "
        expected += f"{len(c.token_ids)} tokens, {end}\n{tokenizer.decode(c.token_ids)}\n\n"
    assert capsys.readouterr().out == expected


def test_one_response_is_written_as_it_grows(capsys, monkeypatch):
    words = ["sample", "embedded", "--prompt", PROMPTS[0], "--seed", "3"]
    assert main([*words, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    pieces, write = [], module._write
    monkeypatch.setattr(module, "_write", lambda out, t: (pieces.append(t), write(out, t)))
    assert main(words) == 0
    assert capsys.readouterr().out == text + "\n"
    assert len(pieces) > 15 and "".join(pieces) == text + "\n"


def test_the_filters_reach_the_sampler(monkeypatch):
    requests = []

    def note(request):
        requests.append(request)
        return module.Outcome(1, 1, 1.0, False, False, 0)

    monkeypatch.setattr(module, "sample_text", note)
    words = ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "7", "--min-p", "0.1"]
    words += ["--stop", "a", "--stop", "b", "--dtype", "float64", "--raw", "--json", "--n", "4"]
    assert main(["sample", "M", "--prompt", "x", "--seed", "9", *words]) == 0
    assert main(["sample", "M", "--prompt", "x", "--max-tokens", "9"]) == 0
    params = SamplingParams(
        n=4, max_tokens=256, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, stop=("a", "b"), seed=9
    )
    assert requests == [
        Request("M", ["x"], params, True, True, "float64", True),
        Request("M", ["x"], SamplingParams(n=1, max_tokens=9)),
    ]


def test_a_raw_prompt_is_no_turn(tokenizer, capsys):
    def first(*words):
        common = ["sample", "embedded", "--temperature", "0", "--max-tokens", "12", "--json"]
        assert main([*common, "--prompt", *words]) == 0
        return json.loads(capsys.readouterr().out)["token_ids"]

    written = tokenizer.inner.apply_chat_template(
        [{"role": "user", "content": "3+4"}], tokenize=False, add_generation_prompt=True
    )
    assert first(written, "--raw") == first("3+4")
    assert first("3+4", "--raw") != first("3+4")


def stdin(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_prompt_from_standard_input(end, capsys, monkeypatch):
    words = ["--seed", "2", "--json", "--prompt"]
    assert main(["sample", "embedded", *words, "7+8", "--prompt", "1+1"]) == 0
    expected = capsys.readouterr().out
    stdin(monkeypatch, b"7+8" + end)
    assert main(["sample", "embedded", *words, "-", "--prompt", "1+1"]) == 0
    assert capsys.readouterr().out == expected


def test_a_prompt_on_standard_input_may_be_named_twice(monkeypatch):
    stdin(monkeypatch, "é\n\n".encode())
    assert module.read_prompts(["-", "x", "-"]) == ["é\n", "x", "é\n"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no prompt; give --prompt TEXT, or --prompt - for standard input"),
        (["--prompt", "1", "--max-tokens", "0"], "max_tokens is 0; it must be"),
        (["--prompt", "1", "--temperature", "-1"], "temperature is -1.0; it must be"),
        (["--prompt", "1", "--n", "0"], "n is 0; it must be"),
        (["--prompt", "1", "--n", "5000"], "n is 5000, "),
        (["--prompt", "1", "--n", "many"], "--n"),
        (["--prompt", "1", "--top-p", "0"], "top_p is 0.0; it must be"),
        (["--prompt", "1", "--stop", ""], "stop is ('',); it must be"),
        (["--prompt", "1", "--seed", "-1"], "the seed is -1"),
        (["--prompt", "1", "--dtype", "int8"], "dtype is 'int8'"),
        (["--prompt", "1", "--max-tokens", "256"], "max_tokens 256 exceed the model's context"),
        (["--prompt", "1" * 300], "exceed the model's context of 256"),
        (["--prompt", "", "--raw"], "prompt 0 is empty"),
        (["--prompt", "1", "--prompt", "a\udcff"], "prompt 1 is no UTF-8"),
        (["--prompt", "1", "--surprise"], "--surprise"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_else(words, said, capsys):
    assert main(["sample", "embedded", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastrl: ") and said in captured.err
    assert captured.err.count("\n") == 1


def test_params_that_make_no_sense_are_refused_before_the_model_is_loaded(capsys):
    assert main(["sample", "no/such", "--prompt", "1", "--max-tokens", "0"]) == 2
    assert "max_tokens is 0" in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert main(["sample", "no-such", "--prompt", "1"]) == 2
    assert "there is no model 'no-such'" in capsys.readouterr().err


def test_by_default_a_response_has_the_room_that_the_context_leaves(monkeypatch):
    asked = []

    def note(self, prompts, params, **settings):
        asked.extend(
            (len(prompt) + p.max_tokens, p.max_tokens)
            for prompt, p in zip(prompts, params, strict=True)
        )
        return []

    monkeypatch.setattr(Sampler, "generate", note)
    monkeypatch.setattr(module.Outcome, "__str__", lambda self: "")
    assert main(["sample", "embedded", "--prompt", "1+1", "--prompt", "1+1+1+1"]) == 0
    assert [total for total, _ in asked] == [256, 256]
    monkeypatch.setattr(module, "LONGEST", 30)
    assert main(["sample", "embedded", "--prompt", "1+1"]) == 0
    assert asked[2][1] == 30


def test_a_run_or_a_checkpoint_is_found_as_eval_finds_it(monkeypatch, capsys):
    asked = []

    def locate(name):
        asked.append(name)
        return Located("embedded:0.5", None)

    monkeypatch.setattr(module, "locate", locate)
    assert main(["sample", "runs/x", "--prompt", "1+1", "--seed", "1"]) == 0
    found = capsys.readouterr().out
    assert main(["sample", "embedded:0.5", "--prompt", "1+1", "--seed", "1"]) == 0
    assert (asked, capsys.readouterr().out) == (["runs/x", "embedded:0.5"], found)


def signalled(monkeypatch, at, number=signal.SIGINT, times=1):
    """Every call of `Sampler.generate` gets a signal in its forward number `at`."""
    append, forwards = Sampler._append, []

    def interrupted(self, *arguments):
        finished = append(self, *arguments)
        forwards.append(self)
        if len(forwards) == at:
            for _ in range(times):
                signal.raise_signal(number)
        return finished

    monkeypatch.setattr(Sampler, "_append", interrupted)
    return forwards


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_what_there_is_is_written(
    number, sampled, tokenizer, capsys, monkeypatch
):
    whole = {(e.prompt, e.response): e.completion for e in sampled}
    before = signal.getsignal(number)
    at = 1 + min(len(e.completion.token_ids) for e in sampled)
    forwards = signalled(monkeypatch, at, number)
    assert main([*WORDS, *FEW, "--json"]) == 3
    assert len(forwards) == at
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert len(rows) == 6
    for row in rows:
        full = whole[row["prompt"], row["response"]]
        assert tuple(row["token_ids"]) == full.token_ids[:at]
        assert row["text"] == tokenizer.decode(row["token_ids"])
        assert row["finish_reason"] in ("cancelled", full.finish_reason)
    assert {row["finish_reason"] for row in rows} > {"cancelled"}
    assert captured.err.startswith("6 responses, ")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("n", [1, 2])
def test_a_signal_leaves_the_text_so_far(n, tokenizer, capsys, monkeypatch):
    words = ["sample", "embedded", "--prompt", PROMPTS[0], "--seed", "3", "--n", str(n)]
    assert main([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    signalled(monkeypatch, 7)
    assert main(words) == 3
    written = capsys.readouterr().out
    for row in rows:
        text = tokenizer.decode(row["token_ids"][:7])
        if n == 1:
            assert written == text + "\n"
        else:
            assert f"response {row['response']}: 7 tokens, cancelled\n{text}\n\n" in written


def test_a_second_signal_interrupts_at_once(capsys, monkeypatch):
    forwards = signalled(monkeypatch, 3, times=2)
    assert main([*WORDS, *FEW, "--json"]) == 1
    assert len(forwards) == 3
    captured = capsys.readouterr()
    assert captured.err == "fastrl: interrupted\n"


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-c", "import sys; from fastrl.cli import main; sys.exit(main())"]
    command += ["sample", "embedded", "--prompt", "1+1", "--n", "400", "--json"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=buffered)
    assert json.loads(child.stdout.readline())["prompt"] == 0
    child.stdout.close()
    with child.stderr:
        said = child.stderr.read()
    assert (child.wait(timeout=60), said) == (0, b"")


def test_the_help_loads_no_torch():
    code = "import sys; from fastrl.cli import main\ntry: main(['sample', '--help'])\n"
    code += "finally: print([m for m in ('torch', 'rich', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--prompt TEXT" in done.stdout and done.stdout.endswith("[]\n"), (
        done.stdout + done.stderr
    )


def test_a_model_without_a_distribution_is_a_failure(capsys, monkeypatch):
    def broken(*arguments, **settings):
        model = load_model(*arguments, **settings)
        with torch.no_grad():
            model.norm.weight.fill_(torch.nan)
        return model

    monkeypatch.setattr(module, "load_model", broken)
    assert main([*WORDS, "--n", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("0 tokens, error") == 4
    assert captured.err.endswith(
        "fastrl: the model gave no finite number, which ended 4 responses\n"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("out", "err", "responses", "as_json", "kinds"),
    [
        (io.StringIO, io.StringIO, 1, False, [Growing]),
        (io.StringIO, io.StringIO, 2, False, [Headed]),
        (io.StringIO, io.StringIO, 1, True, [JsonLines]),
        (io.StringIO, Terminal, 1, False, [Growing, Screen]),
        (io.StringIO, Terminal, 2, False, [Headed, Screen]),
        (io.StringIO, Terminal, 2, True, [JsonLines, Screen]),
        (Terminal, Terminal, 1, False, [Growing]),
        (Terminal, Terminal, 2, False, [Screen]),
        (Terminal, Terminal, 2, True, [JsonLines]),
    ],
)
def test_what_is_shown_where(out, err, responses, as_json, kinds, tokenizer, monkeypatch):
    monkeypatch.setattr("sys.stdout", out())
    monkeypatch.setattr("sys.stderr", err())
    request = Request("embedded", [], SamplingParams(), json=as_json)
    with ExitStack() as stack:
        outputs = _outputs(request, responses, tokenizer, stack)
        assert [type(output) for output in outputs] == kinds
    assert sys.stdout.getvalue().count("\n") == 0


def test_a_terminal_shows_what_grows_and_keeps_what_is_finished(sampled, tokenizer, monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    assert main([*WORDS, *FEW]) == 0
    shown = sys.stdout.getvalue()
    for event in sampled:
        assert module.header(event) in shown
        for line in tokenizer.decode(event.completion.token_ids).splitlines():
            assert line in shown
    assert "0.2  " in shown and "1.0  " in shown
    assert "0/6 responses" in shown and "6/6 responses" in shown and "tokens/s" in shown


class Characters:
    """A tokenizer with one token a character."""

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


def screen_lines(width, height, texts):
    """The lines of the live area of a screen that was given the texts of prompt 0."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
    screen = Screen(console, Characters())
    tokens = tuple((0, r, ord(c)) for r, text in enumerate(texts) for c in text)
    with screen:
        screen.grow(Progress(tokens, 0, len(texts), 1234, 2.0))
        lines = console.render_lines(screen._view(), pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


def test_a_line_of_the_terminal_holds_the_end_of_a_response():
    for text in ("0123456789" * 9, "日本語" * 30, "a\n\tb" * 30, "x\x1b[31my\r" * 20):
        first, rate = screen_lines(50, 24, [text])
        assert first.startswith("0.0  ") and 45 < cell_len(first) <= 50
        assert first.rstrip()[-1] in (text.rstrip()[-1], "\ufffd")
        assert not set(first) & set("\x1b\r\n\t")
        assert rate == "0/1 responses  1,234 tokens  617 tokens/s"
    assert screen_lines(50, 24, ["ab"])[0] == "0.0  ab"


def test_the_terminal_is_never_too_low():
    lines = screen_lines(50, 8, [f"text {r}" for r in range(30)])
    assert lines[:5] == [f"0.{r}  text {r}" for r in range(5)]
    assert lines[5:] == ["and 25 more", "0/30 responses  1,234 tokens  617 tokens/s"]
    assert len(screen_lines(20, 8, ["text"])) == 2  # cut off, not broken in two


def test_a_finished_response_leaves_the_live_area():
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Screen(console, Characters()) as screen:
        screen.grow(Progress(((0, 0, 65), (0, 1, 66)), 1, 2, 2, 1.0))
        screen.finish(Event(0, 0, Completion((65,), (0.0,), (0.0,), "length")))
        lines = console.render_lines(screen._view(), pad=False)
    assert ["".join(s.text for s in line) for line in lines][:-1] == ["0.1  B"]


class Bytes:
    """A tokenizer with one token a byte."""

    def decode(self, token_ids):
        return bytes(token_ids).decode(errors="replace")


def test_only_whole_characters_are_written_and_at_the_end_what_is_left():
    out, written = io.StringIO(), []
    growing = Growing(out, Bytes())
    for byte in "aé😀".encode() + "é".encode()[:1]:
        growing.grow(Progress(((0, 0, byte),), 0, 1, 1, 1.0))
        written.append(out.getvalue())
    assert written == ["a", "a", "aé", "aé", "aé", "aé", "aé😀", "aé😀"]
    growing.finish(Event(0, 0, Completion((), (), (), "length")))
    assert out.getvalue() == "aé😀\ufffd\n"


def test_a_text_that_ends_its_line_is_not_given_another():
    out = io.StringIO()
    growing = Growing(out, Bytes())
    growing.grow(Progress(((0, 0, 65), (0, 0, 10)), 0, 1, 2, 1.0))
    growing.finish(Event(0, 0, Completion((), (), (), "stop")))
    assert out.getvalue() == "A\n"


def test_a_live_line_alone_prints_nothing():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60)
    with Screen(console, None) as screen:
        screen.grow(Progress(((0, 0, 65),), 0, 3, 1, 1.0))
        screen.finish(Event(0, 0, Completion((65,), (0.0,), (0.0,), "length")))
    assert "0/3 responses  1 tokens" in out.getvalue() and "--- prompt" not in out.getvalue()


def test_a_response_cannot_steer_the_terminal():
    completion = Completion(tuple(map(ord, "a\x1b[2Jb\x07\x9bc\n\td")), (), (), "length")
    growing = [(0, 0, token) for token in completion.token_ids]
    for kind in (Growing, Headed):
        terminal, file = Terminal(), io.StringIO()
        for out in (terminal, file):
            output = kind(out, Characters())
            output.grow(Progress(tuple(growing), 1, 1, 1, 1.0))
            output.finish(Event(0, 0, completion))
        assert "a\ufffd[2Jb\ufffd\ufffdc\n\td\n" in terminal.getvalue()
        assert "a\x1b[2Jb\x07\x9bc\n\td\n" in file.getvalue()
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Screen(console, Characters()) as screen:
        screen.grow(Progress(tuple(growing), 1, 1, 1, 1.0))
        screen.finish(Event(0, 0, completion))
    assert "[2Jb" in console.file.getvalue()
    assert "\x1b[2J" not in console.file.getvalue() and "\x07" not in console.file.getvalue()


def test_what_the_encoding_lacks_is_replaced():
    raw = io.BytesIO()
    growing = Growing(io.TextIOWrapper(raw, encoding="ascii", newline="\n"), Characters())
    growing.grow(Progress(tuple((0, 0, ord(c)) for c in "é1"), 0, 1, 2, 1.0))
    growing.finish(Event(0, 0, Completion((), (), (), "stop")))
    assert raw.getvalue() == b"?1\n"
