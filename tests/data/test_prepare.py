import json
import multiprocessing
import pickle
from collections import Counter

import numpy as np
import pytest

from prefopt.data.prepare import prepare_data
from prefopt.errors import UserError
from tests.data.builders import (
    TIGHT,
    bpe_tokenizer,
    char_tokenizer,
    prepare,
    section,
    write_lines,
)
from tests.support.shared import SHARED, needs_data


def pair(prompt, chosen="yes", rejected="no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def texts(store, tokenizer):
    return [
        (tokenizer.decode(r.prompt_ids), [tokenizer.decode(ids) for ids in r.response_ids])
        for r in store
    ]


def test_pairs_come_back_as_tokens_with_scores_and_names(tmp_path):
    tokenizer = char_tokenizer()

    data = prepare(tmp_path, [pair("ab", "cd", "e"), pair("f", "g", "hij")], tokenizer)

    assert texts(data.train, tokenizer) == [
        ("ab", ["cd<eos>", "e<eos>"]),
        ("f", ["g<eos>", "hij<eos>"]),
    ]
    assert data.train.ids == ("rows.jsonl:1", "rows.jsonl:2")
    assert [record.scores for record in data.train] == [(1.0, 0.0), (1.0, 0.0)]
    assert data.evaluation is None
    assert data.source_weights == (1.0,)


def test_records_of_different_sizes_keep_their_own_responses(tmp_path):
    tokenizer = char_tokenizer()
    rows = [
        {"prompt": "p" * n, "responses": list("abcde"[:n]), "scores": list(range(n))}
        for n in range(1, 6)
    ]

    data = prepare(tmp_path, rows, tokenizer)

    for n, record in enumerate(data.train, 1):
        assert record.num_prompt_tokens == n
        assert record.scores == tuple(map(float, range(n)))
        assert [tokenizer.decode(ids) for ids in record.response_ids] == [
            f"{letter}<eos>" for letter in "abcde"[:n]
        ]


# The prompt has 4 characters. With the end token a response of n characters has n + 1 tokens.
LONG = [
    pair("pppp", "aaaa", "bbbb"),  # 4 + 5 fits into 10
    pair("pppp", "a" * 6, "b"),  # best: 4 + 7 > 10
    pair("pppp", "a", "b" * 9),  # other: 4 + 10 > 10
    pair("pppp", "a" * 7, "b" * 7),  # both
    pair("p" * 10, "a", "b"),  # no room for a response
    pair("p" * 9, "a", "b"),  # one token of room: both responses are cut
]


def test_long_records_are_dropped_and_counted_by_side(tmp_path):
    data = prepare(tmp_path, LONG, max_length=10)

    [source] = data.summary.sources
    assert data.train.ids == ("rows.jsonl:1",)
    assert (source.records, source.too_long) == (6, 5)
    assert source.too_long_prompt == 1
    assert source.too_long_best == 3  # rows 2, 4 and 6
    assert source.too_long_other == 3  # rows 3, 4 and 6


def test_long_responses_are_cut_on_the_right_without_a_false_end(tmp_path):
    tokenizer = char_tokenizer()

    data = prepare(tmp_path, LONG, tokenizer, max_length=10, too_long="cut_response")

    assert texts(data.train, tokenizer) == [
        ("pppp", ["aaaa<eos>", "bbbb<eos>"]),
        ("pppp", ["aaaaaa", "b<eos>"]),
        ("pppp", ["a<eos>", "bbbbbb"]),
        ("pppp", ["aaaaaa", "bbbbbb"]),
        ("ppppppppp", ["a", "b"]),
    ]
    [source] = data.summary.sources
    assert (source.too_long, source.too_long_prompt) == (1, 1)
    assert (data.summary.train.cut_best, data.summary.train.cut_other) == (3, 3)


def test_long_records_can_be_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^rows.jsonl:2: 4 prompt and 7 response tokens exceed"):
        prepare(tmp_path, LONG, max_length=10, too_long="error")


def test_dropping_everything_is_an_error_with_the_numbers(tmp_path):
    with pytest.raises(UserError, match=r"all 6 records of rows.jsonl .* 3 tokens; .* has 10"):
        prepare(tmp_path, LONG, max_length=3)


def test_a_record_is_dropped_exactly_beyond_max_length(tmp_path):
    for max_length, num_kept in ((6, 1), (5, 0)):
        rows = [pair("pp", "aaa", "b"), pair("p", "a", "b")]
        data = prepare(tmp_path, rows, max_length=max_length)

        assert len(data.train) == 1 + num_kept


def test_selection_happens_before_lengths_are_looked_at(tmp_path):
    tokenizer = char_tokenizer()
    row = {"prompt": "p", "responses": ["a", "b" * 90, "c"], "scores": [3, 2, 1]}

    data = prepare(tmp_path, [row], tokenizer, max_length=10, keep="best_worst", scores="minmax")

    assert texts(data.train, tokenizer) == [("p", ["a<eos>", "c<eos>"])]
    assert data.train[0].scores == (1.0, 0.0)


def test_flat_arrays_agree_with_the_records(tmp_path):
    rows = [
        {"prompt": "p" * n, "responses": ["r" * k for k in range(1, n + 1)], "scores": [0.5] * n}
        for n in (3, 1, 2)
    ]

    store = prepare(tmp_path, rows).train.subset([2, 0, 1])

    for index, record in enumerate(store):
        assert store.prompt_lengths[index] == record.num_prompt_tokens
        assert tuple(store.response_lengths(index)) == record.num_response_tokens
        assert tuple(store.scores(index)) == record.scores
        assert store.num_responses[index] == len(record.scores)
        assert store.record_id(index) == record.id
    assert store.num_responses.tolist() == [2, 3, 1]
    assert store.all_response_lengths.tolist() == [2, 3, 2, 3, 4, 2]
    assert store.first_responses.tolist() == [0, 2, 5, 6]


def test_a_store_is_a_sequence(tmp_path):
    store = prepare(tmp_path, [pair(letter) for letter in "abcd"]).train

    assert store[-1].id == "rows.jsonl:4"
    assert [record.id for record in store[1:3]] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert store[np.int64(2)].id == "rows.jsonl:3"
    assert store.subset(np.array([3, 1])).subset([1]).ids == ("rows.jsonl:2",)
    with pytest.raises(IndexError):
        store[4]


def test_sources_are_mixed_in_order_with_names_of_their_own(tmp_path):
    (tmp_path / "other").mkdir()
    first = write_lines(tmp_path / "rows.jsonl", [pair("a"), pair("b")])
    second = write_lines(tmp_path / "other" / "rows.jsonl", [pair("c")])
    wanted = section(tmp_path, {"path": str(first)}, {"path": str(second), "weight": 2.5})

    data = prepare_data(wanted, char_tokenizer())

    assert data.train.ids == ("rows.jsonl:1", "rows.jsonl:2", "rows.jsonl#2:1")
    assert data.train.source_of_record.tolist() == [0, 0, 1]
    assert data.train.records_per_source == (2, 1)
    assert data.source_weights == (1.0, 2.5)
    assert data.train[2].prompt_ids.tolist() != data.train[0].prompt_ids.tolist()


def test_no_prompt_is_on_both_sides(tmp_path):
    rows = [pair(f"prompt {n % 40}", chosen=f"yes {n}") for n in range(120)]
    # Case and white space do not make another prompt.
    rows += [pair(f"  PROMPT  {n}\n") for n in range(40)]

    data = prepare(tmp_path, rows, evaluation={"fraction": 0.25})

    prompts = [
        {" ".join(rows[int(name.split(":")[1]) - 1]["prompt"].lower().split()) for name in ids}
        for ids in (data.train.ids, data.evaluation.ids)
    ]
    assert len(data.evaluation) == 40
    assert prompts[0].isdisjoint(prompts[1])
    assert len(prompts[0]) + len(prompts[1]) == 40
    assert data.summary.shared_prompts == 0


def test_text_and_message_prompts_that_say_the_same_are_held_out_together(tmp_path):
    rows = [pair(f"prompt {n}") for n in range(20)]
    chats = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        }
        for row in rows
    ]
    first = write_lines(tmp_path / "text.jsonl", rows)
    second = write_lines(tmp_path / "chat.jsonl", chats)

    data = prepare_data(
        section(tmp_path, first, second, evaluation={"num_groups": 10}), bpe_tokenizer()
    )

    names = [name.split(":") for name in data.evaluation.ids]
    assert len(names) == 10
    assert {row for file, row in names if file == "text.jsonl"} == {
        row for file, row in names if file == "chat.jsonl"
    }


