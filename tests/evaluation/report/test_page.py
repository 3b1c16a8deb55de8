"""The page shows every number with its interval and n, loads nothing and escapes what it shows."""

import copy
import html
import json
import re
from html.parser import HTMLParser

import pytest

from prefopt.evaluation.report import words
from prefopt.evaluation.report.markdown import markdown
from prefopt.evaluation.report.page import html_page
from tests.support.bare_report import against, estimate, judge, method, report
from tests.support.sample_report import sample_report

HOSTILE = "<script>alert('x')</script>|`a` *b* [c](http://evil.example/) & $x_1$ 词"
VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}
SECTIONS = [
    "Against the baseline",
    "Win matrix",
    "Strengths",
    "Scores",
    "Quality against KL",
    "Displacement",
    "Entanglement",
    "Ranking accuracy",
    "Sweep",
    "Lengths",
    "Judges",
    "Example answers",
    "What sharing saved",
    "Notes",
    "How this was made",
]


WHOLE = sample_report()
# Drawing takes most of the time.
LIGHT = {**WHOLE, "frontier": WHOLE["frontier"][:2]}


class Parsed(HTMLParser):
    """Elements with their attributes, and whether every one is closed in turn."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.ids = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.handle_startendtag(name, attributes)
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]

    def handle_endtag(self, name):
        assert self.open.pop() == name


def _estimates(value):
    """All estimates within, with how each may be written."""
    if isinstance(value, dict) and value.keys() >= {"value", "low", "high", "n", "unit"}:
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _estimates(each)


def _filled():
    """A report whose every estimate is over another n, and that leaves nothing out."""
    given = copy.deepcopy(WHOLE)
    given["judges"][0]["order"]["label_mass"] = estimate(0, 0, 0)
    for score in given["judges"][0]["scores"]:
        score["by_turn"] = {"1": estimate(0, 0, 0), "2": estimate(0, 0, 0)}
    given = copy.deepcopy(given)
    for i, each in enumerate(_estimates(given)):
        value = 0.2 + i / 10000
        each.update(value=value, low=value - 0.05, high=value + 0.06, n=1000 + i)
    return given


def _text(page):
    """What is read, without drawings and their labels."""
    page = re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"</t[dh]>", " ", page))).split())


def _written(each, joint):
    """The ways in which a page may show it: in per cent or as it is."""
    for form in ("share", "number"):
        yield f"{words.value(each, form)} {words.interval(each, form)}{joint}{words.over(each)}"


def test_every_number_of_a_page_has_its_interval_and_n():
    given = _filled()
    text = _text(html_page(given))
    found = list(_estimates(given))
    assert len(found) > 500
    missing = [e for e in found if not any(way in text for way in _written(e, " "))]
    assert missing == []


def test_every_number_of_the_markdown_has_its_interval_and_n():
    given = _filled()
    text = markdown(given).replace("**", "")
    missing = [e for e in _estimates(given) if not any(way in text for way in _written(e, ", "))]
    assert missing == []


def test_an_n_that_all_share_is_said_once_above_the_table_or_column():
    rows = [against(name, estimate(0.6, 0.5, 0.7), 0.01, "better") for name in ("dpo", "kto")]
    methods = [method("sft", "baseline"), method("dpo"), method("kto")]
    for each in methods:
        each["share_cut"] = each["share_empty"] = estimate(0, 0, 0, 600, "answers")
    given = report(methods, judges=[judge(against_baseline=rows)])
    text = _text(html_page(given))
    assert text.count("n = 100 prompts") == 1 + 1
    assert text.count("n = 600 answers") == 2
    assert "n = 100 prompts in every cell." in text
    assert "| characters (n = 100 prompts) |" in markdown(given)


@pytest.mark.parametrize("given", [WHOLE, report()])
def test_the_page_is_whole_and_loads_nothing(given):
    page = html_page({**given, "verdict": ["One: two."]})
    parsed = Parsed(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    names = {name for name, _ in parsed.elements}
    assert not names & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for name, attributes in parsed.elements:
        for key in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert attributes.get(key, "#").startswith("#"), (name, attributes)
        assert "http" not in attributes.get("style", "")
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_links_lead_to_sections():
    parsed = Parsed(html_page(LIGHT))
    targets = [a["href"][1:] for name, a in parsed.elements if name == "a"]
    assert len(targets) == len(SECTIONS)
    assert set(targets) <= set(parsed.ids)


def _hostile(given):
    """Every text of the report that is no key, no number and no word of ours."""
    text = json.dumps(given)
    for name in ("dpo", "sft", "gold", "gold score", "beta", "constant answer"):
        text = text.replace(json.dumps(name), json.dumps(f"{HOSTILE} {name}"))
    hostile = json.loads(text)
    for key in ("title", "protocol", "command", "made_at"):
        hostile[key] = HOSTILE
    hostile["notes"] = hostile["verdict"] = [HOSTILE]
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["judges"][0]["note"] = hostile["judges"][0]["identity"][HOSTILE] = HOSTILE
    hostile["saved"]["sentence"] = HOSTILE
    for example in hostile["examples"]:
        example["turns"] = [f"{HOSTILE}\n  kept \x00"]
        example["category"] = HOSTILE
        for answer in example["answers"]:
            answer["turns"] = [f"{HOSTILE}\n\n    kept</div></details>"]
    return hostile


def test_what_others_wrote_is_text_and_keeps_its_white_space():
    page = html_page(_hostile(LIGHT))
    names = [name for name, _ in Parsed(page).elements]
    assert "script" not in names
    assert "<script" not in page
    assert f"{html.escape(HOSTILE)}\n\n    kept&lt;/div&gt;&lt;/details&gt;" in page
    assert "kept \ufffd" in page
    assert "white-space: pre-wrap" in page


def test_markdown_shows_what_others_wrote_as_it_is():
    text = markdown(_hostile(LIGHT))
    outside = re.sub(r"^```text\n.*?\n```$", "", text, flags=re.M | re.S)
    assert "<script" not in outside
    assert "](http" not in outside.replace("\\](http", "")
    assert not re.search(r"(?<!\\)\$x", outside)
    assert f"```text\n{HOSTILE}\n\n    kept</div></details>\n```" in text
    widths = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", outside, flags=re.M):
        rows = block.splitlines()
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) == 1, rows[0]
    assert widths


def test_a_fence_is_longer_than_those_in_the_text():
    given = copy.deepcopy(LIGHT)
    given["examples"][0]["turns"] = ["see ````\nin it"]
    assert "`````text\nsee ````\nin it\n`````" in markdown(given)


def test_lines_of_text_start_no_list_and_no_quote():
    given = report(notes=["1. no list", "> no quote", "- no point", "0.5 stays", "a < b & c"])
    lines = markdown(given).splitlines()
    for line in ("- 1\\. no list", "- &gt; no quote", "- \\- no point", "- 0.5 stays"):
        assert line in lines
    assert "- a < b & c" in lines


def test_sections_come_in_their_order_and_empty_ones_are_absent():
    heads = re.findall(r"<h2 id=[^>]*>([^<]*)</h2>", html_page(LIGHT))
    assert heads == SECTIONS
    assert re.findall(r"^## (.*)$", markdown(LIGHT), flags=re.M) == SECTIONS
    bare = html_page(report())
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", bare) == ["How this was made"]
    assert "Verdict" not in bare


@pytest.mark.parametrize(
    ("key", "empty", "title"),
    [
        ("examples", [], "Example answers"),
        ("ranking", {}, "Ranking accuracy"),
        ("displacement", [], "Displacement"),
        ("entanglement", {}, "Entanglement"),
        ("sweep", [], "Sweep"),
        ("saved", None, "What sharing saved"),
        ("notes", [], "Notes"),
    ],
)
def test_a_section_without_data_is_absent_and_the_others_stay(key, empty, title):
    given = {**LIGHT, key: empty}
    heads = re.findall(r"<h2 id=[^>]*>([^<]*)</h2>", html_page(given))
    assert heads == [each for each in SECTIONS if each != title]


def test_an_estimate_without_an_interval_says_so():
    lone = estimate(0.6, None, None, 1, "seeds")
    given = report(
        [method("sft", "baseline"), method("dpo")],
        judges=[judge(against_baseline=[against("dpo", lone, 1.0, "no difference seen")])],
        frontier=[
            {
                "method": "dpo",
                "seed": 0,
                "settings": {},
                "is_selected": True,
                "kl": lone,
                "quality": lone,
            }
        ],
    )
    text = _text(html_page(given))
    assert "60.0 % [no interval]" in text
    assert "0.600 [no interval]" in text
    assert "n = 1 seed in every cell" in text


def test_the_other_direction_of_a_pair_is_its_mirror_image():
    rows = [
        {
            "a": "dpo",
            "b": "sft",
            "win": estimate(0.7, 0.61, 0.82),
            "p": 0.001,
            "p_holm": 0.001,
        }
    ]
    text = _text(html_page(report(judges=[judge(win_matrix=rows)])))
    assert f"dpo {words.DASH} 70.0 % [61.0, 82.0]" in text
    assert f"sft 30.0 % [18.0, 39.0] {words.DASH}" in text


def test_an_empty_answer_is_called_empty():
    given = copy.deepcopy(LIGHT)
    given["examples"][0]["answers"][0]["turns"] = [""]
    assert '<div class="text absent">empty</div>' in html_page(given)
