"""Tokenizers, their templates and their end-of-sequence tokens."""

import json
import shutil

import pytest

from prefopt.errors import UserError
from prefopt.models.section import ModelSection
from prefopt.models.tokenizer import load_tokenizer
from tests.support.runs import LORA, logged, run
from tests.support.tiny import (
    CHAT_TEMPLATE,
    character_tokenizer,
    save_tiny_model,
    write_jsonl,
    write_pairs,
)

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


def load(folder, **changes):
    return load_tokenizer(ModelSection(path=str(folder / "model"), **changes))


def refusal(folder, **changes):
    with pytest.raises(UserError) as refused:
        load(folder, **changes)
    message = str(refused.value)
    assert "\n" not in message
    return message


def rendered(tokenizer, **options):
    return tokenizer.apply_chat_template(CHAT, tokenize=False, **options)


def save_without(tokenizer, path, *, name):
    """The tokenizer in a folder, without one of its special tokens."""
    setattr(tokenizer, name, None)
    tokenizer.save_pretrained(path)
    return path


def test_the_tokenizers_own_template_is_the_default(folder):
    assert load(folder).chat_template == CHAT_TEMPLATE


def test_chatml_is_known_by_name(folder):
    text = rendered(load(folder, chat_template="chatml"))

    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"


@pytest.mark.parametrize("name", ["phi3", "qwen2_5"])
def test_templates_of_trl_are_known_by_name(folder, name):
    text = rendered(load(folder, chat_template=name))

    assert "hi" in text
    assert text != rendered(load(folder))


def test_a_template_can_be_a_file(folder, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")

    assert rendered(load(folder, chat_template=str(file))) == "[hi][ho]"


def test_a_missing_template_file_is_named(folder, tmp_path):
    message = refusal(folder, chat_template=str(tmp_path / "mine.jinja"))

    assert message.startswith(f"model.chat_template: no file {tmp_path / 'mine.jinja'}")


def test_an_unknown_template_is_answered_with_the_nearest(folder):
    message = refusal(folder, chat_template="chatlm")

    assert message.startswith(
        "model.chat_template: no template 'chatlm'. Did you mean 'chatml'? Known: "
    )


@pytest.mark.parametrize(
    "template", ["{% for message in messages %}", "{{ bos_token + messages[0]['content'] }}"]
)
def test_a_template_that_does_not_render_is_refused(folder, tmp_path, template):
    (tmp_path / "mine.jinja").write_text(template)
    model = {"path": str(folder / "model"), "chat_template": str(tmp_path / "mine.jinja")}
    rows = [{"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}]
    data = {"sources": [{"path": str(write_jsonl(tmp_path / "chats.jsonl", rows))}]}

    with pytest.raises(UserError) as refused:
        run(folder, str(tmp_path / "run"), model=model, data=data)

    assert "template" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_template_that_is_no_text_is_refused(folder, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_bytes(b"\xff\xfe\x00")

    assert "is not UTF-8 at byte 0" in refusal(folder, chat_template=str(file))


def test_the_end_of_sequence_can_be_named(folder):
    tokenizer = load(folder, eos_token="<u>")

    assert tokenizer.eos_token == "<u>"
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<u>")


@pytest.mark.parametrize("token", ["<|nothing|>", ""])
def test_an_unknown_end_of_sequence_is_refused(folder, token):
    assert refusal(folder, eos_token=token).startswith(f"model.eos_token: '{token}' is no token")


def test_a_tokenizer_without_end_of_sequence_is_refused(folder, tmp_path):
    path = save_without(character_tokenizer(), tmp_path, name="eos_token")

    message = refusal(folder, tokenizer=str(path))

    assert message.startswith("model.tokenizer: ")
    assert "no end-of-sequence token" in message
    assert "model.eos_token" in message


@pytest.mark.parametrize("adapter", [{}, {"adapter": LORA}])
def test_no_padding_token_is_needed(folder, tmp_path, adapter):
    path = shutil.copytree(folder / "model", tmp_path / "model")
    save_without(character_tokenizer(), path, name="pad_token")

    with_pad = run(folder, str(tmp_path / "with"), **adapter)
    without = run(folder, str(tmp_path / "without"), model={"path": str(path)}, **adapter)

    assert without.processing_class.pad_token is None
    assert logged(without, "loss") == logged(with_pad, "loss")


def test_a_tokenizer_may_lie_elsewhere(folder, tmp_path):
    character_tokenizer(chat_template=None).save_pretrained(tmp_path)

    assert load(folder, tokenizer=str(tmp_path)).chat_template is None


@pytest.mark.parametrize("key", ["tokenizer", "path"])
def test_a_missing_folder_is_named(tmp_path, key):
    values = {"path": str(tmp_path), key: str(tmp_path / "nowhere")}

    with pytest.raises(UserError, match=rf"^model\.{key}: no folder .*nowhere"):
        load_tokenizer(ModelSection(**values))


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    message = refusal(folder, tokenizer=str(tmp_path))

    assert message.startswith(f"model.tokenizer: no tokenizer in {tmp_path}")


def test_a_broken_tokenizer_is_refused(folder, tmp_path):
    path = shutil.copytree(folder / "model", tmp_path / "model")
    (path / "tokenizer.json").write_text('{"version"')

    assert refusal(folder, tokenizer=str(path)).startswith("model.tokenizer: no tokenizer in")


def test_code_that_lies_with_a_tokenizer_does_not_run(folder, tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (path / "config.json").write_text(json.dumps(config))
    settings = {
        "tokenizer_class": "MyTokenizer",
        "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]},
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")

    assert "model.trust_remote_code" in refusal(folder, tokenizer=str(path))
    assert not (tmp_path / "ran").exists()
