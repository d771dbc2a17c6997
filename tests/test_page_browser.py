"""A page in a real browser: what is drawn, what the controls do, and that nothing is fetched."""

import json

import pytest

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

HOSTILE = "</script><img src=x onerror=document.title='owned'><b>bold</b>"
STEPS = list(range(101))
GROUPS = {"base": "Base", "task": "Task reward"}
FALL, RISE = [0.9 - s / 250 for s in STEPS], [0.2 + s / 200 for s in STEPS]
BASE_SERIES = Series(
    "base", STEPS, FALL, [y - 0.05 for y in FALL], [y + 0.05 for y in FALL], group="base"
)
PLOTS = [
    Plot(
        "curves",
        "step",
        "share right",
        [BASE_SERIES, Series("task", STEPS, RISE, group="task")],
        y_percent=True,
        reference_lines=[("chance", 0.25)],
    ),
    Plot(
        "cloud",
        "predicted",
        "observed",
        [
            Series(
                "b", [0.2, 0.5], [0.3, 0.5], [0.2, 0.4], [0.4, 0.6], "points", "base",
                ["one", HOSTILE],
            ),
            Series("t", [0.8], [0.7], mark="points", group="task", labels=["three"]),
        ],
        diagonal=True,
    ),
    Plot(
        "categories",
        "task",
        "share",
        [
            Series("b", [0, 1], [0.3, 0.4], mark="points", group="base"),
            Series("t", [0, 1], [0.6, 0.7], mark="points", group="task"),
        ],
        x_ticks={0: "letter counting", 1: "greatest common divisor"},
    ),
    Plot(
        "powers", "k", "pass@k", [Series("p", [1, 2, 4, 8, 0], [0.1, 0.2, 0.4, 0.6, 0.7])],
        log_x=True,
    ),
    Plot("empty", "x", "y", [Series("nothing", [1, 2], [None, float("nan")])]),
]  # fmt: skip


def samples():
    """30 prompts; "base" is right at the even ones, "task" at multiples of three."""
    return [
        SamplePrompt(
            f"prompt number {i}",
            str(i),
            ["even" if i % 2 == 0 else "odd"],
            [
                SampleResponse("Base", HOSTILE, str(i), i % 2 == 0, "equal", "", "base"),
                SampleResponse("Task", f"answer {i}", None, i % 3 == 0, "none", "", "task"),
            ],
        )
        for i in range(30)
    ]


