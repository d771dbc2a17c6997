"""study.json as sections of a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import tomli_w

from fastrl.page import (
    Block,
    Code,
    Figures,
    Plot,
    SamplePrompt,
    SampleResponse,
    Samples,
    Section,
    Series,
    Table,
    Text,
    Verdict,
)
from fastrl.study.page_questions import (
    by_difficulty,
    more_samples,
    new_skills,
    other_words,
    perturbed,
    predictions,
    sampling_alone,
)
from fastrl.study.page_rows import BASE, Study, arms_of, of_model, plain_models, way_of_sampling
from fastrl.study.plan import ARMS, StudySettings
from fastrl.study.tables import percent, points, share

COMMON = "common.toml"
CURVES = (
    ("task_accuracy", "Accuracy of the rollouts", "share of responses", True),
    ("kl", "KL to the base", "nats a response", False),
    ("length_mean", "Response length", "tokens", False),
    ("entropy", "Entropy", "nats a token", False),
    ("reward_group_std", "Spread of the reward in a group", "0 at the optimum", False),
    ("reward_mean", "Reward", "mean", False),
)


def groups(study: Study) -> dict[str, str]:
    """The switches of the page: the base, each arm, and what sampling alone gives."""
    found = {BASE: "base"} | {row["arm"]: row["arm"] for row in study["arms"]}
    kinds = [way_of_sampling(row) for row in study["baselines"]]
    return found | {kind: kind for kind in kinds}


def sections(study: Study) -> list[Section]:
    """What a study found, in the order of the questions that it asks."""
    command = _study_command(study)
    found = [
        Section("What came out", list(_summary(study)), "summary"),
        Section("The four claims", list(claim_cards(study["claims"], command)), "claims"),
        Section("Predicted from the base alone", list(predictions(study)), "predictions"),
        Section("Training", list(_training(study)), "training"),
        Section("More samples a prompt", list(more_samples(study)), "samples-a-prompt"),
        Section("What sampling alone gives", list(sampling_alone(study)), "baselines"),
        Section("Accuracy bought with KL", list(_frontier(study)), "frontier"),
        Section("By difficulty", list(by_difficulty(study)), "difficulty"),
        Section("New skills", list(new_skills(study)), "skills"),
        Section("The same question in other words", list(other_words(study)), "wording"),
        Section("A perturbed reference", list(perturbed(study)), "perturbed"),
        Section("Responses side by side", list(_texts(study)), "responses"),
        Section("To repeat it", list(_repeat(study)), "repeat"),
    ]
    return [section for section in found if section.blocks]


def _summary(study: Study) -> Iterator[Block]:
    seeds = study["settings"]["seeds"]
    cells = study["cells"]
    if cells["measured"] < cells["planned"]:
        yield Text(f"{cells['measured']} of {cells['planned']} cells are measured so far.")
    for model in plain_models(study):
        base = study["models"][model]
        items = [("base", percent(base["accuracy"]) + " %", f"{base['prompts']} test prompts")]
        items += [
            (row["arm"], percent(row["last"]["accuracy"]) + " %", points(row["last"]["gain"]))
            for row in arms_of(study, model)
        ]
        yield Text(
            f"Accuracy{of_model(study, model)}: one sample a prompt, at the last checkpoint."
        )
        yield Figures(items)
    yield Table(
        "Every arm",
        ("model", "arm", "converges to", "accuracy, %", "gain, points", "best checkpoint, %",
         "greedy, %", "KL, nats", "tokens", "seeds"),
        [row for model in study["models"] for row in _rows(study, model)],
        note=f"Means over {seeds} seeds and the test prompts, with 95 % bootstrap intervals over"
        " both. Best: chosen by accuracy on the validation split, the base among them.",
        row_groups=[
            group
            for model in study["models"]
            for group in (BASE, *(row["arm"] for row in arms_of(study, model)))
        ],
    )  # fmt: skip


def _rows(study: Study, model: str) -> Iterator[list[str | float]]:
    base = study["models"][model]
    yield [
        model, "base", "p", share(base["accuracy"]), "", "", share(base["greedy"]), 0.0,
        round(base["length"]["mean"], 1), 1,
    ]  # fmt: skip
    for row in arms_of(study, model):
        last = row["last"]
        yield [
            model, row["arm"], row["target"], share(last["accuracy"]), points(last["gain"]),
            share(row["best"]["accuracy"]), share(last["greedy"]), round(last["kl"]["mean"], 3),
            round(last["length"]["mean"], 1), len(row["seeds"]),
        ]  # fmt: skip


def _study_command(study: Study) -> str:
    """What makes the same study, where COMMON holds what its arms have in common."""
    words = ["fastrl", "study", COMMON]
    for setting in fields(StudySettings):
        name, value = setting.name, study["settings"][setting.name]
        value = tuple(value) if isinstance(value, list) else value
        if value == setting.default and name != "arms":  # which are others where a grid is given
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, tuple):
            words.append(",".join(str(v).removesuffix(".0") for v in value))
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def claim_cards(claims: Sequence[Mapping[str, Any]], command: str) -> Iterator[Block]:
    """A card for each claim, with its figures and the command that made them."""
    for claim in claims:
        lines = [
            f"{e['model']}: {points(e)} points, {e['what']}"
            f" ({e['verdict']}; {100 * e['detectable']:.1f} could have been detected)"
            for e in claim["evidence"]
        ]
        yield Verdict(
            f"({claim['number']}) {claim['claim']}",
            claim["verdict"],
            "\n".join(lines) or "no figure: the arms that it needs were not run",
            claim["threshold"],
            command,
        )


def _training(study: Study) -> Iterator[Block]:
    if tried := study.get("tuning"):
        yield Table(
            "Learning rates, by accuracy on the validation split",
            ("model", "arm", "learning rate", "accuracy, %", "chosen"),
            [
                [
                    t["model"], t["arm"], t["lr"],
                    None if t["accuracy"] is None else round(100 * t["accuracy"], 1),
                    "yes" if t["chosen"] else "",
                ]
                for t in tried
            ],
            note="One run each with the first seed: every arm had as many trials.",
            row_groups=[t["arm"] for t in tried],
        )  # fmt: skip
    for model in study["models"]:
        arms = arms_of(study, model)
        for key, title, unit, percents in CURVES if arms else ():
            series = [
                Series(
                    row["arm"],
                    row["curves"]["step"],
                    row["curves"][key]["mean"],
                    row["curves"][key]["low"],
                    row["curves"][key]["high"],
                    group=row["arm"],
                )
                for row in arms
                # rewards of two objectives have no common scale
                if key != "reward_mean" or row["kind"] in ("task", "random", "tilted", "null")
            ]
            if series:
                name = f"{title}{of_model(study, model) or (', ' + model if '~' in model else '')}"
                yield Plot(name, "step", unit, series, y_percent=percents)


def _frontier(study: Study) -> Iterator[Block]:
    for model in study["models"]:
        series = [
            Series(
                row["arm"],
                [v["kl"] for v in row["validation"]],
                [v["accuracy"] for v in row["validation"]],
                mark="line",
                group=row["arm"],
                labels=[f"step {v['step']}" for v in row["validation"]],
            )
            for row in arms_of(study, model)
            if row["validation"]
        ]
        if series:
            yield Plot(
                f"Accuracy over KL, {model}",
                "KL to the base, nats a response",
                "accuracy on the validation split",
                series,
                y_percent=True,
                note="From the base at 0 to the last step; means over seeds.",
            )


def _texts(study: Study) -> Iterator[Block]:
    for model in plain_models(study):
        prompts = [
            SamplePrompt(
                row["prompt"],
                row["gold"],
                row["tags"],
                [
                    SampleResponse(
                        policy, r["text"], r["answer"], r["correct"], r["reason"], group=policy
                    )
                    for policy, responses in row["policies"].items()
                    for r in responses[:1]
                ],
            )
            for row in study["texts"]
            if row["model"] == model
        ]
        if prompts:
            yield Samples("The first sample of each policy" + of_model(study, model), prompts)


def _repeat(study: Study) -> Iterator[Block]:
    environment = study["environment"]
    yield Code("The study", _study_command(study), "sh")
    yield Code("Its cells, by hand", "\n".join(study["commands"].values()), "sh")
    yield Code(f"What the arms have in common: {COMMON}", tomli_w.dumps(study["config"]), "toml")
    arms = "\n".join(f"{name:<12} {meaning}" for name, meaning in ARMS.items())
    yield Code("The arms", arms)
    yield Code("Made with", json.dumps(environment, indent=1), "json")
