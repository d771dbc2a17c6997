"""Damaged and adversarial files of every kind that fastrl opens; hostile_readers.py opens them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tiny_models import write_tiny_model

from fastrl.capsule import RESPONSES, SCHEMA
from fastrl.checkpoint import TrainerState, write_checkpoint
from fastrl.run_directory import CAPSULE

MARK = "code-was-run"  # the file that hostile code makes
EVIL = f"open({MARK!r}, 'w').close()\n"
DEEP = 100_000

NASTY: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**20, 10**400, 1.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\0", "\ud800", "../../../../etc/passwd", "a" * 100_000, [], {}, [[]],
    [1], [None], ["x"], {"a": 1}, {"": None}, [0, 2**62], "{{ 1/0 }}", "9" * 5000,
]  # fmt: skip


# ---------------------------------------------------------------- what is done to a file


def damage_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The bytes with a random damage, and its name."""
    if not data:
        return "none", data
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice([1, 4, 64, 4096]))
    match kind := rng.choice(["truncate", "flip", "fill", "insert", "repeat", "number", "drop"]):
        case "truncate":
            changed = data[:at]
        case "flip":
            flipped = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 8])):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            changed = bytes(flipped)
        case "fill":
            changed = data[:at] + rng.choice([b"\0", b"\xff", b"A"]) * (end - at) + data[end:]
        case "insert":
            changed = data[:at] + rng.randbytes(end - at) + data[at:]
        case "repeat":
            changed = data[:end] + data[at:]
        case "number":
            number = rng.choice([2**63 - 1, -1, 2**32, 2**31 - 1, 0])
            changed = data[:at] + struct.pack("<q", number) + data[at + 8 :]
        case "drop":
            changed = data[:at] + data[end:]
    return f"{kind} at {at} of {len(data)}", changed


def damage_json(value: Any, rng: random.Random) -> tuple[str, Any]:
    """The value with one of its parts replaced, removed or added."""
    path: list[Any] = []
    here = value
    while isinstance(here, (dict, list)) and here and (not path or rng.random() < 0.75):
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        path.append(key)
        here = here[key]
    copy = json.loads(json.dumps(value))
    if not path:
        return "whole", rng.choice(NASTY)
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    action = rng.choice(["replace", "replace", "replace", "remove", "add"])
    name = f"{action} {'.'.join(map(str, path))[:80]}"
    if action == "remove":
        del parent[path[-1]]
        return name, copy
    thing = rng.choice(NASTY)
    if action == "replace":
        parent[path[-1]] = thing
    elif isinstance(parent, dict):
        parent[str(path[-1]) + rng.choice(["", " ", "x", "s"])] = thing
    else:
        parent.insert(path[-1], thing)
    return f"{name} by {str(thing)[:40]!r}", copy


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def change_file(path: Path, rng: random.Random) -> str:
    """Damage a file in place; JSON as JSON three times in four."""
    if path.suffix == ".json" and rng.random() < 0.75:
        what, value = damage_json(json.loads(path.read_bytes()), rng)
        path.write_bytes(dump(value))
    else:
        what, data = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    return f"{path.name}: {what}"


def written(name: str, data: bytes | str) -> Callable[[Path], str]:
    """The attack that puts `data` into the file `name`."""

    def attack(directory: Path) -> str:
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        (directory / name).write_bytes(raw)
        return f"{name} = {raw[:50]!r} ({len(raw):,} bytes)"

    return attack


def edited(name: str, **values: Any) -> Callable[[Path], str]:
    """The attack that sets keys of the JSON object in `name`."""

    def attack(directory: Path) -> str:
        found = json.loads((directory / name).read_bytes()) if (directory / name).exists() else {}
        (directory / name).write_bytes(dump(found | values))
        return f"{name} with {str(values)[:120]}"

    return attack


DEEP_LISTS = "[" * DEEP + "]" * DEEP
DEEP_OBJECTS = '{"a":' * DEEP + "1" + "}" * DEEP