PAGE = Page(
    f"Report {HOSTILE}",
    "A subtitle",
    [
        Section(
            "Summary", [Text(f"One.\n\nTwo {HOSTILE}"), Figures([("label", "48.1 %", "note")])]
        ),
        Section("Claims", [Verdict("It rises", w, "1", "2", "run it") for w in (
            "supported", "contradicted", "undecided", "not run")]),
        Section("Plots", PLOTS),
        Section("Tables", [Table(
            "runs",
            ["name", "value", "interval", *(f"a wide column {i}" for i in range(12))],
            [[HOSTILE, 2.5, "9.5 [9, 10]", *["text that is long"] * 12],
             ["b", None, "10.5 [10, 11]", *["text"] * 12],
             ["c", 10.25, "-1.0 [-2, 0]", *["text"] * 12]],
            row_groups=["base", "task", ""],
        )]),
        Section("Samples", [Samples("completions", samples())]),
        Section("Again", [Code("command", "fastrl train --seed 1 " * 20, "sh")]),
    ],
    GROUPS,
    "footer",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(PAGE), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def browser(chromium, address):
    """A browser that shows the page; at the end, nothing was complained of and nothing fetched."""
    chromium.prefer("light")
    chromium.open(address)
    assert chromium.do("document.documentElement.dataset.ready") == "true", chromium.problems
    yield chromium
    chromium.frames()
    assert chromium.problems == []
    assert set(chromium.requests) == {address}
    assert chromium.do("document.title") == PAGE.title


def plot(number):
    return f"document.querySelectorAll('.plot')[{number}]"


def over(browser, number):
    """The rectangle of a plot between its axes, in the window: x, y, width, height."""
    browser.do(f"{plot(number)}.scrollIntoView({{block: 'center'}})")
    browser.frames()
    return browser.do(
        f"(() => {{ const r = {plot(number)}.querySelector('.u-over').getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height]; })()"
    )


def view(browser, number, axis="x"):
    return [float(v) for v in browser.do(f"{plot(number)}.dataset.{axis}").split()]


def coloured(browser, number, series, share=1.0):
    """How many pixels of a plot's canvas have the colour of the page's n-th look.

    `share` is how much of the colour they have, and of the canvas, which is clear, not.
    """
    return browser.do(f"""(() => {{
      const source = {plot(number)}.querySelector("canvas");
      const canvas = new OffscreenCanvas(source.width, source.height);
      const context = canvas.getContext("2d", {{ willReadFrequently: true }});
      context.drawImage(source, 0, 0);
      const hex = getComputedStyle(document.documentElement)
        .getPropertyValue("--series-{series}").trim();
      const want = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
      const {{ data }} = context.getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let i = 0; i < data.length; i += 4) {{
        count += Math.abs(data[i + 3] / 255 - {share}) < 0.02 &&
          want.every((c, k) => Math.abs(c - data[i + k]) < 12);
      }}
      return count;
    }})()""")


def click(browser, script):
    browser.do(f"{script}.click()")
    browser.frames()


def switch(browser, label):
    click(
        browser,
        f"[...document.querySelectorAll('.groups button')].find((b) => b.innerText === '{label}')",
    )


def texts(browser, selector):
    return browser.do(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText.trim())"
    )


def test_every_plot_is_drawn_in_its_colours(browser):
    for number in (0, 1, 2):
        assert coloured(browser, number, 0) > 5 and coloured(browser, number, 1) > 5, number
    assert coloured(browser, 3, 2) > 20
    assert "nothing to draw" in browser.do(f"{plot(4)}.innerText")
    assert "1 point has no place" in browser.do(f"{plot(3)}.innerText")


def test_hovering_gives_all_values_at_an_x_with_their_intervals(browser):
    x, y, width, height = over(browser, 0)
    low, high = view(browser, 0)
    browser.move(x + width * (50 - low) / (high - low), y + height / 2)
    tip = browser.do(f"{plot(0)}.querySelector('.tip').innerText")
    assert "step 50" in tip and "base\t70 % [65, 75]" in tip and "task\t45 %" in tip
    assert len(texts(browser, ".dot")) == 2
    browser.move(5, 5)
    assert browser.do(f"{plot(0)}.querySelector('.tip').hidden") and not texts(browser, ".dot")


def test_hovering_over_points_gives_the_nearest_with_its_label(browser):
    x, y, width, height = over(browser, 1)
    (x0, x1), (y0, y1) = view(browser, 1), view(browser, 1, "y")
    px, py = x + width * (0.5 - x0) / (x1 - x0), y + height * (1 - (0.5 - y0) / (y1 - y0))
    browser.move(px + 6, py - 5)
    tip = browser.do(f"{plot(1)}.querySelector('.tip').innerText")
    assert HOSTILE in tip and "0.5 [0.4, 0.6]" in tip and "three" not in tip


def test_hovering_over_a_category_gives_every_series(browser):
    x, y, width, height = over(browser, 2)
    browser.move(x + width * 0.75, y + 10)
    tip = browser.do(f"{plot(2)}.querySelector('.tip').innerText")
    assert "greatest common divisor" in tip and "0.4" in tip and "0.7" in tip


