import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefopt.demo.model import save_start
from prefopt.errors import UserError
from prefopt.evaluation.generate.base import requests_for
from prefopt.evaluation.generate.load import load_backend
from prefopt.evaluation.generate.run import generate, outcome_of
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Prompt
from tests.support.tiny import save_tiny_model

PROMPTS = [
    Prompt(turns=(text,))
    for text in ("hi", "a much longer question than the others", "why?", "x" * 60, "so")
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def answers(backend, prompts, section):
    found = backend.answers(requests_for(prompts, section), set())
    return {request.key: answer for request, answer in found}


def singly(folder, text, num, *, messages=None):
    """Greedy answer to one prompt, without padding, cache or prefopt."""
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = messages or [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + num and (len(ids) == start or ids[-1] != 1):
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    new = ids[start:]
    has_ended = new[-1] == 1
    text = tokenizer.decode(new, skip_special_tokens=True)
    return text, len(new), "stop" if has_ended else "length"


def test_a_batch_with_left_padding_answers_like_each_prompt_alone(model):
    section = GenerationSection(max_new_tokens=24, batch_size=5)

    found = answers(load_backend(model, section), PROMPTS, section)

    for prompt in PROMPTS:
        answer = found[prompt.prompt_id, 0]
        text, num, reason = singly(model, prompt.turns[0], 24)
        assert (answer.turns, answer.num_tokens, answer.finish_reasons) == (
            (text,),
            (num,),
            (reason,),
        )


def test_the_second_turn_sees_the_models_own_first_answer(model):
    section = GenerationSection(max_new_tokens=12, batch_size=4)
    prompts = [Prompt(turns=("first", "and then?")), Prompt(turns=("hello there", "go on"))]

    found = answers(load_backend(model, section), prompts, section)

    for prompt in prompts:
        first = singly(model, prompt.turns[0], 12)[0]
        said = [
            {"role": "user", "content": prompt.turns[0]},
            {"role": "assistant", "content": first},
            {"role": "user", "content": prompt.turns[1]},
        ]
        second = singly(model, "", 12, messages=said)[0]
        assert found[prompt.prompt_id, 0].turns == (first, second)


def test_a_drawn_answer_does_not_depend_on_its_neighbours(model):
    section = GenerationSection(max_new_tokens=16, temperature=1.0, num_samples=3)
    alone = section.model_copy(update={"batch_size": 1})

    together = answers(load_backend(model, section), PROMPTS, section)
    apart = answers(load_backend(model, alone), PROMPTS, alone)

    assert together == apart
    assert len({together[PROMPTS[0].prompt_id, sample].turns for sample in range(3)}) == 3


def test_another_seed_draws_other_answers(model):
    section = GenerationSection(max_new_tokens=16, temperature=1.0)
    other = section.model_copy(update={"seed": 1})

    assert answers(load_backend(model, section), PROMPTS, section) != answers(
        load_backend(model, other), PROMPTS, other
    )


def test_categories_have_their_own_temperature(model):
    section = GenerationSection(
        max_new_tokens=16, temperature=1.0, temperature_by_category={"math": 0.0}
    )
    plain = Prompt(turns=("hi",), category="writing")
    maths = Prompt(turns=("why?",), category="math")

    found = answers(load_backend(model, section), [plain, maths], section)

    assert found[maths.prompt_id, 0].turns == (singly(model, "why?", 16)[0],)
    assert found[plain.prompt_id, 0].turns != (singly(model, "hi", 16)[0],)


def test_what_the_checkpoint_sets_for_generation_does_not_come_in(model, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    GenerationConfig(
        repetition_penalty=5.0, do_sample=True, temperature=0.5, eos_token_id=1, pad_token_id=0
    ).save_pretrained(folder)
    section = GenerationSection(max_new_tokens=16)

    backend = load_backend(str(folder), section)

    assert answers(backend, PROMPTS, section) == answers(
        load_backend(model, section), PROMPTS, section
    )


def test_an_adapter_answers_as_its_merged_weights_do(model, tmp_path):
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "merged")
    section = GenerationSection(max_new_tokens=16)

    found = answers(load_backend(str(tmp_path / "adapter"), section), PROMPTS, section)

    assert found == answers(load_backend(str(tmp_path / "merged"), section), PROMPTS, section)
    assert found != answers(load_backend(model, section), PROMPTS, section)


def test_a_model_without_template_reads_the_text_as_it_is(tmp_path):
    save_start(tmp_path, seed=0)
    section = GenerationSection(max_new_tokens=8)
    backend = load_backend(str(tmp_path), section)
    prompt = Prompt(turns=("banana>",))

    found = answers(backend, [prompt], section)

    network = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("banana>", return_tensors="pt")["input_ids"]
    expected = network.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert found[prompt.prompt_id, 0].turns == (
        tokenizer.decode(expected, skip_special_tokens=True),
    )
    assert backend.chat_template is None
    with pytest.raises(UserError, match=r"is a dialogue, but .* has no chat template"):
        answers(backend, [Prompt(turns=("a>", "b>"))], section)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(model):
    section = GenerationSection(max_new_tokens=24)
    whole = answers(load_backend(model, section), PROMPTS, section)[PROMPTS[0].prompt_id, 0]
    stop = whole.turns[0][3:5]
    section = section.model_copy(update={"stop": (stop,)})

    found = answers(load_backend(model, section), PROMPTS, section)[PROMPTS[0].prompt_id, 0]

    end = whole.turns[0].index(stop)
    assert found.turns == (whole.turns[0][:end],)
    assert found.finish_reasons == ("stop",)
    assert found.num_tokens == (end + 2,)


def test_a_prompt_that_is_too_long_is_one_line_with_the_way_out(tmp_path):
    folder = save_tiny_model(tmp_path, max_position_embeddings=20)
    section = GenerationSection(max_new_tokens=30)
    backend = load_backend(str(folder), section)

    with pytest.raises(UserError, match=r"turn 1 comes to \d+ tokens, and .* reads 20 .* Shorten"):
        answers(backend, PROMPTS, section)
    with pytest.raises(UserError, match=r"turn 2 comes to .* Lower max_new_tokens"):
        answers(backend, [Prompt(turns=("hi", "x" * 10))], section)


def test_an_answer_near_the_end_of_the_context_is_cut_there(tmp_path):
    folder = save_tiny_model(tmp_path, max_position_embeddings=20)
    section = GenerationSection(max_new_tokens=30)
    prompts = [Prompt(turns=("hi",)), Prompt(turns=("hi hi hi",))]

    found = answers(load_backend(str(folder), section), prompts, section)

    for prompt, room in zip(prompts, (16, 10), strict=True):
        text, num, reason = singly(folder, prompt.turns[0], room)
        answer = found[prompt.prompt_id, 0]
        assert (answer.turns, answer.num_tokens) == ((text,), (num,))
        assert answer.finish_reasons == (reason,)


def test_the_header_says_what_answers_depend_on(model, tmp_path):
    section = GenerationSection(max_new_tokens=4, temperature_by_category="mt_bench")
    path = tmp_path / "a.jsonl"

    found = generate(load_backend(model, section), PROMPTS, section, path, system="tiny")

    header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert header["schema"] == "prefopt/answers/1"
    assert (header["system"], header["model"]) == ("tiny", model)
    assert header["decode"]["max_new_tokens"] == 4
    assert (header["decode"]["backend"], header["decode"]["dtype"]) == ("transformers", "float32")
    assert header["decode"]["temperature_by_category"]["stem"] == 0.1
    assert header["chat_template"] is not None
    assert set(header["versions"]) == {"prefopt", "torch", "transformers", "peft"}
    assert len(found) == len(PROMPTS)


def test_other_settings_or_prompts_are_no_resume(model, tmp_path):
    section = GenerationSection(max_new_tokens=4)
    path = tmp_path / "a.jsonl"
    generate(load_backend(model, section), PROMPTS, section, path, system="tiny")
    longer = GenerationSection(max_new_tokens=5, temperature=0.5)

    with pytest.raises(
        UserError,
        match=r"decode\.max_new_tokens was 4, is 5; decode\.temperature was 0\.0, is 0\.5",
    ):
        generate(load_backend(model, longer), PROMPTS, longer, path, system="tiny")
    with pytest.raises(UserError, match="prompts was"):
        generate(load_backend(model, section), PROMPTS[:2], section, path, system="tiny")


def test_other_weights_at_the_same_place_are_no_resume(tmp_path):
    section = GenerationSection(max_new_tokens=4)
    path, folder = tmp_path / "a.jsonl", tmp_path / "model"
    save_tiny_model(folder, seed=0)
    generate(load_backend(str(folder), section), PROMPTS, section, path, system="tiny")
    before = path.read_bytes()
    generate(load_backend(str(folder), section), PROMPTS, section, path, system="tiny")
    assert path.read_bytes() == before
    save_tiny_model(folder, seed=1)

    with pytest.raises(UserError, match="weights was"):
        generate(load_backend(str(folder), section), PROMPTS, section, path, system="tiny")


def test_a_file_of_something_else_is_left_as_it_is(model, tmp_path):
    section = GenerationSection(max_new_tokens=4)
    path = tmp_path / "notes.txt"
    path.write_text('{"mine": 1}\nno line end', encoding="utf-8")

    with pytest.raises(UserError, match="no file of answers"):
        generate(load_backend(model, section), PROMPTS, section, path, system="tiny")
    assert path.read_text(encoding="utf-8") == '{"mine": 1}\nno line end'


def test_a_resumed_file_is_that_of_a_run_without_interruption(model, tmp_path):
    section = GenerationSection(max_new_tokens=12, temperature=1.0, num_samples=2, batch_size=3)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    generate(load_backend(model, section), PROMPTS, section, whole, system="tiny")
    expected = whole.read_bytes()

    backend = load_backend(model, section)
    for cut in range(0, len(expected), 211):
        # A cut header is no file of answers yet.
        cut = cut if cut > expected.index(b"\n") else 0
        resumed.write_bytes(expected[:cut])
        generate(backend, PROMPTS, section, resumed, system="tiny")
        assert resumed.read_bytes() == expected


def test_shares_of_cut_and_empty_answers_are_counted(model, tmp_path):
    section = GenerationSection(max_new_tokens=3)
    found = generate(
        load_backend(model, section), PROMPTS, section, tmp_path / "a.jsonl", system="tiny"
    )

    outcome = outcome_of(found)

    cut = [singly(model, each.turns[0], 3)[2] == "length" for each in PROMPTS]
    tokens = [singly(model, each.turns[0], 3)[1] for each in PROMPTS]
    assert outcome.num_answers == len(PROMPTS)
    assert outcome.share_cut == sum(cut) / len(cut)
    assert outcome.mean_tokens == sum(tokens) / len(tokens)
