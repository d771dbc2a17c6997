"""A study's report in a real browser: all of it is drawn, its switches work, nothing is fetched."""

import json

import pytest
from synthetic_study import make_study
from test_report import HOSTILE, SETTINGS

from fastrl.report import write_report
from fastrl.study.analysis import analyse


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    plan = make_study(directory, SETTINGS, HOSTILE)
    (directory / "study.json").write_text(json.dumps(analyse(plan, directory)))
    write_report([directory], directory / "report.html")
    return directory / "report.html"


@pytest.fixture
def browser(chromium, report):
    chromium.open(report.as_uri())
    assert chromium.do("document.documentElement.dataset.ready") == "true", chromium.problems
    yield chromium
    chromium.frames()
    assert chromium.problems == []
    assert set(chromium.requests) == {report.as_uri()}


def count(browser, selector):
    return browser.do(f"document.querySelectorAll({json.dumps(selector)}).length")


def test_every_plot_is_drawn(browser):
    plots = count(browser, ".plot")
    assert plots > 30
    empty = browser.do("""[...document.querySelectorAll(".plot")].filter((plot) => {
      plot.scrollIntoView();
      const canvas = plot.querySelector("canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return !data.some((value) => value);
    }).length""")
    assert empty == 0
    assert count(browser, "img") == 0  # what the responses say is text


def test_an_arm_is_switched_off_everywhere(browser):
    def rows():
        return browser.do("""[...document.querySelectorAll("tbody tr")].filter((row) =>
          row.offsetParent && row.innerText.includes("tilted")).length""")

    assert rows() > 0
    browser.do("""[...document.querySelectorAll(".groups button")]
      .find((b) => b.innerText.includes("tilted")).click()""")
    browser.frames()
    assert rows() == 0


def test_responses_are_found_by_their_words(browser):
    def shown():
        return browser.do("""[...document.querySelectorAll("p, output, div")]
          .map((e) => e.innerText).find((t) => /^\\d+ of \\d+ prompts match/.test(t))""")

    assert shown().startswith("4 of 4")
    browser.do("""(() => { const field = document.querySelector("input");
      field.value = "no such words"; field.dispatchEvent(new Event("input")); })()""")
    browser.frames()
    assert shown().startswith("0 of 4")


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_it_does_not_scroll_sideways(chromium, report, width):
    chromium.open(report.as_uri(), width=width, height=800, phone=width < 500)
    assert chromium.do("document.documentElement.scrollWidth") <= width
    assert chromium.problems == []
