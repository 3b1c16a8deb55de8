"""The frontier names every method beside its points, and names never lie on each other."""

import itertools
import re

import numpy as np
import pytest

from prefopt.evaluation.report.plots import COLORS, _spread, frontier
from tests.support.bare_report import estimate, report
from tests.support.sample_report import CANDIDATES, sample_report


def _heights(drawn):
    return [float(y) for y in re.findall(r'<text [^>]*font-weight="600"[^>]* y="([\d.]+)"', drawn)]


def test_each_size_names_every_method_once_and_apart():
    narrow, wide = frontier(sample_report())
    for drawn, name, font in ((narrow, "narrow", 11), (wide, "wide", 13)):
        assert drawn.startswith(f'<svg class="{name}"')
        titles = re.findall(r"<title>([^<]*)</title>", drawn)
        assert titles == list(CANDIDATES)
        heights = sorted(_heights(drawn))
        assert len(heights) == len(CANDIDATES)
        assert min(b - a for a, b in itertools.pairwise(heights)) >= font


def test_colours_are_the_page_s_own_so_that_dark_pages_have_theirs():
    for drawn in frontier(sample_report()):
        assert not re.search(r"#[0-9a-f]{6}", drawn)
        assert all(color in drawn for color in COLORS.values())


def test_a_name_that_is_a_formula_or_markup_is_only_text():
    points = [
        {
            "method": name,
            "seed": 0,
            "settings": {},
            "is_selected": True,
            "kl": estimate(1.0, 0.9, 1.1),
            "quality": estimate(0.5, 0.4, 0.6),
        }
        for name in ("$x_{", "</svg><b>", "词語")
    ]
    given = report(frontier=points, quality_name="$\\broken & 词")
    for drawn in frontier(given):
        assert drawn.count("</svg>") == 1
        assert "$x_{" in drawn
        assert "&lt;/svg&gt;&lt;b&gt;" in drawn
        assert "$\\broken &amp; 词" in drawn


@pytest.mark.parametrize("seed", range(20))
def test_heights_keep_their_order_and_distance_within_the_bounds(seed):
    random = np.random.default_rng(seed)
    wanted = list(random.uniform(0, 100, size=random.integers(1, 9)))
    placed = _spread(wanted, 0.0, 100.0, 12.0)
    assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
    assert np.diff(np.sort(placed)).min(initial=12.0) >= 12.0 - 1e-9
    assert min(placed) >= 0
    assert max(placed) <= 100 + 1e-9


def test_heights_that_are_apart_already_stay():
    assert _spread([10.0, 80.0, 40.0], 0.0, 100.0, 12.0) == [10.0, 80.0, 40.0]


def test_more_names_than_room_share_the_room():
    assert _spread([5.0] * 5, 0.0, 8.0, 12.0) == [0.0, 2.0, 4.0, 6.0, 8.0]