# ---------------------------------------------------------------- weights


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header that claims what it likes."""
    text = entries if isinstance(entries, bytes) else dump(entries)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


NORM = "model.norm.weight"
CLAIMS = [
    header({}, length=2**63 - 1),
    header({}, length=2**64 - 1),
    header({}, length=99_000_000),
    header({NORM: tensor([2**40], [0, 2**42])}),
    header({NORM: tensor([2**62, 4], [0, 0])}),
    header({NORM: tensor([2**32, 2**32], [0, 0])}),
    header({NORM: tensor([48], [192, 0])}, b"\0" * 192),
    header({NORM: tensor([48], [-192, 0])}, b"\0" * 192),
    header({NORM: tensor([-48], [0, 192])}, b"\0" * 192),
    header({NORM: tensor([48], [0, 192], "PICKLE")}, b"\0" * 192),
    header({NORM: tensor([48], [0, 192], "I32")}, b"\0" * 192),
    header({NORM: tensor([192], [0, 192], "U8"), "x": tensor([192], [0, 192], "U8")}, b"\0" * 192),
    header({NORM: tensor([0], [0, 0])}),
    header({NORM: "x"}),
    header({NORM: tensor([48], [0, 192]), "__metadata__": {"format": "pt", "a": [1]}}),
    header(b"[" * DEEP + b"]" * DEEP),
    header(b'{"a":' * DEEP),
    header(b"\xff\xfe{}"),
    header(b'{"' + b"\xff" * 10 + b'": 1}'),
    b"",
    b"\0" * 8,
    b"PK\x03\x04" + b"\0" * 100,
    b"cposix\nsystem\n(S'touch " + MARK.encode() + b"'\ntR.",
]
WEIGHTS = [written("model.safetensors", data) for data in CLAIMS]
WEIGHTS += [
    edited("config.json", vocab_size=10**9),
    edited("config.json", vocab_size=10**18),
    edited("config.json", hidden_size=2**30, intermediate_size=2**30),
    edited("config.json", num_hidden_layers=10**9),
    edited("config.json", num_hidden_layers=10**30),
    edited("config.json", intermediate_size=10**12),
    edited("config.json", max_position_embeddings=10**18),
    edited("config.json", head_dim=2**31),
    edited("config.json", num_attention_heads=10**9, num_key_value_heads=10**9),
    edited("config.json", num_attention_heads=10**9, num_key_value_heads=1),
    edited("config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"}),
    edited("config.json", rope_parameters={"rope_type": "llama3", "rope_theta": 1.0}),
    edited("config.json", rope_parameters={"rope_type": "default", "rope_theta": "x"}),
    edited("config.json", rope_parameters={"rope_type": "default", "rope_theta": [1]}),
    edited("config.json", rope_parameters={"rope_type": "default", "rope_theta": -5}),
    edited("config.json", rms_norm_eps="small"),
    edited("config.json", rms_norm_eps=None),
    edited("config.json", layer_types=7),
    written("config.json", DEEP_LISTS),
    written("config.json", DEEP_OBJECTS),
    written("config.json", "9" * 10_000),
    written("config.json", '{"vocab_size": ' + "9" * 10_000 + "}"),
]  # fmt: skip


def index(weight_map: Any) -> Callable[[Path], str]:
    """The attack that puts an index in place of the one file."""

    def attack(directory: Path) -> str:
        (directory / "model.safetensors").rename(directory / "model-1.safetensors")
        (directory / "model.safetensors.index.json").write_bytes(dump({"weight_map": weight_map}))
        return f"index of {str(weight_map)[:80]}"

    return attack


WEIGHTS += [
    index({NORM: 7}),
    index({NORM: None}),
    index({NORM: ["model-1.safetensors"]}),
    index({NORM: "../../../../../etc/passwd"}),
    index({NORM: "/etc/passwd"}),
    index({NORM: "\0"}),
    index({NORM: ""}),
    index({NORM: "."}),
    index({NORM: "a" * 5000}),
    index([]),
    index({NORM: "/dev/zero"}),
]


# ---------------------------------------------------------------- tokenizers

EVIL_TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% set x = cycler.__init__.__globals__.os.system('touch " + MARK + "') %}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('touch " + MARK + "').read() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception('no') }}",
    "{{ 1/0 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ undefined.thing }}",
    "{{ messages[7] }}",
    "{{",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ (" * 3000 + "1" + ") }}" * 3000,
    "\ud800",
    "",
]
TOKENIZERS = [written("chat_template.jinja", text) for text in EVIL_TEMPLATES]
TOKENIZERS += [
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}),
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.T"]},
           tokenizer_class="T"),
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": "other/repo--evil.T"}),
    edited("tokenizer_config.json", tokenizer_class="os.system"),
    edited("tokenizer_config.json", tokenizer_class="BertTokenizer"),
    edited("tokenizer_config.json", model_max_length=10**400),
    edited("tokenizer_config.json", bos_token={"content": 3}),
    edited("tokenizer_config.json", eos_token=None, pad_token=None),
    edited("tokenizer_config.json", added_tokens_decoder={"-1": {"content": "x"}}),
    edited("tokenizer_config.json", added_tokens_decoder={str(2**40): {"content": "x"}}),
    edited("tokenizer_config.json", added_tokens_decoder={"4000000000": {"content": "x"}}),
    edited("tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ 1/0 }}"}]),
    edited("generation_config.json", eos_token_id=[[1]]),
    edited("generation_config.json", eos_token_id="</s>"),
    edited("generation_config.json", eos_token_id=-1),
    edited("generation_config.json", eos_token_id=10**30),
    edited("generation_config.json", eos_token_id=2.5),
    edited("generation_config.json", eos_token_id=True),
    edited("tokenizer.json", added_tokens=[{"id": 2**32 - 1, "content": "x", "special": True}]),
    edited("tokenizer.json", padding={"strategy": {"Fixed": 10**12}, "direction": "Right",
           "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}),
    edited("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
    edited("tokenizer.json", model={"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}),
    edited("tokenizer.json", model={"type": "Unigram", "vocab": [], "unk_id": 10**9}),
    edited("tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "gone"}),
    edited("tokenizer.json", pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$("},
           "behavior": "Isolated", "invert": False}),
    edited("tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    written("tokenizer.json", DEEP_LISTS),
    written("tokenizer.json", DEEP_OBJECTS),
    written("tokenizer_config.json", DEEP_OBJECTS),
    written("generation_config.json", DEEP_LISTS),
    written("special_tokens_map.json", "[1, 2]"),
    written("tokenizer.json", b"\x80\x04cposix\nsystem\n"),
    written("added_tokens.json", '{"x": -5}'),
]  # fmt: skip


# ---------------------------------------------------------------- data

ROWS = [{"prompt": f"what is {i}+{i}?", "answer": str(2 * i), "level": i % 3} for i in range(80)]
TURNS = [{"messages": [{"role": "user", "content": f"{i}?"}], "answer": i} for i in range(20)]


def rows_of(values: list[Any]) -> bytes:
    return b"".join(dump(v) + b"\n" for v in values)


JSONL = [
    written("rows.jsonl", data)
    for data in [
        DEEP_LISTS, DEEP_OBJECTS, "9" * 10_000, '{"prompt": "p", "answer": ' + "9" * 10_000 + "}",
        '{"prompt": "p", "answer": 1e999}', '{"prompt": "p", "answer": NaN}',
        '{"prompt": "\\ud800", "answer": "1"}', '{"prompt": "p", "answer": "\\udfff"}',
        '{"messages": [{"role": "user", "content": "\\ud800"}], "answer": "1"}',
        '{"messages": [{"role": "\\ud800", "content": "x"}], "answer": "1"}',
        b'{"prompt": "\xff", "answer": "1"}', b"\xff\xfe{\0}\0", "\0" * 1000, "", "\n\n",
        '{"prompt": {"a": 1}, "answer": [1]}', '{"prompt": "' + "x" * 3_000_000 + '", "answer": 1}',
        '{"prompt": "\\u0000", "answer": "\\u0000"}', '{"answer": "1"}', "[]", "null",
        '{"prompt": "p", "answer": true}', '{"prompt": "p", "answer": -0.0}',
        '{"prompt": "p", "answer": 5e-324}', '{"messages": {"a": 1}, "answer": 1}',
        '{"messages": [], "answer": 1}', '{"messages": [[]], "answer": 1}',
    ]
]  # fmt: skip


def parquet_with_rows(count: int) -> Callable[[Path], str]:
    """The attack that says a great many rows in a few bytes."""

    def attack(directory: Path) -> str:
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["p"])
        table = pa.table({"prompt": column, "answer": column})
        path = directory / "rows.parquet"
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for _ in range(count // 100_000):
                writer.write_table(table)
        return f"{count:,} rows in {path.stat().st_size:,} bytes"

    return attack


def parquet_of_pickle(directory: Path) -> str:
    """A column of the extension type that older pyarrow built by a pickle of the file's."""
    evil = b"cposix\nsystem\n(S'touch " + MARK.encode() + b"'\ntR."
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type",
                b"ARROW:extension:metadata": evil}  # fmt: skip
    fields = [pa.field(name, pa.string(), metadata=metadata) for name in ("prompt", "answer")]
    columns = [pa.array(["p"] * 50)] * 2
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    pq.write_table(table, directory / "rows.parquet")
    return "a pickled extension type"