def test_dragging_zooms_and_a_double_click_or_the_button_resets(browser):
    x, y, width, height = over(browser, 0)
    whole = view(browser, 0), view(browser, 0, "y")
    for reset in (
        lambda: browser.double_click(x + width / 2, y + height / 2),
        lambda: click(browser, f"{plot(0)}.querySelector('.reset')"),
    ):
        browser.drag(x + width * 0.25, y + height * 0.2, x + width * 0.5, y + height * 0.7)
        (x0, x1), (y0, y1) = whole
        assert view(browser, 0) == pytest.approx(
            [x0 + (x1 - x0) / 4, x0 + (x1 - x0) / 2], abs=(x1 - x0) / 100
        )
        assert view(browser, 0, "y") == pytest.approx(
            [y1 - (y1 - y0) * 0.7, y1 - (y1 - y0) * 0.2], abs=(y1 - y0) / 100
        )
        assert not browser.do(f"{plot(0)}.querySelector('.reset').hidden")
        reset()
        assert (view(browser, 0), view(browser, 0, "y")) == whole
        assert browser.do(f"{plot(0)}.querySelector('.reset').hidden")


def test_only_what_is_in_view_is_read(browser):
    x, y, width, height = over(browser, 0)
    low, high = view(browser, 0)
    start, end = (x + width * (step - low) / (high - low) for step in (40.3, 53.7))
    browser.drag(start, y + height * 0.1, end, y + height * 0.9)
    browser.move(x + 2, y + height / 2)
    assert "step 41" in browser.do(f"{plot(0)}.querySelector('.tip').innerText")


def test_the_keys_read_and_zoom(browser):
    over(browser, 0)
    browser.do(f"{plot(0)}.querySelector('.plot-area').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    spoken = browser.do(f"{plot(0)}.querySelector('[aria-live]').textContent")
    assert spoken == "1: base 89.6 % [84.6, 94.6]; task 20.5 %"
    whole = view(browser, 0)
    browser.key("+")
    assert view(browser, 0)[1] - view(browser, 0)[0] < 0.7 * (whole[1] - whole[0])
    browser.key("Escape")
    assert view(browser, 0) == whole


def test_a_switch_hides_its_group_everywhere(browser):
    assert [browser.do(f"{plot(n)}.dataset.shown") for n in range(3)] == ["2", "2", "2"]
    switch(browser, "Task reward")
    assert [browser.do(f"{plot(n)}.dataset.shown") for n in range(3)] == ["1", "1", "1"]
    for number in range(3):
        assert coloured(browser, number, 0) > 5 and coloured(browser, number, 1) == 0
    assert len(texts(browser, "#tables tbody tr")) == 2
    assert set(texts(browser, ".policy h4")) == {"Base"}
    assert (
        browser.do("document.querySelector('.groups [aria-pressed=false]').innerText")
        == "Task reward"
    )
    switch(browser, "Task reward")
    assert coloured(browser, 0, 1) > 20 and len(texts(browser, "#tables tbody tr")) == 3


def test_the_legend_hides_one_series_and_the_intervals(browser):
    barred, banded = coloured(browser, 1, 0), coloured(browser, 0, 0, 0.16)
    assert banded > 1000
    for number in (0, 1):
        click(browser, f"{plot(number)}.querySelector('.legend .plain')")
    assert 0 < coloured(browser, 1, 0) < barred and coloured(browser, 0, 0, 0.16) < banded / 10
    click(browser, f"{plot(0)}.querySelector('.legend button')")
    assert coloured(browser, 0, 0) == 0 < coloured(browser, 0, 1)
    assert browser.do(f"{plot(1)}.dataset.shown") == "2"


def test_the_numbers_of_a_plot_are_a_table_that_is_made_when_asked_for(browser):
    assert browser.do(f"{plot(0)}.querySelectorAll('table tbody tr').length") == 0
    click(browser, f"{plot(0)}.querySelector('summary')")
    browser.wait(f"{plot(0)}.querySelectorAll('.numbers tbody tr').length", 200)
    click(browser, f"{plot(0)}.querySelector('.numbers .more')")
    assert browser.do(f"{plot(0)}.querySelectorAll('.numbers tbody tr').length") == 202


def test_tables_sort_by_a_click_on_a_heading(browser):
    def column(number):
        return texts(browser, f"#tables tbody td:nth-child({number})")

    def heading(number):
        click(browser, f"document.querySelectorAll('#tables th button')[{number - 1}]")

    heading(2)
    assert column(2) == ["10.25", "2.50", "\u2013"]  # what has no value comes last
    heading(2)
    assert column(2) == ["2.50", "10.25", "\u2013"]
    assert browser.do("document.querySelectorAll('#tables [aria-sort=ascending]').length") == 1
    heading(3)
    assert column(3) == ["10.5 [10, 11]", "9.5 [9, 10]", "-1.0 [-2, 0]"]
    heading(1)
    assert column(1) == [HOSTILE, "b", "c"]


def test_samples_are_filtered_and_counted(browser):
    def choose(label, **values):
        [(kind, value)] = values.items()
        browser.do(
            "(() => { const field = [...document.querySelectorAll('.filters label')].find((l) => "
            f"l.innerText.startsWith('{label}')).querySelector('input, select'); "
            f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('{kind}')); }})()"
        )

    def shown():
        return texts(browser, ".count")[0], len(texts(browser, ".sample"))

    assert shown() == ("30 of 30 prompts match; the first 20 are shown", 20)
    click(browser, "document.querySelector('.samples > .more')")
    assert shown() == ("30 of 30 prompts match", 30)
    choose("Verdicts", change="right")
    assert shown() == ("5 of 30 prompts match", 5)
    choose("Verdicts", change="wrong")
    assert shown() == ("10 of 30 prompts match", 10)
    choose("Verdicts", change="differ")
    assert shown() == ("15 of 30 prompts match", 15)
    choose("Tag", change="1")
    assert shown() == ("10 of 30 prompts match", 10)
    choose("Verdicts", change="all")
    choose("Search", input="NUMBER 2")
    assert shown() == ("6 of 30 prompts match", 6)  # 2, 20, 22, .. 28
    switch(browser, "Base")
    choose("Tag", change="")
    choose("Search", input="")
    choose("Verdicts", change="right")  # of the policies that are shown
    assert shown() == ("10 of 30 prompts match", 10)
    choose("Search", input="no such text")
    assert shown() == ("0 of 30 prompts match", 0)


