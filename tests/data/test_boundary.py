from dataclasses import replace

import pytest
from tokenizers import processors

from prefopt.data.boundary import split_records
from prefopt.data.tokenize import Encoder
from prefopt.errors import UserError
from prefopt.types import PreferenceRecord
from tests.data.builders import TIGHT, bpe_tokenizer, char_tokenizer, metaspace_tokenizer

USER = {"role": "user", "content": "what is four plus four"}
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


def text_record(prompt, *responses):
    return PreferenceRecord(
        id="rows.jsonl:7",
        prompt=prompt,
        responses=responses,
        scores=tuple(float(-k) for k in range(len(responses))),
    )


def chat_record(*answers, prompt=(USER,), **options):
    responses = tuple([{"role": "assistant", "content": answer}] for answer in answers)
    return replace(text_record("", *responses), prompt=list(prompt), **options)


def split(record, tokenizer):
    [result] = split_records([record], Encoder(tokenizer))
    return result


def test_text_prompt_and_responses_are_the_ids_of_the_whole():
    tokenizer = bpe_tokenizer(adds_bos=True)
    record = text_record("what is", " four", " the cat")

    result = split(record, tokenizer)

    assert result.prompt_ids == tokenizer("what is")["input_ids"]
    for response, ids in zip(record.responses, result.response_ids, strict=True):
        whole = tokenizer(record.prompt + response)["input_ids"]
        assert [*result.prompt_ids, *ids] == [*whole, tokenizer.eos_token_id]
    assert result.num_merges == 0


def test_messages_are_what_the_chat_template_writes():
    tokenizer = bpe_tokenizer()

    result = split(chat_record("four", "the cat"), tokenizer)

    assert tokenizer.decode(result.prompt_ids) == (
        "<|im_start|>user\nwhat is four plus four<|im_end|>\n<|im_start|>assistant\n"
    )
    # The template's line break after the end of the turn is not part of the response.
    assert tokenizer.decode(result.response_ids[0]) == "four<|im_end|>"
    assert tokenizer.decode(result.response_ids[1]) == "the cat<|im_end|>"


@pytest.mark.parametrize("answer", ["four", "four<|im_end|>", "four<|im_end|>\n<|im_end|>"])
def test_a_response_ends_exactly_once(answer):
    tokenizer = bpe_tokenizer()

    [ids] = split(text_record("what is ", answer), tokenizer).response_ids

    assert ids[-1] == tokenizer.eos_token_id
    assert ids[-2] != tokenizer.eos_token_id
    if answer != "four<|im_end|>\n<|im_end|>":
        assert ids.count(tokenizer.eos_token_id) == 1


def test_another_end_of_turn_token_needs_no_eos_behind_it():
    tokenizer = bpe_tokenizer(eos="</s>")

    [ids] = split(chat_record("four"), tokenizer).response_ids

    assert tokenizer.decode(ids) == "four<|im_end|>"


def test_an_unknown_last_token_is_no_end():
    tokenizer = char_tokenizer()

    [ids] = split(text_record("a", "b\N{SNOWMAN}"), tokenizer).response_ids

    assert ids[-2:] == [tokenizer.unk_token_id, tokenizer.eos_token_id]


def test_text_keeps_its_last_line_break_before_the_eos():
    tokenizer = bpe_tokenizer()

    [ids] = split(text_record("what", " is\n"), tokenizer).response_ids

    assert tokenizer.decode(ids) == " is\n<|im_end|>"


@pytest.mark.parametrize("make", [bpe_tokenizer, metaspace_tokenizer])
def test_a_merge_across_the_boundary_leaves_the_prompt_as_at_inference(make):
    tokenizer = make()
    record = text_record("what is ", "four", "four plus four")
    whole = tokenizer("what is four")["input_ids"]
    alone = tokenizer("what is ")["input_ids"]
    assert whole[: len(alone)] != alone

    result = split(record, tokenizer)

    assert result.num_merges == 2
    assert result.prompt_ids == alone
    for response, ids in zip(record.responses, result.response_ids, strict=True):
        whole_text = tokenizer.decode(tokenizer(record.prompt + response)["input_ids"])
        assert tokenizer.decode([*result.prompt_ids, *ids[:-1]]) == whole_text


def test_only_the_responses_that_merge_are_tokenised_apart():
    tokenizer = bpe_tokenizer()
    record = text_record("what is ", "four", "\n")

    result = split(record, tokenizer)

    assert result.num_merges == 1


def test_all_responses_of_a_record_continue_one_prompt():
    tokenizer = bpe_tokenizer()
    record = text_record("a pers", "on", " on", "ons ask")

    result = split(record, tokenizer)

    for response, ids in zip(record.responses, result.response_ids, strict=True):
        assert tokenizer.decode([*result.prompt_ids, *ids[:-1]]) == record.prompt + response


