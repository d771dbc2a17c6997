"""The chat template, beginning- and end-of-sequence tokens, and the vocabulary's end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, tiny_tokenizer, write_tiny_model
from transformers import AutoTokenizer

import fastrl
from fastrl.errors import UsageError
from fastrl.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "1+2"}]


@pytest.fixture
def directory(tmp_path):
    write_tiny_model(tmp_path, "qwen3")
    return tmp_path


def with_template(directory, template):
    tiny_tokenizer(template).save_pretrained(directory)
    return load_tokenizer(directory)


def test_the_chat_template_writes_the_only_special_tokens(directory):
    tokenizer = load_tokenizer(directory)
    text = [*"1+2"]
    one, plus, two = (tokenizer.encode(character)[0] for character in text)
    #        <s> <u>                 </s> <a>
    assert tokenizer.encode_chat(MESSAGES) == [1, 3, one, plus, two, 2, 4]
    assert tokenizer.encode("1+2") == [one, plus, two]


def test_two_beginnings_are_refused(directory):
    tokenizer = with_template(directory, "{{ bos_token }}" + CHAT_TEMPLATE)
    with pytest.raises(UsageError, match="two '<s>'.*once"):
        tokenizer.encode_chat(MESSAGES)


def test_a_tokenizer_that_adds_its_own_beginning_adds_none_to_the_template(directory):
    path = directory / "tokenizer.json"
    values = json.loads(path.read_text())
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(values))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.inner("1")["input_ids"][0] == 1  # it would, if asked
    assert tokenizer.encode_chat(MESSAGES)[:2] == [1, 3]
    assert tokenizer.encode("1")[0] != 1


def test_a_missing_template_is_refused_with_the_way_out(directory):
    (directory / "chat_template.jinja").unlink()
    tokenizer = with_template(directory, None)
    with pytest.raises(UsageError, match="no chat template.*chat_template.jinja"):
        tokenizer.encode_chat(MESSAGES)


def test_messages_that_the_template_refuses(directory):
    tokenizer = with_template(directory, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="roles must alternate"):
        tokenizer.encode_chat(MESSAGES)


def test_every_end_token_of_every_file(directory):
    path = directory / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [9, 4]}))
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 7}))
    assert load_tokenizer(directory).eos_token_ids == (2, 4, 7, 9)
    path.write_text(json.dumps({"eos_token_id": 9}))
    assert load_tokenizer(directory).eos_token_ids == (2, 7, 9)
    path.unlink()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": None}))
    assert load_tokenizer(directory).eos_token_ids == (2,)


def test_decode_leaves_special_tokens_out_and_spaces_alone(directory):
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("1 . 2 ")
    assert tokenizer.decode([1, 3, *ids, 2, 0]) == "1 . 2 "


def test_valid_vocab_counts_added_tokens(directory):
    before = load_tokenizer(directory).valid_vocab
    inner = tiny_tokenizer()
    inner.add_tokens(["<new>"])
    inner.save_pretrained(directory)
    assert load_tokenizer(directory).valid_vocab == before + 1


def test_save_and_load_again(directory, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    write_tiny_model(copy)
    for path in copy.glob("*token*"):
        path.unlink()
    tokenizer = load_tokenizer(directory)
    tokenizer.save(copy)
    assert load_tokenizer(copy).encode_chat(MESSAGES) == tokenizer.encode_chat(MESSAGES)


def test_a_directory_without_a_tokenizer(directory):
    for path in directory.glob("token*"):
        path.unlink()
    with pytest.raises(UsageError, match="no tokenizer.*tokenizer.json"):
        load_tokenizer(directory)


def test_a_damaged_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="tokenizer.json is not JSON"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_tokenizer(directory)


def test_a_class_that_the_files_name_is_not_chosen_among_all():
    """AutoTokenizer imports the configuration of every model, in two seconds."""
    code = (
        "import sys; from fastrl.tokenizer import load_tokenizer;"
        " print(load_tokenizer('embedded').encode('not True'));"
        " print('transformers.models.auto.tokenization_auto' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    token_ids, chosen = done.stdout.splitlines()
    where = Path(fastrl.__file__).parent / "embedded" / "models" / "0"
    inner = AutoTokenizer.from_pretrained(str(where))
    assert json.loads(token_ids) == inner.encode("not True", add_special_tokens=False)
    assert type(load_tokenizer("embedded").inner) is type(inner)
    assert chosen == "False"
