"""The report is one file that shows everything, loads nothing and escapes what others wrote."""

import copy
import math
import re
from html.parser import HTMLParser

import pytest

from prefopt.diagnostics.report import write_report
from prefopt.diagnostics.report_page import EXPLANATIONS, number, percent

HOSTILE = (
    "<script>alert(\"it's\")</script>\n<img src='http://evil.example/x'> & </div> $x_1$ \x00 词"
)
SEEN = HOSTILE.replace("\x00", "\ufffd")
WORD = "w" * 900
GROUP = {
    "id": '"><b>r17',
    "prompt": HOSTILE,
    "responses": [HOSTILE, WORD],
    "scores": [1.0, 0.25],
    "num_tokens": [12, 30],
    "gram": [[4.0, 5.5], [5.5, 9.0]],
    "cosines": [[1.0, 0.917], [0.917, 1.0]],
    "coefficients": [-0.51, 0.52],
    "predicted": [-0.113, -0.314],
    "realised": [-0.117, None],
    "class": "both_fall",
    "cosine": 0.917,
    "severity": 0.731,
}
TOKEN_MAP = {
    "id": "r17",
    "chosen": ["<script", " a\n", "词"],
    "rejected": ["</svg>", '"quoted"'],
    "products": [[1.0, -2.0], [0.5, 4.0], [None, 0.25]],
    "cosines": [[0.1, -0.2], [0.05, 0.4], [0.0, 0.1]],
}
DIAGNOSIS = {
    "prefopt": "0.1.0",
    "created": "2026-11-25T21:00:00+00:00",
    "command": f"prefopt diagnose {HOSTILE}",
    "model": HOSTILE,
    "num_trainable": 300000,
    "num_measured": 299000,
    "objective": {"name": "dpo", "beta": 0.125},
    "reference": HOSTILE,
    "data": [HOSTILE, "data/eval.jsonl"],
    "num_groups": 64,
    "num_pairs": 71,
    "seed": 42,
    "learning_rate": 0.0001,
    "rate_of_changes": 0.0001,
    "notes": [HOSTILE],
    "missing": [HOSTILE],
    "ranking": {
        name: {"value": 0.1 + i / 1000, "num": 1000 + i}
        for i, name in enumerate([*EXPLANATIONS, HOSTILE])
    },
    "entanglement": {
        "num_pairs": 71,
        "cosine": {"mean": 0.801, "median": 0.822, "low": 0.303, "high": 0.994},
        "gradient_norm": {"chosen": 12.1, "rejected": 13.2},
        "share_chosen_condition_broken": 0.403,
        "share_rejected_condition_broken": 0.104,
        "classes": {"ideal": 0.5, "both_fall": 0.39, "both_rise": 0.08, "reversed": 0.03},
        "by_part": [
            {"part": HOSTILE, "inner_product": 3.17, "share": 1.21, "cosine": 0.71},
            {"part": "norms", "inner_product": -0.55, "share": -0.21, "cosine": None},
        ],
        "by_depth": [{"depth": i, "cosine": 0.5, "inner_product": 1.0 * i} for i in range(3)],
    },
    "step": {
        "groups_per_step": 32,
        "num_pairs": 61,
        "own": {"chosen": 2.11, "rejected": -1.47},
        "each_other": {"chosen": -0.0189, "rejected": -0.0145},
        "whole": {"chosen": 1.53, "rejected": -1.92},
        "share_chosen_falls": 0.27,
        "share_both_fall": 0.23,
        "share_chosen_falls_by_its_own": 0.04,
    },
    "verification": {
        "learning_rates": [1e-4, 1e-5, 1e-6],
        "relative_errors": [0.21, 0.022, 0.0023],
        "sign_agreement": [0.91, 0.96, 0.99],
        "num_responses": 128,
    },
    "groups": [GROUP],
    "token_maps": [TOKEN_MAP],
    "training": [
        {"step": 10, "diagnostics/cosine": 0.8, "diagnostics/drift/chosen": -1.2},
        {"step": 20, "diagnostics/cosine": math.nan, "diagnostics/predicted/both_fall": 0.4},
    ],
}
EMPTY = {
    "objective": None, "reference": None, "learning_rate": None, "rate_of_changes": None,
    "entanglement": None, "verification": None, "ranking": {}, "step": None,
    "notes": [], "missing": [], "groups": [], "token_maps": [], "training": [],
}  # fmt: skip
VOID = ("meta", "wbr")
# Minus signs and the dash that stands for no number.
PLAIN = str.maketrans("\u2212\u2013", "--")


