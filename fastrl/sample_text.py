"""Responses of a model to prompts of the command line, written while they grow."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fastrl.errors import UsageError
from fastrl.evaluate import locate
from fastrl.model import load_model
from fastrl.sampler import Event, Progress, Sampler, SamplingParams
from fastrl.signals import StopOnSignal
from fastrl.tokenizer import BROKEN, TextStream, Tokenizer, load_tokenizer
from fastrl.types import Completion

LONGEST = 256  # tokens of a response where the user does not say
REFRESH_S = 0.1
# a model's escape sequences are not for the terminal; tabs and line feeds are text
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Request:
    """What `fastrl sample` was asked for."""

    model: str  # as `evaluate.locate` takes it
    prompts: Sequence[str]  # "-" is standard input
    params: SamplingParams
    fits_context: bool = False  # max_tokens of `params`, or what the context leaves
    raw: bool = False  # no chat template
    dtype: str | None = None
    json: bool = False


@dataclass(frozen=True)
class Outcome:
    """How it went."""

    responses: int
    tokens: int
    seconds: float
    stopped: bool  # on request
    reader_left: bool  # nobody wants the rest
    errors: int  # responses that ended where the model gave nothing finite

    def __str__(self) -> str:
        rate = self.tokens / self.seconds
        return (
            f"{self.responses:,} response{'s' * (self.responses > 1)}, {self.tokens:,} tokens in"
            f" {self.seconds:.1f} s, {rate:,.1f} tokens/s"
        )


def sample_text(request: Request) -> Outcome:
    """Sample and write to standard output until done, or until SIGINT or SIGTERM asks for an end.

    A single response is written as it grows. Of several, each is written as it finishes; on a
    terminal those that grow are shown below. With `json`, each is an object on a line. A response
    that was cut short is written as far as it came. Raises UsageError for prompts that cannot be
    read, and as `locate`, `load_model` and `Sampler.generate` do, before any work.
    """
    texts = read_prompts(request.prompts)
    located = locate(request.model)
    tokenizer = load_tokenizer(located.model)
    prompts = [
        tokenizer.encode(text)
        if request.raw
        else tokenizer.encode_chat([{"role": "user", "content": text}])
        for text in texts
    ]
    model = load_model(located.model, dtype=request.dtype)
    params = [request.params] * len(prompts)
    if request.fits_context:
        most, context = request.params.max_tokens, model.config.max_position
        rooms = [max(1, context - len(prompt)) for prompt in prompts]
        params = [replace(request.params, max_tokens=min(most, room)) for room in rooms]
    sampler = Sampler(model, tokenizer=tokenizer)
    results: list[list[Completion]] = []
    reader_left = False
    with StopOnSignal() as stop:
        try:
            results = _sample(sampler, prompts, params, request, tokenizer, stop)
        except BrokenPipeError:
            reader_left = True
            # what is left in the buffer would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Outcome(
        len(prompts) * request.params.n,
        sampler.stats.generated_tokens,
        sampler.stats.seconds,
        stop.requested,
        reader_left,
        sum(c.finish_reason == "error" for group in results for c in group),
    )


def read_prompts(given: Sequence[str]) -> list[str]:
    """The prompts' texts, "-" replaced by standard input without its last line feed.

    Raises UsageError where there is none, or one that is no UTF-8.
    """
    if not given:
        raise UsageError("there is no prompt; give --prompt TEXT, or --prompt - for standard input")
    piped = sys.stdin.buffer.read() if "-" in given else b""
    texts = []
    for i, text in enumerate(given):
        # arguments that are no UTF-8 come with their bytes as lone surrogates
        raw = piped.removesuffix(b"\n") if text == "-" else os.fsencode(text)
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise UsageError(
                f"prompt {i} is no UTF-8 ({error.reason} at byte {error.start}); encode it so"
            ) from None
    return texts


class Output(Protocol):
    """Where responses go."""

    def grow(self, progress: Progress) -> None:
        """Take a forward's tokens."""

    def finish(self, event: Event) -> None:
        """Take a whole response, whose tokens `grow` had."""


def _sample(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    request: Request,
    tokenizer: Tokenizer,
    stop: StopOnSignal,
) -> list[list[Completion]]:
    told: set[tuple[int, int]] = set()
    with ExitStack() as stack:
        outputs = _outputs(request, len(prompts) * request.params.n, tokenizer, stack)

        def on_progress(progress: Progress) -> bool:
            for output in outputs:
                output.grow(progress)
            return not stop.requested

        def on_event(event: Event) -> None:
            told.add((event.prompt, event.response))
            for output in outputs:
                output.finish(event)

        results = sampler.generate(
            prompts, params, stream="eval", on_event=on_event, on_progress=on_progress
        )
        for p, group in enumerate(results):
            for r, completion in enumerate(group):
                if (p, r) not in told:  # cancelled
                    on_event(Event(p, r, completion))
    return results


def _outputs(
    request: Request, responses: int, tokenizer: Tokenizer, stack: ExitStack
) -> list[Output]:
    """What writes to standard output; a live line on stderr if that alone is a terminal."""
    out, terminal = Console(file=sys.stdout), Console(stderr=True)
    if out.is_terminal:
        if request.json:
            return [JsonLines(sys.stdout, tokenizer)]
        if responses == 1:
            return [Growing(sys.stdout, tokenizer)]
        return [stack.enter_context(Screen(out, tokenizer))]
    kind = JsonLines if request.json else Growing if responses == 1 else Headed
    written: list[Output] = [kind(sys.stdout, tokenizer)]
    if terminal.is_terminal:
        written.append(stack.enter_context(Screen(terminal, None)))
    return written