def test_the_seed_decides_what_is_held_out(tmp_path):
    rows = [pair(f"prompt {n}") for n in range(50)]

    held_out = [
        prepare(tmp_path, rows, evaluation={"num_groups": 10}, seed=seed).evaluation.ids
        for seed in (0, 0, 1)
    ]

    assert held_out[0] == held_out[1] != held_out[2]


def test_more_data_leaves_the_order_of_the_draw(tmp_path):
    rows = [pair(f"prompt {n}") for n in range(50)]
    few = prepare(tmp_path, rows, evaluation={"fraction": 0.5}).evaluation.ids
    more = [pair(f"further {n}") for n in range(50)]

    many = prepare(tmp_path, rows + more, evaluation={"fraction": 0.5}).evaluation.ids

    # About half of each: what was held out stays, up to chance at the edge of the draw.
    assert len(set(few) & set(many)) >= 0.7 * len(few)


def test_holding_out_everything_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"leaves nothing to train on"):
        prepare(tmp_path, [pair("a"), pair("b")], evaluation={"num_groups": 2})


def test_evaluation_data_of_its_own_is_kept_apart_and_compared(tmp_path):
    own = write_lines(tmp_path / "own.jsonl", [pair("a"), pair("new")])

    data = prepare(tmp_path, [pair("a"), pair("b")], evaluation={"sources": [{"path": str(own)}]})

    assert data.train.ids == ("rows.jsonl:1", "rows.jsonl:2")
    assert data.evaluation.ids == ("own.jsonl:1", "own.jsonl:2")
    assert data.summary.shared_prompts == 1
    assert any(note.startswith("1 prompts are in training and") for note in data.summary.notes)


