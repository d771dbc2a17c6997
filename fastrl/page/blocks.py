"""What a page is made of, before any of it is HTML.

Every text is data: it may be a model's output, and nothing in it is ever read as markup. A `group`
names a switch of `Page.groups`, which hides everything of that group on the whole page; "" is
never hidden. None, NaN and the infinities are all "no value".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Mark: TypeAlias = Literal["line", "points", "dashed"]
VerdictWord: TypeAlias = Literal["supported", "contradicted", "undecided", "not run"]
Number: TypeAlias = float | None
Cell: TypeAlias = str | float | None


@dataclass(frozen=True)
class Series:
    """One curve or one set of points of a plot.

    `low` and `high` are the ends of an interval at each point: a band around a line, error bars
    for points. A point without y breaks a line. `labels` are shown when a point is hovered over.
    Series of one group, or of one name where there is no group, have one colour in every plot.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    mark: Mark = "line"
    group: str = ""
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        count = len(self.x)
        if len(self.y) != count:
            raise ValueError(f"series {self.name!r} has {count} x but {len(self.y)} y")
        for name, values in (("low", self.low), ("high", self.high), ("labels", self.labels)):
            if len(values) not in (0, count):
                raise ValueError(
                    f"series {self.name!r} has {count} points but {len(values)} in {name}; "
                    f"give one a point, or none"
                )
        if len(self.low) != len(self.high):
            raise ValueError(
                f"series {self.name!r} has one end of its intervals; give both or none"
            )


@dataclass(frozen=True)
class Plot:
    """Series over one pair of axes.

    `x_ticks` names places on the x axis, for categories; `reference_lines` are horizontal, each a
    name and a y; `diagonal` draws the line y = x. A None in `y_range` is chosen from the data.
    Percent axes take shares: 0.25 reads 25 %.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    y_percent: bool = False
    y_range: tuple[Number, Number] = (None, None)
    x_ticks: Mapping[float, str] | None = None
    note: str = ""
    reference_lines: Sequence[tuple[str, float]] = ()
    diagonal: bool = False
    x_percent: bool = False

    def __post_init__(self) -> None:
        if self.log_x and self.x_ticks is not None:
            raise ValueError(f"plot {self.title!r} has both log_x and x_ticks; choose one")


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers, sortable by column; `row_groups` has one group a row, or none."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    row_groups: Sequence[str] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r} has {len(self.columns)} columns, "
                    f"but row {i} has {len(row)} cells"
                )
        if len(self.row_groups) not in (0, len(self.rows)):
            raise ValueError(
                f"table {self.title!r} has {len(self.rows)} rows but {len(self.row_groups)} "
                f"row_groups; give one a row, or none"
            )


@dataclass(frozen=True)
class Figures:
    """A row of headline figures, each a label, a value and a note."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class SampleResponse:
    """A policy's completion of a prompt, with what the grader took from it and what it ruled.

    `correct` is None where nothing was graded, `answer` where no answer was found; `reason` says
    why.
    """

    policy: str
    text: str
    answer: str | None
    correct: bool | None
    reason: str
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt, its right answer, and what each policy made of it."""

    prompt: str
    gold: str
    tags: Sequence[str]
    responses: Sequence[SampleResponse]


@dataclass(frozen=True)
class Samples:
    """Sample completions side by side, a column a policy, with filters."""

    title: str
    prompts: Sequence[SamplePrompt]


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font, with a button that copies it."""

    title: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraphs; an empty line parts two."""

    paragraphs: str


@dataclass(frozen=True)
class Verdict:
    """A card that says whether a claim stood: its figures, its threshold and its command."""

    claim: str
    verdict: VerdictWord
    figures: str
    threshold: str
    command: str
    note: str = ""


Block: TypeAlias = Plot | Table | Figures | Samples | Code | Text | Verdict


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; `anchor` names it in links, and comes from the title if empty."""

    title: str
    blocks: Sequence[Block]
    anchor: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report. `groups` gives the label of each group's switch, in their order."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    groups: Mapping[str, str] = field(default_factory=dict)
    footer: str = ""