def test_a_generation_prompt_that_answers_lack_is_cut_for_all_alike():
    tokenizer = bpe_tokenizer(chat_template=THINKING)

    result = split(chat_record("four", "<thin", "the cat"), tokenizer)

    assert result.template_cut
    prompt = tokenizer.decode(result.prompt_ids)
    assert prompt == ("<|im_start|>user\nwhat is four plus four<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(result.response_ids[0]) == "four<|im_end|>"


def test_a_template_that_changes_the_turns_themselves_is_refused():
    template = (
        "{% if messages[-1].role == 'assistant' %}answered {% endif %}"
        "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    )

    with pytest.raises(UserError, match=r"rows.jsonl:7: the chat template writes the prompt diff"):
        split(chat_record("four"), bpe_tokenizer(chat_template=template))


def test_tools_and_template_arguments_reach_the_template():
    template = TIGHT.replace("{% for", "{{ tools[0].name if tools }}{{ mood or '' }}{% for", 1)
    tokenizer = bpe_tokenizer(chat_template=template)
    records = [
        chat_record("four"),
        chat_record("four", tools=[{"name": "sum"}], template_kwargs={"mood": "calm"}),
        chat_record("four"),
    ]

    results = split_records(records, Encoder(tokenizer))

    texts = [tokenizer.decode(result.prompt_ids) for result in results]
    assert texts[0] == texts[2]
    assert texts[1] == "sumcalm" + texts[0]


def test_text_and_messages_may_come_in_any_order():
    tokenizer = bpe_tokenizer()
    records = [chat_record("four"), text_record("a", " b"), chat_record("the cat")]

    together = split_records(records, Encoder(tokenizer))

    assert together == [split(record, tokenizer) for record in records]


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(UserError, match=r"rows.jsonl:7: .*Set model.chat_template to chatml"):
        split(chat_record("four"), bpe_tokenizer(chat_template=None))


def test_the_record_that_a_template_refuses_is_named():
    template = "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}" + TIGHT
    good = chat_record("four")
    bad = replace(chat_record("four", prompt=[USER, USER]), id="rows.jsonl:8")

    with pytest.raises(UserError, match=r"rows.jsonl:8: the chat template refuses .*: too many"):
        split_records([good, bad], Encoder(bpe_tokenizer(chat_template=template)))


def test_a_second_bos_is_an_error():
    with pytest.raises(UserError, match=r"rows.jsonl:7: two beginning-of-sequence tokens"):
        split(text_record("<s>what is", " four"), bpe_tokenizer(adds_bos=True))


def test_the_bos_of_a_template_is_not_doubled():
    tokenizer = bpe_tokenizer(chat_template="{{ bos_token }}" + TIGHT, adds_bos=True)

    result = split(chat_record("four"), tokenizer)

    assert result.prompt_ids.count(tokenizer.bos_token_id) == 1


def test_an_empty_prompt_becomes_the_bos():
    tokenizer = bpe_tokenizer()

    result = split(text_record("", "four"), tokenizer)

    assert result.prompt_ids == [tokenizer.bos_token_id]
    assert tokenizer.decode(result.response_ids[0]) == "four<|im_end|>"


def test_an_empty_prompt_without_bos_is_an_error():
    with pytest.raises(UserError, match=r"the prompt is empty and the tokenizer has no beginning"):
        split(text_record("", "four"), char_tokenizer())


def test_an_eos_that_the_tokenizer_adds_does_not_end_the_prompt():
    tokenizer = bpe_tokenizer(adds_bos=True)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )

    result = split(text_record("what is", " four"), tokenizer)

    assert tokenizer.decode(result.prompt_ids) == "<s>what is"
    assert tokenizer.decode(result.response_ids[0]) == " four<|im_end|>"


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(UserError, match=r"no end-of-sequence token.*Set model.eos_token"):
        Encoder(bpe_tokenizer(eos=None))


def test_the_fingerprint_ignores_what_calls_leave_behind():
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token = "</s>"
    before = Encoder(tokenizer).fingerprint()

    tokenizer(["a", "a person"], padding=True, truncation=True, max_length=2, padding_side="left")

    assert Encoder(tokenizer).fingerprint() == before


def test_ids_ignore_what_calls_leave_behind():
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token = "</s>"
    encoder = Encoder(tokenizer)
    before = encoder.encode(["a", "a person asks"])

    tokenizer(["a", "a person"], padding=True, truncation=True, max_length=2, padding_side="left")

    assert encoder.encode(["a", "a person asks"]) == before


@pytest.mark.parametrize(
    "other", [{"chat_template": TIGHT}, {"adds_bos": True}, {"eos": "</s>"}], ids=str
)
def test_the_fingerprint_changes_with_what_ids_depend_on(other):
    assert Encoder(bpe_tokenizer(**other)).fingerprint() != Encoder(bpe_tokenizer()).fingerprint()
