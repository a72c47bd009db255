"""Charts are well-formed, inside their frame, and draw what was measured."""

import re
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from test_diagnosis import history
from test_figures import CONFIDENCE, RIGHT, sure

from packshot.chart import HEIGHT, WIDTH
from trainer.abstaining import choose_threshold
from trainer.charts import coverage_charts, reliability_charts, training_charts
from trainer.coverage import curve
from trainer.reliability import reliability


def drawn(html: str) -> list[ElementTree.Element]:
    """The charts, each with every point of its lines inside the frame."""
    charts = ElementTree.fromstring(html).findall("svg")
    for chart in charts:
        for line in [*chart.iter("polyline"), *chart.iter("polygon")]:
            for x, y in re.findall(r"(\S+),(\S+)", line.get("points")):
                assert 0 <= float(x) <= WIDTH
                assert 0 <= float(y) <= HEIGHT
    return charts


def texts(chart: ElementTree.Element) -> list[str]:
    return [text.text for text in chart.iter("text")]


def test_the_course_has_a_line_for_each_series_and_a_mark_for_each_size():
    stages = (*history(2.0, 1.5, size=64), *history(1.0, None, size=128))
    loss, scores = drawn(training_charts(stages))
    assert {"loss", "training", "validation", "64 px", "128 px"} <= set(texts(loss))
    training, validation = loss.iter("polyline")
    assert (len(training.get("points").split()), len(validation.get("points").split())) == (3, 4)
    assert "macro-F1" in texts(scores)


def test_the_learning_rate_is_drawn_where_the_log_has_it():
    rated = [msgspec.structs.replace(one, learning_rate=4.7e-4 / 1.05) for one in history(2.0, 1.0)]
    *_, rate = drawn(training_charts(rated))
    assert {"learning rate", "4.7e-4", "0"} <= set(texts(rate))


@pytest.mark.parametrize("losses", [(), (1.5,)])
def test_a_course_of_one_evaluation_or_none_is_drawn(losses):
    loss, _ = drawn(training_charts(history(*losses)))
    assert len(list(loss.iter("circle"))) == 2 * len(losses)


def test_a_bar_is_as_high_as_its_answers_are_right():
    measured = reliability(np.array([0.95, 0.95, 0.55]), np.array([True, False, True]))
    before, _ = drawn(reliability_charts(measured, measured))
    low, high = (float(bar.get("height")) for bar in before.iter("rect"))
    assert high == pytest.approx(low / 2, abs=0.1)


@pytest.mark.parametrize("right", [RIGHT, ~RIGHT, np.full(100, True), np.full(100, False)])
@pytest.mark.parametrize("target", [None, 0.5, 0.9])
def test_coverage_is_drawn_whatever_the_answers_are_worth(right, target):
    choice = None
    if target is not None:
        choice = choose_threshold(target, sure(CONFIDENCE, right), sure(CONFIDENCE, right, "test"))
    precision, answered = drawn(coverage_charts(curve(CONFIDENCE, right), choice))
    dots = [len(list(chart.iter("circle"))) for chart in (precision, answered)]
    assert dots == ([1, 1] if choice is not None and choice.reached else [0, 0])