def test_an_error_in_an_evaluation_source_names_its_key(tmp_path):
    with pytest.raises(UserError, match=r"^data.evaluation.sources\[0\].path: no file"):
        prepare(tmp_path, [pair("a")], evaluation={"sources": [{"path": "./none.jsonl"}]})


def test_the_summary_counts_what_the_records_hold(tmp_path):
    rows = [
        {"prompt": "p", "responses": ["a", "bb", "ccc"], "scores": [1, 2, 3]},
        {"prompt": "p", "responses": ["a", "bb", "ccc"], "scores": [3, 2, 1]},  # same, reordered
        {"prompt": "qq", "responses": ["a", "b"], "scores": [1, 1]},  # all tied
        {"prompt": "r", "responses": ["a", "b", "c"], "scores": [1, 1, 0]},  # some tied
        {"prompt": "s", "responses": ["a", "a"], "scores": [1, 0]},  # identical
        {"prompt": "t", "responses": ["a", "a", "b"], "scores": [1, 0, 0]},  # some identical
        {"prompt": "u", "responses": ["a"], "scores": [1]},
    ]

    side = prepare(tmp_path, rows).summary.train

    assert (side.records, side.responses, side.prompts) == (7, 17, 6)
    assert side.responses_per_record == {1: 1, 2: 2, 3: 4}
    assert (side.tied, side.all_tied) == (3, 1)
    assert (side.identical, side.all_identical) == (2, 1)
    assert side.duplicates == 1
    assert side.comparable == 4
    # Best responses: ccc, a, a, a, a, a, a, each with an end token.
    assert (side.best_lengths.smallest, side.best_lengths.largest) == (2, 4)
    assert side.best_lengths.mean == pytest.approx((4 + 6 * 2) / 7)
    # All responses: (2 + 3 + 4) twice, then eleven of two tokens.
    responses = 2 * 9 + 11 * 2
    assert side.tokens_shared == (6 * 1 + 2) + responses
    assert side.tokens_repeated == (3 + 3 + 2 * 2 + 3 + 2 + 3 + 1) + responses


def test_nothing_to_compare_is_noted(tmp_path):
    rows = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}]

    data = prepare(tmp_path, rows)

    assert data.summary.train.comparable == 0
    assert "No record has two responses that differ in text and in score." in data.summary.notes


def test_plain_text_beside_a_chat_template_is_noted(tmp_path):
    rows = [pair("what is", " four", " the cat")]

    plain = prepare(tmp_path, rows, bpe_tokenizer()).summary.notes
    wrapped = prepare(tmp_path, rows, bpe_tokenizer(), source={"as_messages": True}).summary.notes

    assert "Set as_messages: true" in plain[0]
    assert wrapped == ()


def test_unknown_tokens_are_counted(tmp_path):
    data = prepare(tmp_path, [pair("p\N{SNOWMAN}", "\N{SNOWMAN}", "b")])

    assert data.summary.sources[0].unknown_tokens == 2