def test_a_verdict_is_a_word_and_not_a_colour_alone(browser):
    words = texts(browser, ".verdict .word")
    assert [w.split("\n")[-1] for w in words] == [
        "supported",
        "contradicted",
        "undecided",
        "not run",
    ]
    assert texts(browser, ".sample .mark")[:4] == [
        "\u2713 right", "\u2713 right", "\u2717 wrong", "\u2717 wrong",
    ]  # fmt: skip


def test_the_theme_follows_the_system_until_it_is_chosen(browser):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.do(ground)
    browser.prefer("dark")
    dark = browser.do(ground)
    assert dark != light and coloured(browser, 0, 0) > 20
    click(browser, "document.querySelector('.theme')")
    assert browser.do(ground) == light and coloured(browser, 0, 0) > 20
    browser.prefer("light")
    browser.prefer("dark")
    assert browser.do(ground) == light


def test_hostile_texts_stay_texts(browser):
    assert browser.do("document.querySelectorAll('img, b, body > script[src]').length") == 0
    assert browser.do("document.querySelector('h1').textContent") == PAGE.title
    assert HOSTILE in texts(browser, "#tables td") and HOSTILE in texts(browser, ".response pre")


def test_headings_are_in_order_and_controls_have_names(browser):
    levels = browser.do("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    nameless = browser.do(
        "[...document.querySelectorAll('button')].filter((b) => !b.hidden && "
        "!b.textContent.trim() && !b.ariaLabel).length"
    )
    assert nameless == 0
    links = browser.do("[...document.querySelectorAll('.contents a')].map((a) => a.hash.slice(1))")
    assert links == ["summary", "claims", "plots", "tables", "samples", "again"]
    assert browser.do(f"{json.dumps(links)}.every((id) => document.getElementById(id))")


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_narrow_page_never_scrolls_sideways(browser, address, width):
    browser.open(address, width, 800, phone=True)
    assert browser.do("document.documentElement.scrollWidth") == width
    browser.do("document.querySelectorAll('.numbers').forEach((d) => { d.open = true; })")
    browser.frames()
    assert browser.do("document.documentElement.scrollWidth") == width
    assert browser.do("document.querySelector('#tables .scroll').scrollWidth") > width
    assert not browser.do("document.querySelector('.contents').open")


