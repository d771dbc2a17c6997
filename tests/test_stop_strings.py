"""Text and stop strings of a growing response: what decoding the whole after every token gives."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from fastrl.sampler.stop_strings import StopStrings
from fastrl.tokenizer import BROKEN, TextStream, Tokenizer, load_tokenizer

SMOLLM2 = Path("~/.cache/fastrl/smollm2-135m-instruct").expanduser()
WORDS = [
    "the",
    "▁the",
    "▁",
    "▁▁",
    "a",
    "▁a",
    "日",
    "é",
    "▁x",
    ".",
    "\n",
    "##ing",
    "##x",
    "o</w>",
    "u",
]
TEXTS = ["日本語 é\n", " the  x", "😀😀 é", "no 👩‍👩‍👧 1+2=3", "\\boxed{7} so 8\n", "a�b", " "]
bounded = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def with_decoder(decoder):
    """A tokenizer of WORDS and, as Llama 2 has them, of bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *WORDS]
    vocab = {token: i for i, token in enumerate(tokens)}
    inner = Inner(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoder
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return Tokenizer(fast, (2,), "built here")


LLAMA_2 = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]
TOKENIZERS = {
    "embedded": lambda: load_tokenizer("embedded"),
    "tiny": lambda: Tokenizer(tiny_tokenizer(), (2,), "tiny"),
    "smollm2": lambda: load_tokenizer(SMOLLM2),
    "llama-2": lambda: with_decoder(decoders.Sequence(LLAMA_2)),
    "metaspace": lambda: with_decoder(decoders.Metaspace()),
    "word-piece": lambda: with_decoder(decoders.WordPiece()),
    "suffixes": lambda: with_decoder(decoders.BPEDecoder()),
}
EVERY = pytest.mark.parametrize("name", TOKENIZERS)


@functools.cache
def tokenizer_of(name):
    if name == "smollm2" and not (SMOLLM2 / "tokenizer.json").is_file():
        pytest.skip("SmolLM2 is not here: python bench/fetch_smollm2.py fetches it")
    return TOKENIZERS[name]()


@functools.cache
def odd_tokens(name):
    """Tokens that are no text of their own: parts of characters, special ones, spaces."""
    tokenizer = tokenizer_of(name)
    texts = {token: tokenizer.decode([token]) for token in range(tokenizer.valid_vocab)}
    return [t for t, text in texts.items() if BROKEN in text or not text.strip()]


@st.composite
def responses(draw, name):
    """Token ids: of texts, at random, and parts of characters, in any mixture."""
    tokenizer = tokenizer_of(name)
    parts = st.one_of(
        st.sampled_from(TEXTS).map(tokenizer.encode),
        st.lists(st.integers(0, tokenizer.valid_vocab - 1), max_size=6),
        st.lists(st.sampled_from(odd_tokens(name)), max_size=6),
    )
    return [t for part in draw(st.lists(parts, min_size=1, max_size=8)) for t in part]


def by_whole_decoding(tokenizer, token_ids, stop):
    for length in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:length])
        if found := [s for s in stop if s in text]:
            return length, found[0]
    return None


def by_stop_strings(tokenizer, token_ids, stop):
    strings = StopStrings(tokenizer, stop)
    for length in range(1, len(token_ids) + 1):
        if (found := strings.find(token_ids[:length])) is not None:
            return length, found
    return None


@st.composite
def stops_in(draw, text):
    """Some strings, most of them in `text`."""
    stop = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, max(0, len(text) - 1)))
        piece = text[first : first + draw(st.integers(1, 9))]
        stop.append(piece or "absent")
    return stop


@EVERY
def test_stop_strings_are_found_when_the_whole_text_has_them(name):
    tokenizer = tokenizer_of(name)
    late = []

    @bounded
    @given(st.data())
    def check(data):
        token_ids = data.draw(responses(name))
        # of a prefix too: what an unfinished run of bytes looks like
        seen = data.draw(st.integers(0, len(token_ids)))
        text = tokenizer.decode(token_ids[:seen] if data.draw(st.booleans()) else token_ids)
        stop = data.draw(stops_in(text))
        expected = by_whole_decoding(tokenizer, token_ids, stop)
        assert by_stop_strings(tokenizer, token_ids, stop) == expected
        late.append(expected is not None and expected[0] > 5)

    check()
    assert sum(late) > 10


@EVERY
def test_the_pieces_of_a_text_make_up_the_whole(name):
    tokenizer = tokenizer_of(name)

    @bounded
    @given(responses(name))
    def check(token_ids):
        stream, told, whole = TextStream(tokenizer), "", ""
        for length, token in enumerate(token_ids, 1):
            told += stream.add(token)
            whole = tokenizer.decode(token_ids[:length])
            if name != "llama-2":  # there a broken run of bytes takes back what it was before
                assert whole.startswith(told) and not whole[len(told) :].strip(BROKEN)
        if name != "llama-2" or BROKEN not in whole:
            assert told + stream.rest() == whole

    check()


@pytest.mark.parametrize("name", ["embedded", "smollm2", "llama-2"])
def test_a_piece_ends_with_a_whole_character(name):
    tokenizer = tokenizer_of(name)
    text = "no 日本語 😀 is 1+2\n" if name != "embedded" else "so 1+2 = 3\n"
    stream, token_ids = TextStream(tokenizer), tokenizer.encode(text)
    pieces = [stream.add(token) for token in token_ids]
    assert BROKEN not in "".join(pieces)
    assert "".join(pieces) == tokenizer.decode(token_ids)
    assert stream.rest() == ""
    assert len([p for p in pieces if p]) > 5
    half = tokenizer.encode("😀")
    if len(half) > 1:
        assert [stream.add(token) for token in half[:2]] == ["", ""]
        assert stream.rest().startswith(BROKEN)


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, token_ids):
        self.decoded += len(token_ids)
        return self.tokenizer.decode(token_ids)


@pytest.mark.parametrize("name", ["embedded", "smollm2"])
def test_the_work_of_a_token_does_not_grow_with_the_response(name):
    tokenizer = Counting(tokenizer_of(name))
    token_ids = tokenizer_of(name).encode("now 1+2*3 = 7\n" * 40)
    assert (
        by_stop_strings(tokenizer, token_ids, ["\n\n", "so long a string that is not there"])
        is None
    )
    assert tokenizer.decoded < 8 * len(token_ids)


def test_a_false_alarm_is_no_stop():
    """Word pieces keep their ## at the very beginning, and there only."""
    tokenizer = tokenizer_of("word-piece")
    inner = tokenizer.inner.get_vocab()
    token_ids = [inner["a"], inner["##ing"], inner["##x"], inner["##ing"], inner["u"]]
    assert tokenizer.decode(token_ids) == "aingxing u"
    assert by_stop_strings(tokenizer, token_ids, ["##"]) is None
    assert by_stop_strings(tokenizer, token_ids, ["##", "g u"]) == (5, "g u")
