"""The verdict says what the numbers say, and never more."""

import re

from prefopt.evaluation.report.verdict import verdict
from tests.support.bare_report import against, estimate, judge, method, pair, report
from tests.support.sample_report import sample_report

SFT, DPO, KTO = method("sft", "baseline", seeds=[]), method("dpo"), method("kto")
WINS, LOSES = estimate(0.6234, 0.581, 0.66), estimate(0.391, 0.35, 0.432)
EVEN = estimate(0.512, 0.47, 0.553)
DETECTABLE = {"standard_error": 0.0157, "one_test": 0.044, "num_tests": 1, "all_tests": 0.044}
ORDER = {
    "first_slot_rate": estimate(0.5, 0.48, 0.52, 400, "questions"),
    "consistent_share": estimate(0.9, 0.85, 0.95),
    "label_mass": None,
}


def test_better_and_worse_are_said_with_interval_n_and_p():
    rows = [against("kto", LOSES, 0.0004, "worse"), against("dpo", WINS, 0.012, "better")]
    assert verdict(report([SFT, DPO, KTO], judges=[judge(against_baseline=rows)])) == [
        "Better than sft, by judge gold: dpo wins 62.3 % [58.1, 66.0] (n = 100 prompts), "
        "Holm p = 0.012.",
        "Worse than sft, by judge gold: kto wins 39.1 % [35.0, 43.2] (n = 100 prompts), "
        "Holm p < 0.001.",
    ]


def test_no_difference_comes_with_what_would_not_have_been_noticed():
    rows = [against("kto", EVEN, 0.58, "no difference seen")]
    said = verdict(report([SFT, KTO], judges=[judge(against_baseline=rows, detectable=DETECTABLE)]))
    assert said == [
        "No difference seen between sft and kto, by judge gold: kto wins 51.2 % [47.0, 55.3] "
        "(n = 100 prompts), Holm p = 0.58; a difference below 4.4 points would not have been "
        "noticed (80 % power)."
    ]


def test_of_several_tests_the_hardest_says_what_would_not_have_been_noticed():
    rows = [against(name, EVEN, 1.0, "no difference seen", method=name) for name in ("dpo", "kto")]
    many = DETECTABLE | {"num_tests": 2, "all_tests": 0.0487}
    said = verdict(report([SFT, DPO, KTO], judges=[judge(against_baseline=rows, detectable=many)]))
    assert said == [
        "No difference seen between sft and dpo or kto, by judge gold: dpo wins 51.2 % "
        "[47.0, 55.3], Holm p = 1.00; kto wins 51.2 % [47.0, 55.3], Holm p = 1.00 (n = 100 prompts "
        "each); a difference below 4.9 points would not have been noticed (80 % power)."
    ]


def test_the_best_beats_every_other_and_the_closest_is_named():
    # dpo has the highest mean; the matrix has kto over dpo, so the winner's side is 1 minus it.
    matrix = [
        pair("sft", "dpo", estimate(0.3, 0.25, 0.35), 0.001),
        pair("kto", "dpo", estimate(0.42, 0.38, 0.47), 0.02),
        pair("kto", "sft", estimate(0.6, 0.55, 0.65), 0.001),
    ]
    assert verdict(report([SFT, DPO, KTO], judges=[judge(win_matrix=matrix)])) == [
        "Best of 3, by judge gold: dpo beats every other; closest, it wins 58.0 % [53.0, 62.0] "
        "(n = 100 prompts) against kto (Holm p = 0.020)."
    ]


def test_methods_at_the_top_that_cannot_be_told_apart_are_named_together():
    matrix = [
        pair("dpo", "kto", EVEN, 0.58),
        pair("dpo", "sft", WINS, 0.001),
        pair("kto", "sft", WINS, 0.001),
    ]
    assert verdict(report([SFT, DPO, KTO], judges=[judge(win_matrix=matrix)])) == [
        "Not told apart at the top, by judge gold: dpo and kto; dpo wins 51.2 % [47.0, 55.3] "
        "(n = 100 prompts) against kto (Holm p = 0.58)."
    ]


def test_a_circle_has_no_single_best():
    matrix = [
        pair("dpo", "sft", estimate(0.8, 0.75, 0.85), 0.001),
        pair("kto", "dpo", estimate(0.6, 0.55, 0.65), 0.001),
        pair("sft", "kto", estimate(0.6, 0.55, 0.65), 0.001),
    ]
    assert verdict(report([SFT, DPO, KTO], judges=[judge(win_matrix=matrix)])) == [
        "No single best, by judge gold: dpo has the highest mean win rate, but it loses to 40.0 % "
        "[35.0, 45.0] (n = 100 prompts) against kto (Holm p = 0.001)."
    ]