class JsonLines:
    """An object a response, as it finishes."""

    def __init__(self, out: TextIO, tokenizer: Tokenizer) -> None:
        self._out, self._tokenizer = out, tokenizer

    def grow(self, progress: Progress) -> None:
        """Nothing: a response is written when it is whole."""

    def finish(self, event: Event) -> None:
        """Write a line."""
        completion = event.completion
        row = {
            "prompt": event.prompt,
            "response": event.response,
            "text": self._tokenizer.decode(completion.token_ids),
            "token_ids": completion.token_ids,
            "logprobs": completion.logprobs,
            "log_kept_mass": completion.log_kept_mass,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()


class Headed:
    """Text under a header, as a response finishes."""

    def __init__(self, out: TextIO, tokenizer: Tokenizer) -> None:
        self._out, self._tokenizer = out, tokenizer

    def grow(self, progress: Progress) -> None:
        """Nothing: a response is written when it is whole."""

    def finish(self, event: Event) -> None:
        """Write the header and the text."""
        text = self._tokenizer.decode(event.completion.token_ids)
        _write(self._out, f"{header(event)}\n{text}\n\n")


class Growing:
    """The text of a single response as it grows, whole characters at a time."""

    def __init__(self, out: TextIO, tokenizer: Tokenizer) -> None:
        self._out, self._text = out, TextStream(tokenizer)
        self._last = ""

    def grow(self, progress: Progress) -> None:
        """Write what the token adds."""
        for _, _, token in progress.new_tokens:
            self._add(self._text.add(token))

    def finish(self, event: Event) -> None:
        """Write what is left, and end the line."""
        self._add(self._text.rest())
        if self._last != "\n":
            _write(self._out, "\n")

    def _add(self, text: str) -> None:
        if text:
            self._last = text[-1]
            _write(self._out, text)


class Screen:
    """A live area on a terminal: the ends of the responses that grow, and tokens/s.

    Finished responses are printed above it. Without a tokenizer it has the one line with tokens/s,
    and nothing is printed.
    """

    def __init__(self, console: Console, tokenizer: Tokenizer | None) -> None:
        self._console, self._tokenizer = console, tokenizer
        self._texts: dict[tuple[int, int], TextStream] = {}
        self._ends: dict[tuple[int, int], str] = {}
        self._progress: Progress | None = None
        self._drawn = 0.0
        self._live = Live(
            console=console, auto_refresh=False, transient=True, get_renderable=self._view
        )

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def grow(self, progress: Progress) -> None:
        """Add the tokens; draw, unless it was done a moment ago."""
        if self._tokenizer is not None:
            for prompt, response, token in progress.new_tokens:
                place = prompt, response
                text = self._texts.setdefault(place, TextStream(self._tokenizer))
                longer = self._ends.get(place, "") + text.add(token)
                self._ends[place] = longer[-self._console.width :]
        self._progress = progress
        if time.monotonic() - self._drawn >= REFRESH_S:
            self._live.refresh()
            self._drawn = time.monotonic()

    def finish(self, event: Event) -> None:
        """Print a response above the live area."""
        if self._tokenizer is None:
            return
        self._ends.pop((event.prompt, event.response), None)
        text = self._tokenizer.decode(event.completion.token_ids)
        self._live.refresh()  # without it
        shown = Text.assemble((header(event), "bold"), f"\n{CONTROL.sub(BROKEN, text)}\n")
        self._console.print(shown, soft_wrap=True)

    def _view(self) -> Group:
        if (progress := self._progress) is None:
            return Group()
        rate = (
            f"{progress.finished}/{progress.responses} responses"
            f"  {progress.generated_tokens:,} tokens  {progress.tokens_per_s:,.0f} tokens/s"
        )
        room = max(1, self._console.height - 3)
        lines = [self._line(place) for place in sorted(self._ends)[:room]]
        if len(self._ends) > room:
            lines.append(Text(f"and {len(self._ends) - room} more", style="dim"))
        return Group(*lines, Text(rate, style="bold", no_wrap=True))

    def _line(self, place: tuple[int, int]) -> Text:
        """The end of a response, as much of it as fits in a line."""
        number = f"{place[0]}.{place[1]}  "
        end = CONTROL.sub(BROKEN, self._ends[place].replace("\n", " ").replace("\t", " "))
        while cell_len(number + end) >= self._console.width and end:
            end = end[1:]
        return Text.assemble((number, "dim"), end, no_wrap=True)


def header(event: Event) -> str:
    """What stands above a response."""
    completion = event.completion
    reason = completion.finish_reason
    if completion.stop_reason is not None:
        reason += f" at {completion.stop_reason!r}"
    tokens = len(completion.token_ids)
    return f"--- prompt {event.prompt}, response {event.response}: {tokens} tokens, {reason}"


def _write(out: TextIO, text: str) -> None:
    """Write at once; what the encoding lacks, and what would steer a terminal, is replaced."""
    if out.isatty():
        text = CONTROL.sub(BROKEN, text)
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))
    out.flush()