def parquet_of(**columns: Any) -> Callable[[Path], str]:
    def attack(directory: Path) -> str:
        path = directory / "rows.parquet"
        pq.write_table(pa.table(columns), path, version="2.6", compression="zstd")
        return f"columns {', '.join(columns)}, {path.stat().st_size:,} bytes"

    return attack


BAD_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
)
PARQUET = [
    parquet_with_rows(100_000),
    parquet_with_rows(50_000_000),
    parquet_of_pickle,
    parquet_of(prompt=BAD_UTF8, answer=BAD_UTF8),
    parquet_of(prompt=[b"\xff"], answer=[b"1"]),
    parquet_of(prompt=[[["x"]]], answer=[{"a": 1}]),
    parquet_of(prompt=["p"], answer=["1"], when=pa.array([2**62], pa.timestamp("ns"))),
    parquet_of(prompt=["p"], answer=["1"], when=pa.array([2**62], pa.timestamp("us"))),
    parquet_of(prompt=["p"], answer=["1"], day=pa.array([2**31 - 1], pa.date32())),
    parquet_of(prompt=["p"], answer=["1"], took=pa.array([2**62], pa.duration("s"))),
    parquet_of(prompt=pa.nulls(3), answer=pa.nulls(3)),
    parquet_of(),
    parquet_of(
        prompt=["p"],
        answer=["1"],
        more=pa.ListArray.from_arrays([0, 50_000_000], pa.array(np.zeros(50_000_000, np.int8))),
    ),
    parquet_of(
        prompt=["p"] * 800,
        answer=["1"] * 800,
        big=pa.DictionaryArray.from_arrays(pa.array([0] * 800, pa.int32()), ["x" * 2_000_000]),
    ),
    parquet_of(
        prompt=[f"{i}?" for i in range(20_000)],
        answer=["1"] * 20_000,
        big=pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 1_000_000]),
    ),
    written("rows.parquet", b""),
    written("rows.parquet", b"PAR1"),
    written("rows.parquet", b"PAR1PAR1"),
    written("rows.parquet", b"PAR1" + b"\0" * 20 + b"\xff\xff\xff\x7f" + b"PAR1"),
    written("rows.parquet", b"PAR1" + b"\x15" * 5000 + struct.pack("<i", 5000) + b"PAR1"),
    written("rows.parquet", b"ARROW1\0\0" + b"\xff" * 100),
]


