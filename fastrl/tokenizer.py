"""Text to token ids and back, with the model's own chat template and end tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastrl.errors import UsageError

BROKEN = "\ufffd"  # what decoders give for bytes that are no character, or not a whole one yet


class Tokenizer:
    """A model's tokenizer.

    `eos_token_ids`: every token that ends a response, ascending: those of the generation
    configuration, of config.json and of the tokenizer itself. `valid_vocab`: one more than the
    greatest id that stands for a token, added tokens included.
    """

    def __init__(self, inner: Any, eos_token_ids: Sequence[int], name: str) -> None:
        self.inner = inner
        self.name = name
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        self.valid_vocab = max(inner.get_vocab().values()) + 1

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation through the chat template, the generation prompt included.

        The template writes its own special tokens: none is added. Raises UsageError without a
        chat template, where the template refuses the messages, and where the result begins with
        two beginning-of-sequence tokens.
        """
        if not self.inner.chat_template:
            raise UsageError(
                f"the tokenizer of {self.name} has no chat template: use an instruction-tuned "
                "model, or put a chat_template.jinja into its directory"
            )
        with _refusing(
            f"the chat template of {self.name} refuses the messages",
            "give roles that it knows, in its order, or mend the template",
        ):
            text = self.inner.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        token_ids = self.encode(text)
        bos = self.inner.bos_token_id
        if bos is not None and token_ids[:2] == [bos, bos]:
            raise UsageError(
                f"the chat template of {self.name} begins with two {self.inner.bos_token!r}: "
                "write the beginning-of-sequence token once, in the template only"
            )
        return token_ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands, no special token added."""
        with _refusing(
            f"the tokenizer of {self.name} cannot encode a text", "mend the one or the other"
        ):
            return self.inner.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out and spaces left as they are."""
        return self.inner.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files, chat template included, into `directory`."""
        self.inner.save_pretrained(str(directory))


class TextStream:
    """The text of a response, piece by piece as its tokens come, each in the same time.

    All pieces and `rest` together are the text that `Tokenizer.decode` gives of all tokens. Only
    the tokens of the last two pieces are decoded again: the older of the two is there for decoders
    that drop a space in front of the first token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []  # of the last two pieces
        self._older = 0  # how many of them are the older one's
        self._given = 0  # characters of their text

    def add(self, token_id: int) -> str:
        """The text that is certain with one more token and was not without it.

        It may be empty: a character may take several tokens.
        """
        self._token_ids.append(token_id)
        text = self._tokenizer.decode(self._token_ids)
        certain = text.rstrip(BROKEN)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if piece and certain == text:
            del self._token_ids[: self._older]
            self._older = len(self._token_ids)
            self._given = len(self._tokenizer.decode(self._token_ids))
        return piece

    def rest(self) -> str:
        """What is left at the end, such as the half of a character."""
        return self._tokenizer.decode(self._token_ids)[self._given :]


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of a tokenizer."""
    return any(
        (directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    )


def load_tokenizer(name_or_dir: str | Path) -> Tokenizer:
    """The tokenizer of an embedded model, a Hugging Face directory or a hub id.

    Raises UsageError where there is no such model or no tokenizer in it, and as `resolve_model`.
    """
    from fastrl.model import resolve_model
    from fastrl.weights import read_json

    directory = resolve_model(name_or_dir)
    if not has_tokenizer(directory):
        raise UsageError(
            f"{directory} holds no tokenizer: put the model's tokenizer.json and "
            "tokenizer_config.json there"
        )
    files = {
        name: read_json(directory / name)
        for name in ("tokenizer.json", "tokenizer_config.json")
        if (directory / name).is_file()
    }
    with _refusing(
        f"the tokenizer in {directory} cannot be loaded",
        "fetch the model's tokenizer.json and tokenizer_config.json again",
    ):
        inner = _class_for(files.get("tokenizer_config.json", {})).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        tokenizer = Tokenizer(inner, (), str(directory))
        eos: set[int] = set() if inner.eos_token_id is None else {inner.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            found = read_json(directory / name).get("eos_token_id")
            ids = found if isinstance(found, list) else [] if found is None else [found]
            if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
                raise UsageError(
                    f"eos_token_id in {directory / name} has to be the id of a token, or a list "
                    "of ids: mend it"
                )
            eos.update(ids)
    tokenizer.eos_token_ids = tuple(sorted(eos))
    return tokenizer


def _class_for(config: Mapping[str, Any]) -> Any:
    """What loads a tokenizer with this configuration: AutoTokenizer, unless it needs no choice.

    It imports the configuration of every model that there is, in two seconds.
    """
    if config.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in config:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


@contextmanager
def _refusing(what: str, way_out: str) -> Iterator[None]:
    """Turn what the libraries raise on a bad file, or on what it asks for, into UsageError.

    They raise whatever they come upon, and Rust's panics are no Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise UsageError(f"{what} ({reason}): {way_out}") from error
