"""Token ids against TRL's own preprocessing of the same rows."""

import datasets
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.data.prepare import prepare_data
from tests.data.builders import CHATML, TIGHT, bpe_tokenizer, section, write_lines

# TRL itself uses arguments that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ids_of_trl(rows, tokenizer, tmp_path):
    from trl import DPOConfig, DPOTrainer

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=1, **shape)
    trainer = DPOTrainer(
        model=LlamaForCausalLM(config),
        ref_model=LlamaForCausalLM(config),
        args=DPOConfig(output_dir=str(tmp_path / "trl"), report_to=[], use_cpu=True, bf16=False),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [tuple(row[name] for name in names) for row in trainer.train_dataset]


def ids_of_prefopt(rows, tokenizer, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    store = prepare_data(section(tmp_path, path), tokenizer).train
    return [
        (record.prompt_ids.tolist(), *(ids.tolist() for ids in record.response_ids))
        for record in store
    ]


def chat(prompt, *turns):
    user = {"role": "user", "content": prompt}
    chosen, rejected = ([{"role": "assistant", "content": turn}] for turn in turns)
    return {"prompt": [user], "chosen": chosen, "rejected": rejected}


CHATS = [
    chat("what is four plus four", "four", "the cat"),
    chat("a person asks", "a question and\nthe answer", "sat on the mat."),
]
TEXTS = [
    {"prompt": "what is", "chosen": " four plus", "rejected": " the cat"},
    {"prompt": "a person asks\n", "chosen": "the mat", "rejected": "a question"},
]


def with_pad(tokenizer):
    tokenizer.pad_token = "</s>"
    return tokenizer


@pytest.mark.parametrize("adds_bos", [False, True])
def test_text_pairs_become_the_ids_of_trl(adds_bos, tmp_path):
    tokenizer = with_pad(bpe_tokenizer(chat_template=None, adds_bos=adds_bos))

    assert ids_of_prefopt(TEXTS, tokenizer, tmp_path) == ids_of_trl(TEXTS, tokenizer, tmp_path)


def test_chats_become_the_ids_of_trl(tmp_path):
    tokenizer = with_pad(bpe_tokenizer(chat_template=TIGHT))

    assert ids_of_prefopt(CHATS, tokenizer, tmp_path) == ids_of_trl(CHATS, tokenizer, tmp_path)


def test_where_the_template_goes_on_after_the_end_trl_scores_what_no_model_writes(tmp_path):
    tokenizer = with_pad(bpe_tokenizer(chat_template=CHATML))
    line_break = tokenizer("\n")["input_ids"]

    ours = ids_of_prefopt(CHATS, tokenizer, tmp_path)

    # The line break after <|im_end|> is the only difference.
    assert [
        (prompt, chosen + line_break, rejected + line_break) for prompt, chosen, rejected in ours
    ] == ids_of_trl(CHATS, tokenizer, tmp_path)