# ---------------------------------------------------------------- runs


def write_run(directory: Path) -> None:
    """A run with two checkpoints, made of small files rather than of training."""
    from fastrl.config import Config, write_toml

    write_toml(Config(), directory / "config.toml")
    for step in (1, 2):
        weights = {"w": torch.full((16,), float(step))}
        write_checkpoint(
            directory / "checkpoints",
            lambda path, weights=weights: save_file(weights, path / "model.safetensors"),
            {"step": torch.tensor([step])},
            TrainerState(step, step, step),
        )
    for name in ("metrics.jsonl", "eval.jsonl", "environment.jsonl", "roll_backs.jsonl"):
        kept = {"split": "validation", "accuracy": 0.5, "attempt": 1}
        lines = [{"step": step, **kept} for step in (1, 2)]
        (directory / name).write_bytes(rows_of(lines))


CHECKPOINT = "checkpoints/step_2"
RUNS = [
    written(f"{CHECKPOINT}/manifest.json", DEEP_LISTS),
    written(f"{CHECKPOINT}/manifest.json", "{}"),
    written(f"{CHECKPOINT}/manifest.json", "[]"),
    written(f"{CHECKPOINT}/manifest.json", '{"../../../../../../etc/passwd": {"bytes": 1}}'),
    written(f"{CHECKPOINT}/manifest.json", '{"\\u0000": {"bytes": 1, "sha256": ""}}'),
    written(f"{CHECKPOINT}/manifest.json", '{"\\ud800": {"bytes": 1, "sha256": ""}}'),
    written(f"{CHECKPOINT}/manifest.json", '{"trainer_state.json": 5}'),
    written(f"{CHECKPOINT}/trainer_state.json", "{}"),
    written("metrics.jsonl", DEEP_LISTS + "\n"),
    written("metrics.jsonl", b'{"step": 1}\n\0\0\0\0{"step": 2}\n{"step": 2}\n'),
    written("eval.jsonl", '{"step": 1}\n'),
    written("eval.jsonl", '{"step": 1, "split": "validation"}\n'),
    written("environment.jsonl", DEEP_OBJECTS),
    written("config.toml", "a = " + DEEP_LISTS),
    written("config.toml", b"\xff\xfe"),
    written("config.toml", '[reward]\nfunctions = ["os:system"]\n'),
    written("config.toml", "[train]\nseed = 9223372036854775808\n"),
    written("config.toml", "[train]\nseed = " + "9" * 10_000),
]  # fmt: skip


