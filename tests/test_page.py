"""The HTML of a page, without a browser: what is data stays data, and nothing is loaded."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import fastrl.page
from fastrl.page import (
    Code,
    Figures,
    Page,
    Plot,
    SamplePrompt,
    SampleResponse,
    Samples,
    Section,
    Series,
    Table,
    Text,
    Verdict,
    render,
)
from fastrl.page.render import SCRIPTS, STYLES

FOLDER = Path(fastrl.page.__file__).parent
HOSTILE = (
    "</script><img src=x onerror=alert(1)><!-- <script> ]]> & &lt; ' \" ` \\ "
    "\u2028\u2029\x00\ud800\u202e\U0001f600"
)


class Tags(HTMLParser):
    """The tags of a file with their attributes, and the texts of its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.texts.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.lasttag in ("script", "style") and data != "\n":
            tag, attributes, text = self.texts[-1]
            self.texts[-1] = tag, attributes, text + data


def data_of(text):
    [found] = [t for tag, attrs, t in Tags(text).texts if attrs.get("id") == "page-data"]
    return json.loads(found)


def page_of(*blocks, **more):
    return Page("a title", "a subtitle", [Section("a section", blocks)], **more)


def one_of_each(text):
    response = SampleResponse(text, text, text, False, text, text, "g")
    return page_of(
        Plot(
            text, text, text, [Series(text, [1], [2], [1], [3], "points", "g", [text])],
            x_ticks={1: text}, note=text, reference_lines=[(text, 1.5)],
        ),
        Table(text, [text], [[text]], text, ["g"]),
        Figures([(text, text, text)]),
        Samples(text, [SamplePrompt(text, text, [text], [response])]),
        Code(text, text, text),
        Text(text),
        Verdict(text, "undecided", text, text, text, text),
        groups={"g": text},
        footer=text,
    )  # fmt: skip


def test_hostile_texts_are_data_and_only_data():
    page = replace(one_of_each(HOSTILE), title=HOSTILE, subtitle=HOSTILE)
    text, harmless = render(page), render(replace(one_of_each("a"), title="a", subtitle="a"))
    assert [tag for tag, _ in Tags(text).tags] == [tag for tag, _ in Tags(harmless).tags]
    assert "<img" not in text and text.count("</script") == 3 and text.isascii()
    found = json.dumps(data_of(text))
    assert found.count(json.dumps(HOSTILE)) == json.dumps(data_of(harmless)).count('"a"')


def test_no_tag_names_anything_to_load():
    tags = Tags(render(one_of_each(HOSTILE))).tags
    for tag, attributes in tags:
        assert not {"src", "href", "srcset", "style", "action"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes)
    assert {tag for tag, _ in tags} == set(
        ["html", "head", "meta", "title", "style", "body", "noscript", "p", "script"]
    )


def test_the_policy_allows_the_scripts_of_the_file_alone():
    parsed = Tags(render(one_of_each(HOSTILE)))
    [policy] = [a["content"] for _, a in parsed.tags if "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "base-uri", "form-action", "script-src", "style-src"}
    hashes = {"script": [], "style": []}
    for tag, attributes, text in parsed.texts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            hashes[tag].append(f"'sha256-{digest}'")
    assert rules["script-src"].split() == hashes["script"] and len(hashes["script"]) == 2
    assert rules["style-src"].split() == hashes["style"] and len(hashes["style"]) == 1


@pytest.mark.parametrize("name", [*SCRIPTS, *STYLES, "vendor/uPlot.iife.min.js"])
def test_the_sources_neither_load_nor_parse_markup(name):
    source = (FOLDER / name).read_text(encoding="utf-8")
    assert source.isascii()
    for word in (
        *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser"),
        *("fetch(", "XMLHttpRequest", "WebSocket", "EventSource", "sendBeacon", "import("),
        *("eval(", "new Function", "localStorage", "document.cookie", "url(", "@import"),
    ):
        assert word not in source, word
    # the name of a drawing's elements, and where uPlot says it is from: neither is fetched
    known = {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}
    assert set(re.findall(r"https?://[^\s\"')]+", source)) <= known


def test_every_source_is_in_the_page():
    ours = {p.name for p in FOLDER.iterdir() if p.suffix in (".js", ".css")}
    assert ours == {name for name in (*SCRIPTS, *STYLES) if "/" not in name}


def test_the_vendored_files_are_those_that_are_named():
    lines = (FOLDER / "vendor" / "README.md").read_text(encoding="utf-8").splitlines()
    sums = dict(
        re.findall(r"`([^`]+)`", line) for line in lines if re.search("`[0-9a-f]{64}`", line)
    )
    found = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (FOLDER / "vendor").iterdir()
    }
    del found["README.md"]
    assert sums == found and len(found) == 3
    licence = (FOLDER / "vendor" / "LICENSE-uPlot").read_text(encoding="utf-8")
    assert licence in render(page_of())