def test_two_fingers_zoom_and_two_taps_reset(browser, address):
    browser.open(address, 390, 844, phone=True)
    x, y, width, height = over(browser, 0)
    whole = view(browser, 0)
    middle = y + height / 2
    browser.touch("touchStart", (x + width * 0.4, middle), (x + width * 0.6, middle))
    browser.touch("touchMove", (x + width * 0.2, middle), (x + width * 0.8, middle))
    browser.touch("touchEnd")
    browser.frames()
    third = (whole[1] - whole[0]) / 3
    centre = sum(whole) / 2
    assert view(browser, 0) == pytest.approx([centre - third / 2, centre + third / 2], rel=0.05)
    # events that no browser makes a double click of, as some do of two taps
    browser.do(f"""(() => {{
      const target = {plot(0)}.querySelector(".u-over");
      const touch = new Touch({{ identifier: 1, target, clientX: {x + 20}, clientY: {middle} }});
      for (let i = 0; i < 2; i++) {{
        target.dispatchEvent(new TouchEvent("touchstart", {{ touches: [touch] }}));
        target.dispatchEvent(new TouchEvent("touchend", {{ touches: [] }}));
      }}
    }})()""")
    browser.frames()
    assert view(browser, 0) == whole


def test_a_plot_follows_the_width_of_its_place(browser):
    wide = browser.do(f"{plot(0)}.querySelector('canvas').clientWidth")
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=420, height=800, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    browser.wait(f"{plot(0)}.querySelector('canvas').clientWidth < {wide}", True)
    assert browser.do("document.documentElement.scrollWidth") == 420


def test_a_printed_page_is_light_and_whole(browser):
    browser.prefer("dark")
    browser.do(
        "addEventListener('beforeprint', () => { window.onPaper = [document.documentElement"
        ".dataset.theme, document.querySelector('.plot canvas').clientWidth]; })"
    )
    printed = browser.send("Page.printToPDF")["data"]
    theme, width = browser.do("window.onPaper")
    assert len(printed) > 10_000 and theme == "light" and width <= 660
    assert browser.do("document.documentElement.dataset.theme") == "dark"


def test_thousands_of_points_are_no_burden(chromium, tmp_path):
    count = 5000
    ys = [(i * 7919) % 1000 / 1000 for i in range(count)]
    xs = [i / count for i in range(count)]
    series = [Series(f"s{k}", xs, ys, mark="points" if k % 2 else "line") for k in range(4)]
    path = tmp_path / "many.html"
    path.write_text(
        render(Page("many", "", [Section("s", [Plot("p", "x", "y", series)] * 6)])),
        encoding="utf-8",
    )
    chromium.open(path.as_uri())
    assert chromium.do("document.documentElement.dataset.ready") == "true", chromium.problems
    took_ms = chromium.do(
        "(() => { const t = performance.now(); "
        "document.querySelectorAll('.legend button')[3].click(); return performance.now() - t; })()"
    )
    assert took_ms < 3000 and coloured(chromium, 0, 2) > 1000


def test_without_scripts_the_page_says_what_it_needs(chromium, address):
    chromium.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.send("Page.navigate", url=address)
        chromium.wait("document.body?.innerText.includes('Please allow JavaScript')", True)
    finally:
        chromium.send("Emulation.setScriptExecutionDisabled", value=False)