def test_sanity_rows_take_no_part_in_the_contest():
    matrix = [
        pair("dpo", "sft", WINS, 0.001),
        pair("constant", "dpo", estimate(0.9, 0.85, 0.95), 0.001),
        pair("constant", "sft", estimate(0.9, 0.85, 0.95), 0.001),
    ]
    rows = [against("constant", LOSES, 0.001, "worse")]
    methods = [SFT, DPO, method("constant", "sanity")]
    judges = [judge(win_matrix=matrix, against_baseline=rows)]
    assert verdict(report(methods, judges=judges)) == []


def test_one_seed_limits_what_is_said_to_the_checkpoints():
    assert verdict(report([SFT, DPO], num_seeds=1)) == [
        "One seed: conclusions are about these checkpoints, not about the methods."
    ]
    assert verdict(report([SFT, DPO, method("kto", seeds=[1])])) == [
        "One seed of kto: what is said of it is about that checkpoint, not about the method."
    ]


def test_a_judge_that_prefers_a_constant_answer_can_be_fooled():
    rows = [against("constant", WINS, 0.0001, "better")]
    methods = [SFT, method("constant", "sanity")]
    assert verdict(report(methods, judges=[judge(against_baseline=rows)])) == [
        "Judge gold can be fooled: it prefers sanity rows to sft: constant wins 62.3 % "
        "[58.1, 66.0] (n = 100 prompts), Holm p < 0.001."
    ]


def test_a_judge_that_goes_by_the_order_or_leaves_questions_open_is_named():
    order = {
        "first_slot_rate": estimate(0.39, 0.35, 0.43, 400, "questions"),
        "consistent_share": estimate(0.65, 0.6, 0.7),
        "label_mass": estimate(0.71, 0.69, 0.73),
    }
    coverage = {
        "num_asked": 1600,
        "num_ok": 1580,
        "share": 0.9875,
        "by_status": {"ok": 1580, "refusal": 12, "api_error": 8, "parse_error": 0},
    }
    assert verdict(report([SFT], judges=[judge(order=order, coverage=coverage)])) == [
        "Judge gold leaves questions open: it answered 1,580 of 1,600 questions (98.8 %; "
        "12 refusal, 8 api_error).",
        "Judge gold favours the second slot: the first one wins 39.0 % [35.0, 43.0] (n = 400 "
        "questions) instead of 50 %; win rates average both orders.",
        "Judge gold contradicts itself: its verdict is the same in both orders in 65.0 % "
        "[60.0, 70.0] (n = 100 prompts).",
        "Judge gold often says something else than a verdict: labels have a probability of 71.0 % "
        "[69.0, 73.0] (n = 100 prompts).",
    ]


def test_a_fair_judge_is_not_complained_about():
    wide = ORDER | {"first_slot_rate": estimate(0.58, 0.49, 0.67, 40, "questions")}
    near = ORDER | {"first_slot_rate": estimate(0.52, 0.51, 0.53, 9000, "questions")}
    for order in (ORDER, wide, near):
        assert verdict(report([SFT], judges=[judge(order=order)])) == []


def test_judges_that_contradict_each_other_are_named():
    first = [against("dpo", WINS, 0.001, "better"), against("kto", LOSES, 0.001, "worse")]
    other = [
        against("dpo", EVEN, 0.6, "no difference seen"),
        against("kto", WINS, 0.001, "better"),
    ]
    judges = [judge(against_baseline=first), judge("biased", against_baseline=other)]
    assert verdict(report([SFT, DPO, KTO], judges=judges))[2:] == [
        "Judges gold and biased contradict each other against sft: kto wins 39.1 % [35.0, 43.2], "
        "worse, and 62.3 % [58.1, 66.0], better (n = 100 prompts each).",
        "Judges gold and biased do not both see a difference to sft: dpo wins 62.3 % "
        "[58.1, 66.0], better, and 51.2 % [47.0, 55.3], no difference seen (n = 100 prompts each).",
    ]


def test_length_can_reverse_explain_and_hide_an_outcome():
    long = method("dpo", length_ratio=estimate(1.84, 1.7, 2.0))
    rows = [
        against("dpo", WINS, 0.001, "better", length_controlled=LOSES),
        against("kto", WINS, 0.001, "better", length_controlled=EVEN),
        against("ipo", EVEN, 0.6, "no difference seen", length_controlled=WINS),
        against("orpo", WINS, 0.001, "better", length_controlled=WINS),
    ]
    methods = [SFT, long, KTO, method("ipo"), method("orpo")]
    said = verdict(report(methods, judges=[judge(against_baseline=rows)]))
    assert said[2:] == [
        "Length reverses the outcome against sft, by judge gold: dpo wins 62.3 % [58.1, 66.0] as "
        "it is and 39.1 % [35.0, 43.2] at equal lengths; answers 1.84 [1.70, 2.00] times as long "
        "(n = 100 prompts each).",
        "At equal lengths no difference is left to sft, by judge gold: kto wins 62.3 % "
        "[58.1, 66.0] as it is and 51.2 % [47.0, 55.3] at equal lengths (n = 100 prompts each).",
        "At equal lengths a difference appears to sft, by judge gold: ipo wins 51.2 % "
        "[47.0, 55.3] as it is and 62.3 % [58.1, 66.0] at equal lengths (n = 100 prompts each).",
    ]