class Reader(HTMLParser):
    """Takes a page apart, and fails where tags do not balance."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.links, self.hints = [], [], set(), [], []
        self.text, self.rows = "", []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href"):
                self.links.append(value)
            if key == "title":
                self.hints.append(value.translate(PLAIN))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        data = data.translate(PLAIN)
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data


def read(folder, **changes):
    path = write_report({**copy.deepcopy(DIAGNOSIS), **changes}, folder)
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return page, reader


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return read(tmp_path_factory.mktemp("report"))


def test_nothing_runs_and_nothing_is_loaded(full):
    page, reader = full

    assert "<script" not in page.lower()
    assert {"script", "img", "link", "iframe", "object"} & reader.tags == set()
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    assert re.findall(r"url\((?!#)|@import", page) == []
    inside = [link[1:] for link in reader.links if link.startswith("#")]
    assert set(inside) <= set(reader.ids)


def test_ids_are_one_of_a_kind(full):
    _, reader = full

    assert len(reader.ids) == len(set(reader.ids))


def test_all_that_others_wrote_is_there_as_text(full):
    _, reader = full

    # Title, heading, model, reference, data, command, note, parameter, ranking, part, two texts.
    assert reader.text.count(SEEN) >= 12
    assert WORD in reader.text
    assert '"><b>r17' in reader.text
    assert all(token in reader.text for token in ("<script", " a⏎\n", "</svg>", '"quoted"', "词"))


def test_every_number_of_the_ranking_has_its_n_and_its_meaning(full):
    _, reader = full
    rows = {tuple(row) for row in reader.rows}

    for name, each in DIAGNOSIS["ranking"].items():
        shown = name.replace("\x00", "\ufffd") + EXPLANATIONS.get(name, "")
        assert (shown, number(each["value"]), f"{each['num']:,}") in rows


def test_every_other_number_is_there_with_its_n(full):
    _, reader = full
    entanglement = DIAGNOSIS["entanglement"]
    rows = [row[1:] for row in reader.rows]

    values = [*entanglement["cosine"].values(), *entanglement["gradient_norm"].values()]
    for value in (*values, 0.403, 0.104):
        assert [number(value), "71"] in rows
    for share in entanglement["classes"].values():
        assert percent(share) in reader.text
    assert [" 121 %", "3.17", "0.71"] in rows
    assert [" -21 %", "-0.55", "-"] in rows
    assert ["5.50.917", "91"] in rows
    assert ["1", "12", "2", "-0.51", "-0.113", "-0.117"] in rows
    assert ["0.25", "30", "3", "0.52", "-0.314", "-"] in rows
    assert ["0.0023", "99 %", "128"] in rows
    assert ["-0.0189", "-0.0145"] in rows
    assert "(n = 61)" in reader.text
    assert "lowers the chosen response of 27 % of the pairs and both of 23 %" in reader.text
    for said in (
        "64 groups, 71 pairs",
        "299,000 of 300,000",
        "n = 3 by 2 tokens",
        "severity 0.731",
    ):
        assert said in reader.text


def test_tokens_tell_what_they_add(full):
    _, reader = full

    # Sums of rows, then of columns.
    assert [hint for hint in reader.hints if ":" not in hint] == [
        "-1", "4.5", "0.25", "1.5", "2.25",
    ]  # fmt: skip


def test_the_verdict_says_what_happens_and_what_to_do(full):
    _, reader = full

    for said in (
        "step of dpo lowers the log-prob of both responses in 39 % of 71 pairs",
        "nearly parallel",
        "median cosine 0.822",
        "nll",
        "training.normalise_gradients",
    ):
        assert said in reader.text


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"ideal": 0.97, "both_fall": 0.03, "both_rise": 0.0, "reversed": 0.0}, "no remedy"),
        ({"ideal": 0.4, "both_fall": 0.0, "both_rise": 0.6, "reversed": 0.0}, "from rising too"),
        ({}, "no step to predict"),
    ],
)
def test_the_remedy_fits_the_condition_that_breaks(tmp_path, classes, said):
    _, reader = read(tmp_path, entanglement={**DIAGNOSIS["entanglement"], "classes": classes})

    assert said in reader.text
    assert "To hold the chosen response up" not in reader.text


def test_predictions_that_fail_are_not_to_be_trusted(tmp_path):
    broken = {**DIAGNOSIS["verification"], "sign_agreement": [0.9, 0.6, 0.5]}
    _, reader = read(tmp_path, verification=broken)

    assert "Take predictions with care" in reader.text
    assert "50 % of 128 responses" in reader.text


def test_what_is_left_out_says_so(tmp_path):
    _, reader = read(tmp_path, **EMPTY)

    for section in ("Ranking", "Conditions", "Training", "Worst groups", "Token maps"):
        assert re.search(rf"{section}\s*Not shown: \w", reader.text)
    assert re.search(r"Verification\s*Not shown: \w", reader.text)
    assert "Nothing can be said about gradient entanglement" in reader.text
    assert "What to bear in mind" not in reader.text


def test_a_group_without_objective_or_step_has_no_such_columns(tmp_path):
    bare = {**GROUP, "coefficients": None, "predicted": None, "realised": None, "class": None}
    _, reader = read(tmp_path, groups=[bare], learning_rate=None)

    assert ["response", "score", "tokens", "gradient norm"] in reader.rows
    assert "there is no objective" in reader.text
    assert "no step was taken" in reader.text


def test_a_long_pair_has_a_map_without_labels(tmp_path):
    tokens = [f"token{i}" for i in range(200)]
    long = {"id": "r1", "chosen": tokens, "rejected": tokens[:3]}
    long |= {"products": [[0.0] * 3] * 200, "cosines": [[0.0] * 3] * 200}
    _, reader = read(tmp_path, token_maps=[long])

    assert reader.text.count("token150") == 1


def test_the_new_report_replaces_the_old_one_and_leaves_nothing(tmp_path):
    folder = tmp_path / "made" / "for it"
    first, _ = read(folder)
    again, _ = read(folder)
    read(folder, groups=[{**GROUP, "prompt": "half a character \ud83d"}])

    assert first == again
    assert [path.name for path in folder.iterdir()] == ["report.html"]
