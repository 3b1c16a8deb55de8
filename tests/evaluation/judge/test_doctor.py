import pytest
from typer.testing import CliRunner

from prefopt.cli_judge import judge as group
from prefopt.errors import UserError
from prefopt.evaluation.judge.doctor import examine
from prefopt.evaluation.judge.doctor_pairs import PAIRS
from prefopt.evaluation.types import PairQuestion, ScoreQuestion
from tests.support.judge_server import always, chat, chat_judge, serving

GOOD_ANSWERS = {good for _, good, _ in PAIRS}


def knowing(body):
    """Prefers the good answer, and gives it the better score, whatever the order."""
    text = body["messages"][0]["content"]
    if "[Answer]" in text:
        is_good = text.split("[Answer]\n")[1].split("\n[End")[0] in GOOD_ANSWERS
        return chat("I", {"I": 0.9, "B": 0.1} if is_good else {"B": 0.9, "I": 0.1})
    first = text.split("[Answer A]\n")[1].split("\n[End")[0]
    second = text.split("[Answer B]\n")[1].split("\n[End")[0]
    if first == second:
        return chat("A", {"A": 0.5, "B": 0.5})
    is_first = first in GOOD_ANSWERS
    return chat("A", {"A": 0.9, "B": 0.1} if is_first else {"B": 0.9, "A": 0.1})


def examined(script, **section):
    with chat_judge(script, **section) as (judge, server):
        return examine(judge), server


def test_twenty_pairs_in_both_orders_identical_ones_and_scores_are_asked():
    found, server = examined(knowing)

    assert len(PAIRS) == 20
    assert len({request for request, _, _ in PAIRS}) == 20
    assert found.num_asked == len(server.requests) == 40 + 40 + 5


def test_a_good_judge_is_usable():
    found, _ = examined(knowing)

    assert found.is_usable
    assert found.right_share == found.scores_right_share == found.consistent_share == 1.0
    assert found.first_slot_rate == pytest.approx(0.5)
    assert found.identical_first == 0.5
    assert found.label_mass == pytest.approx(1.0)
    assert found.seen_share == 1.0
    assert found.lines == ["Usable."]


def test_a_judge_that_goes_by_the_slot_is_not():
    found, _ = examined(always(chat("A", {"A": 0.9, "B": 0.1})))

    assert not found.is_usable
    assert found.first_slot_rate == pytest.approx(0.9)
    assert found.identical_first == pytest.approx(0.9)
    assert found.consistent_share == 0.0
    # All pairs come out even.
    assert found.right_share == found.scores_right_share == 0.5
    assert any("goes mostly by the order" in line for line in found.lines)
    assert any("prefers the good answer in 50%" in line for line in found.lines)


def test_an_endpoint_without_log_probs_is_rejected_with_the_way_out():
    found, _ = examined(always(chat("A")))

    assert not found.is_usable
    assert found.by_status == {"no_logprobs": 85}
    assert found.lines[0].startswith("Unusable: The endpoint gives no log-probs. Set judge.mode: ")


def test_a_fall_back_to_text_is_said():
    def script(body):
        text = body["messages"][0]["content"]
        if "[Answer]" in text:
            return chat("[[8]]" if knowing(body).body["choices"][0]["message"] else "")
        first = text.split("[Answer A]\n")[1].split("\n[End")[0]
        return chat("[[A]]" if first in GOOD_ANSWERS else "[[B]]")

    found, _ = examined(script, mode="auto")

    assert found.right_share == 1.0
    assert found.label_mass is None
    assert any(line.startswith("Note: the endpoint gives no log-probs") for line in found.lines)


def test_labels_that_the_model_hardly_says_make_it_unusable():
    found, _ = examined(always(chat("Well", {"Well": 0.95, "A": 0.03, "B": 0.01})))

    assert any("The labels have 4.0% of the probability" in line for line in found.lines)


def test_labels_outside_the_top_are_noted():
    found, _ = examined(always(chat("A", {"A": 0.8, "x": 0.2})))

    assert found.seen_share == 0.0
    assert any("in 100% of the replies a label is not among" in line for line in found.lines)
    assert any("only 80% of the probability" in line for line in found.lines)


def test_refusals_make_it_unusable():
    found, _ = examined(always(chat(None, refusal="I never judge.")))

    assert found.by_status == {"refusal": 85}
    assert "refused: I never judge." in found.lines[0]


def test_questions_are_of_both_kinds():
    kinds = []

    class Seen:
        name, identity, levels = "seen", {}, (1.0, 2.0)
        kinds = frozenset({"pair", "score"})
        num_in_flight, max_calls = 1, None

        def rendered(self, question):
            return ""

        def ask(self, question):
            kinds.append(type(question))
            raise UserError("enough")

        def close(self):
            pass

    with pytest.raises(UserError, match="enough"):
        examine(Seen())
    assert kinds in ([PairQuestion], [ScoreQuestion])


def test_the_command_prints_what_was_seen_and_exits_with_1_if_it_is_unfit(tmp_path):
    section = tmp_path / "judge.yaml"
    for script, code, last in ((knowing, 0, "Usable."), (always(chat("A")), 1, None)):
        with serving(script) as server:
            section.write_text(
                f"backend: openai_chat\nmodel: m\nmode: logprobs\nbase_url: {server.url}\n"
            )
            result = CliRunner().invoke(group, ["doctor", str(section)])

        assert result.exit_code == code
        lines = result.stdout.splitlines()
        if last:
            assert lines[0] == "judge m: 85 questions: 85 ok"
            assert "  win rate of the first slot      50.0%" in lines
            assert lines[-1] == last