def test_cut_and_empty_answers_are_reported():
    cut = method("dpo", share_cut=estimate(0.12, 0.09, 0.15, 600, "answers"))
    empty = method("kto", share_empty=estimate(0.05, 0.03, 0.07, 600, "answers"))
    assert verdict(report([SFT, cut, empty])) == [
        "Answers cut by the limit of tokens: 12.0 % [9.0, 15.0] (n = 600 answers) of dpo.",
        "Empty answers: 5.0 % [3.0, 7.0] (n = 600 answers) of kto.",
    ]


def _point(name, kl, **changes):
    values = {
        "method": name,
        "seed": 0,
        "settings": {},
        "is_selected": True,
        "kl": kl,
        "quality": estimate(0.7, 0.6, 0.8),
    }
    return values | changes


def test_unequal_kl_is_said_and_what_is_left_at_equal_kl():
    frontier = [
        _point("dpo", estimate(12.0, 11.0, 13.0, 800, "samples"), seed=2),
        _point("kto", estimate(3.0, 2.5, 3.5, 800, "samples")),
        _point("kto", estimate(90.0, 80.0, 100.0, 800, "samples"), is_selected=False),
    ]
    matched = [
        {"method": "kto", "quality": estimate(0.61, 0.59, 0.63, 3, "seeds"), "why_not": None},
        {"method": "dpo", "quality": estimate(0.75, 0.73, 0.77, 3, "seeds"), "why_not": None},
        {"method": "ipo", "quality": None, "why_not": "never gets there"},
    ]
    given = report([SFT, DPO, KTO], frontier=frontier, matched_kl_at=5.0, matched_kl=matched)
    assert verdict(given) == [
        "Methods are compared at unequal KL: from 3.0 nats [2.5, 3.5] (n = 800 samples) of kto "
        "with seed 0 to 12.0 nats [11.0, 13.0] (n = 800 samples) of dpo with seed 2.",
        "At an equal KL of 5 nats: gold score goes from 0.610 [0.590, 0.630] (n = 3 seeds) of kto "
        "to 0.750 [0.730, 0.770] (n = 3 seeds) of dpo.",
    ]


def test_kl_that_may_be_equal_is_not_called_unequal():
    near = [_point("dpo", estimate(4.0, 3.5, 4.5)), _point("kto", estimate(3.0, 2.5, 3.4))]
    vague = [_point("dpo", estimate(9.0, 3.0, 15.0)), _point("kto", estimate(3.0, 2.0, 4.0))]
    for frontier in (near, vague):
        assert verdict(report([SFT, DPO, KTO], frontier=frontier)) == []


def test_ranking_accuracy_is_held_against_wins():
    rows = [against("dpo", WINS, 0.001, "better"), against("kto", EVEN, 0.6, "no difference seen")]
    ranking = {
        name: {"ranking_accuracy": estimate(at, at - 0.05, at + 0.05, 400, "pairs")}
        for name, at in {"sft": 0.9, "dpo": 0.6, "kto": 0.8}.items()
    }
    judges = [judge(against_baseline=rows)]
    assert verdict(report([SFT, DPO, KTO], judges=judges, ranking=ranking))[2:] == [
        "Ranking accuracy is no proxy for winning: kto with 80.0 % [75.0, 85.0] (n = 400 pairs) "
        "wins 51.2 % [47.0, 55.3] (n = 100 prompts) against sft; dpo with 60.0 % [55.0, 65.0] "
        "(n = 400 pairs) wins 62.3 % [58.1, 66.0] (n = 100 prompts) against sft."
    ]
    near = [rows[0], against("kto", estimate(0.6, 0.55, 0.65), 0.001, "better")]
    judges_near = [judge(against_baseline=near)]
    assert len(verdict(report([SFT, DPO, KTO], judges=judges_near, ranking=ranking))) == 1
    ranking["kto"], ranking["dpo"] = ranking["dpo"], ranking["kto"]
    assert len(verdict(report([SFT, DPO, KTO], judges=judges, ranking=ranking))) == 2


def test_every_sentence_of_a_whole_report_has_a_number_an_interval_and_n():
    sentences = verdict(sample_report())
    assert len(sentences) > 10
    # That questions were left open is a count, not an estimate.
    for sentence in (each for each in sentences if "leaves questions open" not in each):
        assert re.search(r"\d( %| nats)? \[\d+(\.\d+)?, \d+(\.\d+)?\]", sentence), sentence
        assert re.search(r"\(n = [\d,]+ [a-z]+", sentence), sentence


def test_nothing_measured_is_nothing_said():
    assert verdict(report()) == []