def test_what_is_no_finite_number_is_no_value():
    values = [1.0, float("nan"), float("inf"), -float("inf"), None, np.float32(0.5), np.int64(3)]
    page = page_of(
        Plot("p", "x", "y", [Series("s", np.arange(7), values, [0.0] * 7, values)]),
        Table("t", ["c"], [[v] for v in values]),
    )
    plot, table = data_of(render(page))["sections"][0]["blocks"]
    wanted = [1, None, None, None, None, 0.5, 3]
    assert plot["series"][0]["y"] == plot["series"][0]["high"] == wanted
    assert plot["series"][0]["x"] == [0, 1, 2, 3, 4, 5, 6]
    assert [cell for [cell] in table["rows"]] == wanted


def test_numbers_are_kept_to_the_last_digit():
    values = [0.1 + 0.2, 1e-300, 1.7976931348623157e308, 2.0**60, -0.0, 123456789.5]
    [plot] = data_of(render(page_of(Plot("p", "x", "y", [Series("s", values, values)]))))[
        "sections"
    ][0]["blocks"]
    assert plot["series"][0]["x"] == values


def test_one_page_is_one_text():
    assert render(one_of_each("a")) == render(one_of_each("a"))
    groups = {"b": "B", "a": "A", "1": "one"}
    assert data_of(render(page_of(groups=groups)))["groups"] == [list(g) for g in groups.items()]


def test_a_page_of_nothing_is_small_and_one_of_much_grows_by_its_numbers():
    assert len(render(Page("", "", []))) < 140_000
    steps = list(range(10_000))
    much = render(page_of(Plot("p", "x", "y", [Series("s", steps, [s / 7 for s in steps])])))
    assert len(much) < 140_000 + 10_000 * 25


def test_anchors_are_plain_and_different():
    titles = ["A b!", "a B", "\u00fc", "", "top", '"><b>', "page data", "a-b-2"]
    page = Page("t", "", [*(Section(t, []) for t in titles), Section("x", [], "Of its own")])
    anchors = [s["anchor"] for s in data_of(render(page))["sections"]]
    assert anchors == [
        *("a-b", "a-b-2", "section-3", "section-4", "top-2", "b", "page-data-2", "a-b-2-2"),
        "of-its-own",
    ]


def test_a_group_without_a_switch_is_refused():
    page = page_of(Table("t", ["c"], [[1]], "", ["sharpn"]), groups={"sharpen": "S", "task": "T"})
    with pytest.raises(ValueError, match="'sharpn'.*'sharpen', 'task'; did you mean 'sharpen'"):
        render(page)
    with pytest.raises(ValueError, match="which are none; add it"):
        render(page_of(Plot("p", "", "", [Series("s", [], [], group="g")])))
    response = SampleResponse("p", "", None, None, "", "", "g")
    with pytest.raises(ValueError, match="'g' is not"):
        render(page_of(Samples("s", [SamplePrompt("", "", [], [response])])))


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'s' has 2 x but 1 y"):
        Series("s", [1, 2], [1])
    with pytest.raises(ValueError, match="2 points but 1 in low"):
        Series("s", [1, 2], [1, 2], [1], [1])
    with pytest.raises(ValueError, match="one end"):
        Series("s", [1], [1], [1])
    with pytest.raises(ValueError, match="in labels"):
        Series("s", [1, 2], [1, 2], labels=["a"])
    with pytest.raises(ValueError, match="2 columns, but row 1 has 1 cells"):
        Table("t", ["a", "b"], [[1, 2], [1]])
    with pytest.raises(ValueError, match="1 rows but 2 row_groups"):
        Table("t", ["a"], [[1]], "", ["g", "g"])
    with pytest.raises(ValueError, match="both log_x and x_ticks"):
        Plot("p", "", "", [], log_x=True, x_ticks={1: "a"})


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def colours_of(scheme):
    source = (FOLDER / "page.css").read_text(encoding="utf-8")
    block = re.findall(r"^:root.*?\{(.*?)^\}", source, re.M | re.S)[scheme == "dark"]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_2(scheme):
    colours = colours_of(scheme)
    for name, colour in colours.items():
        for ground in ("surface", "raised"):
            light, dark = sorted((luminance(colour), luminance(colours[ground])), reverse=True)
            contrast = (light + 0.05) / (dark + 0.05)
            if name.startswith("series"):
                assert contrast >= 3, (name, contrast)  # graphics
            elif name in ("ink", "muted", "accent", "right", "wrong", "open"):
                assert contrast >= 4.5, (name, contrast)  # text
    assert len([name for name in colours if name.startswith("series")]) == 8


# linear RGB as eyes without red, green or blue cones have it: Machado, Oliveira, Fernandes 2009
EYES = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                 [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
# linear RGB to Oklab: https://bottosson.github.io/posts/oklab
TO_CONES = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
TO_OKLAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_colours_of_series_differ_to_every_kind_of_eye(scheme, eyes):
    found = [c for name, c in colours_of(scheme).items() if name.startswith("series")]
    parts = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in found])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(EYES[eyes]), 0, 1)
    places = np.cbrt(seen @ np.transpose(TO_CONES)) @ np.transpose(TO_OKLAB)
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + np.eye(8)
    # 0.02 is just seen side by side; the first four are the groups of most pages
    assert apart[:4, :4].min() > 0.11 and apart.min() > 0.045
