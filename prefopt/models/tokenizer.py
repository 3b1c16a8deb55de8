"""The tokenizer of a recipe, with its chat template and end-of-sequence token."""

from importlib import resources
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefopt.errors import UserError, did_you_mean
from prefopt.models.section import ModelSection

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer, ready to render and encode.

    Raises:
        UserError: if there is none at the path, its template or token does not exist, or it has no
            end-of-sequence token.
    """
    path = section.tokenizer or section.path
    key = "model.tokenizer" if section.tokenizer else "model.path"
    check_local_folder(path, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path,
            # The revision is that of the model; a tokenizer of its own has none.
            revision=None if section.tokenizer else section.revision,
            trust_remote_code=section.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: no tokenizer in {path}. {reason(error)}") from error
    if section.chat_template is not None:
        tokenizer.chat_template = _chat_template(section.chat_template)
    if section.eos_token is not None:
        if tokenizer.convert_tokens_to_ids(section.eos_token) in (None, tokenizer.unk_token_id):
            raise UserError(
                f"model.eos_token: '{section.eos_token}' is no token of {path}. "
                "Name one that the tokenizer has."
            )
        tokenizer.eos_token = section.eos_token
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{key}: the tokenizer in {path} has no end-of-sequence token, so the model could not "
            "learn to stop. Name one of its tokens in model.eos_token."
        )
    return tokenizer


def check_local_folder(path: str, key: str) -> None:
    """Refuse a path that is meant for this machine but is not there.

    Raises:
        UserError: with what the key should hold.
    """
    if Path(path).exists():
        return
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{key}: no folder {path}. Give a folder that exists or a hub id.")


def first_line(error: Exception) -> str:
    """What a library said, without the rest of its page."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def reason(error: Exception) -> str:
    """What a library said about a folder, or what to do where that is known."""
    if "trust_remote_code" in str(error):
        return (
            "It brings Python code of its own. Read that code; if you trust it, set "
            "model.trust_remote_code: true."
        )
    return first_line(error)


def _chat_template(name: str) -> str:
    if name == "chatml":
        return CHATML
    if name.endswith(".jinja") or Path(name).is_file():
        return _template_in(Path(name))
    folder = resources.files("trl").joinpath("chat_templates")
    names = [entry.name.removesuffix(".jinja") for entry in folder.iterdir()]
    known = [entry for entry in names if "training" not in entry and entry != "README.md"]
    if name not in known:
        hint = did_you_mean(name, ["chatml", *known])
        raise UserError(f"model.chat_template: no template '{name}'. {hint}")
    return folder.joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def _template_in(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"model.chat_template: no file {file}. Give a .jinja file or a name.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"model.chat_template: {file} is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from None
