"""What goes into a model and what it goes on with, against one token at a time."""

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from prefopt.errors import UserError
from prefopt.evaluation.continuations import check_room, continuations, prompt_ids
from prefopt.evaluation.generate.batch import end_ids
from prefopt.evaluation.types import Prompt
from prefopt.models.load import prepare_for_scoring
from prefopt.models.section import ModelSection
from tests.support.tiny import character_tokenizer, tiny_config

TOKENIZER = character_tokenizer()
END = TOKENIZER.eos_token_id
PROMPTS = [[5], [17, 8, 9, 10, 11, 12], [44, 40]]


def model_of(seed: int, layout: str = "auto") -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config()).double()
    prepare_for_scoring(model, ModelSection(path="none", dtype="float64", layout=layout))
    return model.eval()


def likeliest(model, ids: list[int]) -> int:
    with torch.no_grad():
        return int(model(torch.tensor([ids])).logits[0, -1].argmax())


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_a_batch_continues_each_prompt_as_if_it_were_alone(layout):
    model = model_of(3, layout)
    # What a checkpoint sets for itself has no part in it.
    model.generation_config = GenerationConfig(repetition_penalty=5.0, min_new_tokens=9)

    together = continuations(model, TOKENIZER, PROMPTS, ends=[END], max_new_tokens=12, seeds=None)

    for prompt, ids in zip(PROMPTS, together, strict=True):
        expected: list[int] = []
        while len(expected) < 12 and expected[-1:] != [END]:
            expected.append(likeliest(model, prompt + expected))
        assert ids == expected
    assert model.generation_config.repetition_penalty == 5.0


def test_a_draw_belongs_to_its_seed_and_not_to_its_neighbours():
    model = model_of(3)
    settings = {"ends": [END], "max_new_tokens": 12}

    together = continuations(model, TOKENIZER, PROMPTS, seeds=[1, 2, 3], **settings)

    for prompt, seed, ids in zip(PROMPTS, (1, 2, 3), together, strict=True):
        assert continuations(model, TOKENIZER, [prompt], seeds=[seed], **settings) == [ids]
    assert continuations(model, TOKENIZER, PROMPTS, seeds=[4, 5, 6], **settings) != together


def test_nothing_follows_an_end():
    model = model_of(3)
    free = continuations(model, TOKENIZER, PROMPTS[:1], ends=[END], max_new_tokens=12, seeds=None)[
        0
    ]

    ended = continuations(
        model, TOKENIZER, PROMPTS, ends=[free[2], END], max_new_tokens=12, seeds=None
    )[0]

    assert ended == free[: free.index(free[2]) + 1]


def test_a_continuation_ends_where_the_model_or_its_tokenizer_says():
    model = model_of(0)
    model.generation_config.eos_token_id = [7, 9]

    assert end_ids(model, TOKENIZER) == [END, 7, 9]


def test_prompts_are_put_by_the_chat_template_up_to_the_answer():
    said = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
    prompts = [Prompt(turns=("One", "Two")), Prompt(turns=("Go",), context=said)]

    found = prompt_ids(prompts, TOKENIZER)

    texts = [TOKENIZER.decode(ids) for _, ids in found]
    assert texts == ["<u>One<a>", "<u>Hi<a>Ho<eos><u>Go<a>"]
    assert [name for name, _ in found] == [prompt.prompt_id for prompt in prompts]


def test_plain_prompts_are_put_as_they_are():
    prompts = [Prompt(turns=("One",))]

    for tokenizer, plain in ((TOKENIZER, True), (character_tokenizer(None), False)):
        [(_, ids)] = prompt_ids(prompts, tokenizer, plain=plain)
        assert tokenizer.decode(ids) == "One"


def test_a_dialogue_needs_a_template_that_takes_it():
    said = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
    prompts = [Prompt(turns=("Go",), context=said)]

    with pytest.raises(UserError, match="which need a chat template"):
        prompt_ids(prompts, TOKENIZER, plain=True)
    picky = character_tokenizer("{{ raise_exception('one message, please') }}")
    with pytest.raises(UserError, match="the chat template refuses it: one message, please"):
        prompt_ids(prompts, picky)


def test_what_a_model_cannot_hold_is_refused():
    check_room(model_of(0), 4096, "--max-new-tokens")

    with pytest.raises(UserError, match=r"--max-new-tokens: .* 4,097 tokens, and the"):
        check_room(model_of(0), 4097, "--max-new-tokens")
