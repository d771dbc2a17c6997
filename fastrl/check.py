"""`fastrl check`: an audit of a run before its first step, of what makes a run worthless unseen."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fastrl.alerts import alerts
from fastrl.background import BackgroundGrader, Verdict
from fastrl.batch import pack
from fastrl.device_memory import available_bytes
from fastrl.grading import grade
from fastrl.lint_golds import count_kinds, lint_golds
from fastrl.memory_plan import gigabytes
from fastrl.metrics import task_metrics
from fastrl.out_of_memory import shrinking
from fastrl.rollouts import has_signal, score_groups
from fastrl.sampler import PromptKey, SamplingParams
from fastrl.scoring import score
from fastrl.sharding import gathered
from fastrl.types import Completion, Prompt

if TYPE_CHECKING:
    from fastrl.datasources import Example
    from fastrl.run import Run

Status = Literal["pass", "warn", "fail"]

GOLDS = 2000  # that are written down right and wrong for the verifier
PROBES = 4, 16  # responses and tokens that sampler and trainer are compared on
PROMPTS = 32  # sampled from at step 0, at most
# of a log-prob, in nats: the largest difference in fp32, the mean one in narrower types
CLOSE = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-8, 1e-6)}
CLOSE_NARROW = (0.02, 0.1)
MARK = "6-times-9-is-42"  # an answer that no template holds
WRITTEN = {"hash4": "#### {}", "tag": "<answer>{}</answer>", "choice": "The answer is ({})."}


@dataclass(frozen=True)
class Check:
    """One finding of the audit."""

    name: str
    status: Status
    found: str
    way_out: str = ""  # unless it passed


def audit(run: Run) -> list[Check]:
    """All findings on a run that has not begun; it samples and scores a little. Every process."""
    return [check for one in AUDITS for check in one(run)]


def count(checks: Sequence[Check]) -> str:
    """How many there are of each status, as in "11 passed, 1 warning"."""
    names = {"pass": "passed", "warn": "to be looked at", "fail": "failed"}
    found = Counter[str](c.status for c in checks)
    return ", ".join(f"{found[s]} {name}" for s, name in names.items() if found[s])


def golds(run: Run) -> Iterator[Check]:
    """Golds that can be read are right when they are given as the answer."""
    examples = run.prompts.source.examples
    if "math" not in run.config.reward.functions:
        yield Check("golds", "pass", "not looked at: the reward is not the verifier's")
        return
    problems = lint_golds([e.answer for e in examples])
    bad = {p.index for p in problems if p.kind != "ambiguous"}
    name, way_out = "golds", "mend or drop those rows; fastrl grade --lint FILE lists them"
    if problems:
        first = f"row {examples[problems[0].index].id}: {problems[0].message}"
        share = f"{len(problems):,} of {len(examples):,} can mislead ({count_kinds(problems)})"
        none = len(bad) == len(examples) and run.objective.uses_task_reward
        yield Check(name, "fail" if none else "warn", f"{share}; {first}", way_out)
    else:
        yield Check(name, "pass", f"all {len(examples):,} can be read")
    readable = [e for i, e in enumerate(examples) if i not in bad][:GOLDS]
    yield _verdicts(run, "golds as answers", readable, lambda gold: gold, True)
    yield _verdicts(run, "wrong answers", readable, corrupted, False)


def _verdicts(
    run: Run, name: str, examples: Sequence[Example], change: Callable[[str], str], right: bool
) -> Check:
    """Whether golds, changed, are graded as they should be in a whole response."""
    mode = run.config.reward.mode
    form = WRITTEN.get(mode, r"The answer is \boxed{{{}}}.")
    texts = [form.format(change(e.answer)) for e in examples]
    verdicts = grade(texts, [e.answer for e in examples], mode=mode)
    odd = [
        f"{text!r} for {e.answer!r}"
        for text, e, v in zip(texts, examples, verdicts, strict=True)
        if v.correct is not right
    ]
    expected = "right" if right else "wrong"
    found = f"{len(examples) - len(odd):,} of {len(examples):,} are graded {expected}"
    if not odd:
        return Check(name, "pass", found)
    mostly = len(odd) <= 0.1 * len(examples)
    way_out = "look at these golds, and at reward.mode" if right else "look at these golds"
    return Check(name, "warn" if mostly else "fail", f"{found}; not {odd[0]}", way_out)


def corrupted(gold: str) -> str:
    """Another answer of the same form: the last digit changed, or words with one more."""
    digits = list(re.finditer(r"[0-9]", gold))
    if digits:
        last = digits[-1]
        changed = "2" if last[0] == "1" else str((int(last[0]) + 1) % 10)
        return gold[: last.start()] + changed + gold[last.end() :]
    if re.fullmatch(r"\(?[A-Z]\)?", gold):  # an option
        return "A" if "A" not in gold else "B"
    return f"not {gold}"


def template(run: Run) -> Iterator[Check]:
    """The tokens around a prompt and a response."""
    tokenizer, inner = run.tokenizer, run.tokenizer.inner
    messages = [dict(m) for m in run.prompts.source.examples[0].messages]
    token_ids = run.prompts.source.token_ids[0]
    bos = inner.bos_token_id
    if bos is None:
        yield Check("beginning of sequence", "pass", "the model has no such token")
    elif token_ids[:1] == (bos,):  # two are refused before
        yield Check("beginning of sequence", "pass", f"one {inner.bos_token!r}")
    else:
        yield Check(
            "beginning of sequence",
            "warn",
            f"the template does not write {inner.bos_token!r}",
            "write it into the chat template if the model was trained with it",
        )

    def text(turns: Sequence[dict[str, Any]], ask: bool) -> str:
        return inner.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)

    before, asked = text(messages, False), text(messages, True)
    name = "generation prompt"
    if asked != before:
        yield Check(name, "pass", f"{asked[len(before) :]!r}")
    else:
        yield Check(
            name,
            "warn",
            "the template writes none, so that a response begins where the user's turn ends",
            "make sure that the model answers from there, or mend the chat template",
        )
    answered = text([*messages, {"role": "assistant", "content": MARK}], False)
    tail = tokenizer.encode(answered.rpartition(MARK)[2])
    special = [i for i in tail if i in set(inner.all_special_ids)][:1]
    names = [inner.convert_ids_to_tokens(i) for i in tokenizer.eos_token_ids]
    name, known = "end tokens", ", ".join(map(repr, names))
    if not names:
        yield Check(name, "fail", "there is none: no response would end", "name one in config.json")
    elif special and special[0] not in tokenizer.eos_token_ids:
        end = inner.convert_ids_to_tokens(special[0])
        yield Check(
            name,
            "fail",
            f"the template ends a turn with {end!r}, which is none of {known}",
            "add it to eos_token_id in generation_config.json",
        )
    else:
        yield Check(name, "pass", known)


def vocabulary(run: Run) -> Iterator[Check]:
    """Rows of the head that stand for no token are never sampled."""
    policy, size = run.learner.policy, run.tokenizer.valid_vocab
    rows = policy.head_weight.shape[0]
    name = "vocabulary"
    if size > rows:
        yield Check(
            name,
            "fail",
            f"the tokenizer has {size:,} ids and the model {rows:,}",
            "give the tokenizer that belongs to the model",
        )
    else:
        padding = rows - policy.valid_vocab
        words = f"{policy.valid_vocab:,} tokens; {padding:,} rows of padding left out"
        yield Check(name, "pass", words)


def prompts(run: Run) -> Iterator[Check]:
    """Prompts that are left out, and those that stand on both sides."""
    source = run.prompts.source
    too_long, kept = len(source.too_long), len(source.examples)
    name = "length of prompts"
    if too_long:
        yield Check(
            name,
            "warn",
            f"{too_long:,} of {too_long + kept:,} are longer than {source.max_prompt_tokens:,}"
            " tokens and left out",
            "raise data.max_prompt_tokens or lower sampling.max_tokens",
        )
    else:
        yield Check(name, "pass", f"the longest of {kept:,} has {source.longest:,} tokens")
    asked = {_question(e) for e in source.examples}
    for split, examples in run.held_out.items():
        both = sum(_question(e) in asked for e in examples)
        name = f"training and {split}"
        if not both:
            yield Check(name, "pass", f"no prompt of {len(examples):,} is trained on")
        else:
            yield Check(
                name,
                "fail" if both > 0.5 * len(examples) else "warn",
                f"{both:,} of {len(examples):,} prompts are trained on as well",
                "take another data.eval_source, or drop those rows from the training data",
            )


def _question(example: Example) -> str:
    return " ".join(example.messages[-1]["content"].split())


def agreement(run: Run) -> Iterator[Check]:
    """The sampler's log-probs are the trainer's."""
    learner, (responses, tokens) = run.learner, PROBES
    params = SamplingParams(
        n=1, max_tokens=tokens, temperature=run.sampling.temperature, seed=0, ignore_eos=True
    )
    chosen = [list(ids) for ids in run.prompts.source.token_ids[:responses]]
    chosen = (chosen * responses)[:responses]
    keys = [PromptKey(i) for i in range(responses)]
    with gathered(learner.policy, keep=learner.keep_gathered):
        groups = shrinking(
            run.sampler,
            learner.world,
            lambda: run.sampler.generate(chosen, params, prompt_keys=keys, stream="baseline"),
            run.notes.append,
        )
        completions = [c for group in groups for c in group]
        name, way_out = "sampler and trainer", "report it, with fastrl doctor's output"
        if any(not c.is_complete for c in completions):
            yield Check(name, "fail", "the model gives no finite number", "give another model")
            return
        device = next(learner.policy.parameters()).device
        sequences = {
            i: (p, c.token_ids) for i, (p, c) in enumerate(zip(chosen, completions, strict=True))
        }
        (batch,) = pack(sequences, {i: i for i in sequences}, max_tokens=2**31, device=device)
        logprobs, _ = score(learner.policy, batch, run.sampling.temperature)
    sampled = np.concatenate([completions[i].logprobs for i in batch.sequences])
    gaps = np.abs(sampled - logprobs.double().cpu().numpy())
    dtype = learner.policy.head_weight.dtype
    close, far = CLOSE.get(dtype, CLOSE_NARROW)
    gap, which = (gaps.max(), "largest") if dtype in CLOSE else (gaps.mean(), "mean")
    status: Status = "pass" if gap <= close else "warn" if gap <= far else "fail"
    found = f"{which} difference of {len(gaps)} log-probs: {gap:.1e} nats"
    yield Check(name, status, found, "" if status == "pass" else way_out)


def room(run: Run) -> Iterator[Check]:
    """Memory and disk."""
    device = run.learner.optimizer.device
    there = available_bytes(device, sharers=run.learner.world.size)
    of = "" if there is None else f" of {gigabytes(there)} GB"
    yield Check("memory", "pass", f"at most {gigabytes(run.memory.peak)} GB{of}")
    config, steps = run.config, run.config.train.max_steps
    each = checkpoint_bytes(run)
    saved = 1 + (steps - 1) // config.checkpoint.every if config.checkpoint.every else 1
    last, best = config.checkpoint.keep_last, config.checkpoint.keep_best
    kept = (min(saved, last + best) if last else saved) + 1
    responses = config.sampling.prompts_per_step * config.sampling.responses_per_prompt
    logs = steps * responses * config.sampling.max_tokens * 12  # id, log-prob and text of a token
    needed = kept * each + logs
    folder = Path(config.train.output_dir or "runs").absolute()
    folder = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    found = (
        f"{_size(needed)} for {kept - 1} checkpoints of {_size(each)}, one more while it is made,"
        f" and completions; {_size(free)} are free in {folder}"
    )
    status: Status = "fail" if free < 2 * each else "warn" if free < needed else "pass"
    way_out = "make room, or set checkpoint.keep_last, or give another --output-dir"
    yield Check("disk", status, found, "" if status == "pass" else way_out)


def _size(count: int) -> str:
    return f"{gigabytes(count)} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def checkpoint_bytes(run: Run) -> int:
    """Of weights and the optimiser's state."""
    total = 0
    for p in run.learner.policy.parameters():
        wide = max(4, p.element_size())
        masters = wide if p.element_size() < wide else 0
        total += p.numel() * (p.element_size() + 2 * wide + masters)
    return total