def cached(tmp_path):
    folder = tmp_path / "cache"
    return sorted(
        (str(path.relative_to(folder)), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def test_a_second_preparation_reads_the_cache_and_reports_the_same(tmp_path):
    rows = [pair("ab"), pair("abc", "x" * 50)]
    first = prepare(tmp_path, rows, max_length=20)
    files = cached(tmp_path)
    calls = []
    path = tmp_path / "rows.jsonl"

    again = prepare_data(
        section(tmp_path, path, max_length=20),
        char_tokenizer(),
        on_progress=lambda *progress: calls.append(progress),
    )

    assert cached(tmp_path) == files
    assert calls == []
    assert again.summary == first.summary
    assert again.train.fingerprint == first.train.fingerprint


def test_the_cache_is_keyed_by_everything_that_tokens_depend_on(tmp_path):
    rows = [
        {"prompt": "what is ", "responses": ["four", "a cat", "the mat"], "scores": [1, 2, 3]},
        {"prompt": "a person", "responses": [" asks", " sat", " on"], "scores": [1, 2, 3]},
    ]
    variants = [
        {},
        {"scores": "rank"},
        {"keep": "best_worst"},
        {"keep": "top_k", "top_k": 1},
        {"keep": "best_random"},
        {"keep": "best_random", "seed": 5},
        {"source": {"as_messages": True}},
        {"tokenizer": bpe_tokenizer(chat_template=TIGHT), "source": {"as_messages": True}},
        {"tokenizer": bpe_tokenizer(adds_bos=True)},
        {"tokenizer": bpe_tokenizer(eos="</s>")},
    ]

    folders = set()
    for variant in variants:
        options = {"tokenizer": bpe_tokenizer(), **variant}
        data = prepare(tmp_path, rows, options.pop("tokenizer"), **options)
        folders.add(data.train.shards[0].folder)

    assert len(folders) == len(variants)


def test_a_changed_file_is_read_again(tmp_path):
    tokenizer = char_tokenizer()
    before = prepare(tmp_path, [pair("ab")], tokenizer)
    after = prepare(tmp_path, [pair("xy")], tokenizer)

    assert texts(before.train, tokenizer)[0][0] == "ab"
    assert texts(after.train, tokenizer)[0][0] == "xy"
    assert before.train.fingerprint != after.train.fingerprint


def test_the_fingerprint_of_a_store_knows_order_and_choice(tmp_path):
    store = prepare(tmp_path, [pair("a"), pair("b"), pair("c")]).train

    prints = {store.subset(order).fingerprint for order in ([0, 1], [1, 0], [0, 2], [0])}

    assert len(prints) == 4
    assert store.subset([0, 1, 2]).fingerprint == store.fingerprint


def test_a_failed_preparation_leaves_nothing_half_written(tmp_path):
    rows = [pair("ab")] * 1500 + [pair("ab", "")]

    with pytest.raises(UserError, match=r"rows.jsonl:1501:chosen: is empty"):
        prepare(tmp_path, rows)
    with pytest.raises(UserError, match=r"rows.jsonl:1501: 2 prompt and 100 response tokens"):
        prepare(tmp_path, [*rows[:1500], pair("ab", "x" * 99)], max_length=50, too_long="error")

    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert not [name for name, _ in cached(tmp_path) if name.startswith("tokens")]


def test_two_workers_give_the_same_files_as_one(tmp_path):
    rows = [pair(f"prompt {n}", f"yes {n}", "no" * (n % 7)) for n in range(1, 3001) if n % 7]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    options = {"evaluation": {"fraction": 0.1}, "max_length": 30}

    alone, together = (
        prepare_data(
            section(tmp_path / str(num_workers), path, num_workers=num_workers, **options),
            char_tokenizer(),
        )
        for num_workers in (1, 2)
    )

    assert len(alone.train) > 2000
    assert alone.summary == together.summary
    assert alone.train.fingerprint == together.train.fingerprint


def test_an_error_in_a_worker_is_the_same_error(tmp_path):
    rows = [*[pair("p")] * 1500, pair("p", "x" * 99)]

    with pytest.raises(UserError, match=r"^rows.jsonl:1501: 1 prompt and 100 response tokens"):
        prepare(tmp_path, rows, max_length=50, too_long="error", num_workers=2)


def _prepare_and_report(path, cache, queue):
    calls = []
    wanted = section(cache, path)
    data = prepare_data(
        wanted, char_tokenizer(), on_progress=lambda what, *_: calls.append(what.split()[0])
    )
    queue.put((data.train.fingerprint, set(calls)))


def test_several_processes_do_the_work_once(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [pair(f"prompt {n}") for n in range(2000)])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_prepare_and_report, args=(path, tmp_path, queue)) for _ in range(2)
    ]

    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()

    assert len({fingerprint for fingerprint, _ in results}) == 1
    # Each stage was done by one of them, not by both.
    done = [stage for _, stages in results for stage in stages]
    assert sorted(done) == ["reading", "tokenising"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")

    with pytest.raises(UserError, match=r"the cache cannot be written .*Set data.cache_dir"):
        prepare(tmp_path, [pair("a")])


def test_a_store_travels_to_other_processes_without_its_tokens(tmp_path):
    rows = [pair("p" * 200, "a" * 200) for _ in range(200)]
    store = prepare(tmp_path, rows).train

    copy = pickle.loads(pickle.dumps(store))

    assert len(pickle.dumps(store)) < 20_000  # and not 320 kB
    assert copy[7].prompt_ids.tolist() == store[7].prompt_ids.tolist()


@needs_data
@pytest.mark.parametrize(
    "name", ["hh_harmless_test_400.jsonl", "dpo_en_demo.json", "kto_en_demo.json"]
)
def test_real_chats_are_counted_as_plain_python_counts_them(name, tmp_path):
    path = SHARED / "preferences" / name
    content = path.read_text()
    rows = (
        json.loads(content)
        if name.endswith(".json")
        else list(map(json.loads, content.split("\n")[:-1]))
    )
    tokenizer = bpe_tokenizer(chat_template=TIGHT)
    lengths = [_lengths(row, tokenizer) for row in rows]

    data = prepare_data(section(tmp_path, path, max_length=2000), tokenizer)

    fits = [all(prompt + n <= 2000 for n in responses) for prompt, responses in lengths]
    prompt_too_long = sum(prompt >= 2000 for prompt, _ in lengths)
    assert data.summary.sources[0].rows == len(rows)
    assert len(data.train) == sum(fits)
    assert data.summary.sources[0].too_long_prompt == prompt_too_long
    assert [int(name.split(":")[1]) for name in data.train.ids] == [
        number for number, fit in enumerate(fits, 1) if fit
    ]
    kept = [each for each, fit in zip(lengths, fits, strict=True) if fit]
    assert data.train.prompt_lengths.tolist() == [prompt for prompt, _ in kept]
    assert data.train.all_response_lengths.tolist() == [n for _, each in kept for n in each]


def _lengths(row, tokenizer):
    """Prompt and response tokens of a row, by hand."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}

    def rendered(turns):
        turns = [turns] if isinstance(turns, dict) else turns
        return "".join(
            f"<|im_start|>{turn.get('role') or roles[turn['from']]}\n"
            f"{turn.get('content') or turn['value']}<|im_end|>"
            for turn in turns
        )

    if "messages" in row:
        prompt, responses = row["messages"][:-1], [row["messages"][-1]]
    else:
        prompt = row.get("prompt") or row["conversations"]
        responses = [row["chosen"], row["rejected"]]
    header = "<|im_start|>assistant\n"
    return len(tokenizer(rendered(prompt) + header)["input_ids"]), [
        len(tokenizer(rendered(response).removeprefix(header))["input_ids"])
        for response in responses
    ]


@needs_data
def test_real_lists_are_counted_as_plain_python_counts_them(tmp_path):
    path = SHARED / "preferences" / "alpaca_lists_k6.jsonl"
    rows = list(map(json.loads, path.read_text().split("\n")[:-1]))

    side = prepare_data(section(tmp_path, path, max_length=100_000), bpe_tokenizer()).summary.train

    assert side.records == len(rows)
    assert side.responses_per_record == Counter(len(row["responses"]) for row in rows)
    assert side.tied == sum(len(set(row["scores"])) < 6 for row in rows)
    assert side.identical == sum(len(set(row["responses"])) < 6 for row in rows)
    assert side.comparable == sum(len(set(row["scores"])) > 1 for row in rows)


GRADED = {**pair("a"), "score_chosen": 7.0, "score_rejected": 3.0}


@pytest.mark.parametrize(
    ("rows", "is_graded"),
    [
        ([GRADED, GRADED], True),
        ([GRADED, pair("b")], False),
        ([pair("b"), GRADED], False),
        ([GRADED, pair("b"), GRADED], False),
        ([pair("b")], False),
    ],
)
def test_data_is_graded_if_every_row_says_by_how_much(tmp_path, rows, is_graded):
    data = prepare(tmp_path, rows)

    assert [source.is_graded for source in data.summary.sources] == [is_graded]