# ---------------------------------------------------------------- capsules


def write_capsule(directory: Path) -> None:
    row = {
        "prompt_id": 1, "draw": 0, "prompt": "1+1?", "completion": "2", "token_ids": [5, 2],
        "logprobs": [-0.5, -0.25], "log_kept_mass": [0.0, 0.0], "finish_reason": "stop",
        "stop_reason": "null", "task_reward": 1.0,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row] * 4, schema=SCHEMA), directory / RESPONSES)
    values = {
        "kind": "broken", "rule": "loss", "reason": "the loss is not finite",
        "numbers": {"loss": "nan"}, "before": asdict(TrainerState(3, 12, 400)),
        "history": [["4.0", "0.0", "0.0", "0.5", "1.0", "-3.0"]] * 3, "told": ["entropy"],
        "processes": 1, "environment": {"python": "3.11"},
    }  # fmt: skip
    (directory / CAPSULE).write_bytes(dump(values))


CAPSULES = [
    written(CAPSULE, DEEP_OBJECTS),
    written(CAPSULE, "[]"),
    edited(CAPSULE, before={"step": "x", "prompts_drawn": 1, "tokens_sampled": 1}),
    edited(CAPSULE, before=[1, 2, 3]),
    edited(CAPSULE, numbers=[1, 2]),
    edited(CAPSULE, numbers=None),
    edited(CAPSULE, processes="x"),
    edited(CAPSULE, history=[[1]]),
    edited(CAPSULE, told=7),
    written(RESPONSES, b"PAR1PAR1"),
]


# ---------------------------------------------------------------- kinds


def write_model(directory: Path) -> None:
    write_tiny_model(directory)
    (directory / "evil.py").write_text(EVIL)


def write_rows(directory: Path) -> None:
    (directory / "rows.jsonl").write_bytes(rows_of(ROWS + TURNS))
    pq.write_table(pa.Table.from_pylist(ROWS), directory / "rows.parquet")


Attack = Callable[[Path], str]
# how the files are made, which of them are damaged, and the attacks by hand
KINDS: dict[str, tuple[Callable[[Path], None], str, list[Attack]]] = {
    "weights": (write_model, "model.safetensors|config.json", WEIGHTS),
    "tokenizer": (
        write_model,
        "tokenizer.json|tokenizer_config.json|generation_config.json|config.json",
        TOKENIZERS,
    ),
    "jsonl": (write_rows, "rows.jsonl", JSONL),
    "parquet": (write_rows, "rows.parquet", PARQUET),
    "capsule": (write_capsule, f"{CAPSULE}|{RESPONSES}", CAPSULES),
    "run": (write_run, "**/*", RUNS),
}


def attack(kind: str, number: int, directory: Path) -> str:
    """Do case `number` to the files of a directory: those by hand first, then at random."""
    _, patterns, by_hand = KINDS[kind]
    if number < len(by_hand):
        return by_hand[number](directory)
    rng = random.Random(f"{kind} {number}")
    found = [p for pattern in patterns.split("|") for p in directory.glob(pattern) if p.is_file()]
    if kind == "run":  # a whole checkpoint is left, so that a run can go on
        found = [p for p in found if "step_1" not in p.parts and p.name != "config.toml"]
    return change_file(rng.choice(sorted(found)), rng)