def start(run: Run) -> Iterator[Check]:
    """What the untrained model makes of some training prompts."""
    sampling, source = run.sampling, run.prompts.source
    size = min(PROMPTS, run.config.sampling.prompts_per_step, len(source.examples))
    chosen = [
        Prompt(e.id, 0, e.messages, ids, e.answer, e.columns)
        for e, ids in zip(source.examples[:size], source.token_ids[:size], strict=True)
    ]

    def sample() -> tuple[list[list[Completion]], list[list[Verdict]]]:
        with BackgroundGrader(
            run.tokenizer, [p.answer for p in chosen], run.config.reward.mode
        ) as grader:
            with gathered(run.learner.policy, keep=run.learner.keep_gathered):
                groups = run.sampler.generate(
                    [p.token_ids for p in chosen],
                    replace(sampling, seed=run.config.train.seed),
                    prompt_keys=[PromptKey(p.id) for p in chosen],
                    stream="baseline",
                    on_event=grader.add,
                )
                run.sampler.release()
            return groups, grader.finish(groups)

    groups, verdicts = shrinking(run.sampler, run.learner.world, sample, run.notes.append)
    scored = score_groups(run, chosen, groups, verdicts)
    found = task_metrics(scored)
    ends = [c.finish_reason for group in groups for c in group]
    accuracy = found["task_accuracy"]
    flat = sum(not has_signal(group) for group in scored) / len(scored)
    words = (
        f"accuracy {'unknown' if accuracy is None else f'{accuracy:.1%}'} over {size} prompts x"
        f" {sampling.n}, {flat:.0%} of the groups without signal"
    )
    warned = alerts(
        [
            {
                **found,
                "objective": run.objective.name,
                "truncated_share": ends.count("length") / len(ends),
                "clip_share": None,
                "reward_group_std": None,
            }
        ]
    )
    name = "step 0"
    if not warned:
        yield Check(name, "pass", words)
    for text in warned:
        what, _, way_out = text.partition("; ")
        yield Check(name, "warn", f"{words}; {what}", way_out)


AUDITS: tuple[Callable[[Run], Iterator[Check]], ...] = (
    golds,
    template,
    vocabulary,
    prompts,
    agreement,
    room,
    start,
)
