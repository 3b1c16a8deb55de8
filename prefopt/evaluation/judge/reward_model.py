"""A reward model as judge: a sequence classifier with one logit."""

import threading
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefopt.errors import UserError
from prefopt.evaluation.judge.base import as_text, sigmoid
from prefopt.evaluation.judge.local_model import device_of, hush_loading
from prefopt.evaluation.judge.section import RewardModelSection
from prefopt.evaluation.judge.texts import check_turns
from prefopt.evaluation.types import (
    Answer,
    Kind,
    Message,
    PairQuestion,
    Prompt,
    Question,
    Reply,
)
from prefopt.models.tokenizer import check_local_folder, reason


class RewardModelJudge:
    """P(first better) = sigmoid(reward of the first - reward of the second): Bradley and Terry.

    Rewards have no zero and no scale that prompts share, so there are no scores, only pairs. The
    reward of an answer is computed once, whatever it is compared with.

    Args:
        section: which model.

    Raises:
        UserError: if it cannot be loaded, has no chat template or more than one logit.
    """

    def __init__(self, section: RewardModelSection) -> None:
        check_local_folder(section.model, "judge.model")
        self._tokenizer, self._model = _load(section)
        positions = getattr(self._model.config, "max_position_embeddings", None)
        self._max_length = section.max_length or positions
        self._lock = threading.Lock()
        self._rewards: dict[str, float | str] = {}
        self.num_forwards = 0
        self.name = section.name or section.model.rstrip("/").rpartition("/")[2]
        self.kinds: frozenset[Kind] = frozenset({"pair"})
        self.levels: tuple[float, ...] = ()
        self.num_in_flight = 1
        self.max_calls = section.max_calls
        self.identity: dict[str, Any] = {
            "backend": section.backend,
            "model": section.model,
            "revision": section.revision,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "max_length": self._max_length,
        }

    def rendered(self, question: Question) -> str:
        """Both dialogues."""
        assert isinstance(question, PairQuestion)
        check_turns(question)
        shown = (question.first, question.second)
        return as_text([_dialogue(question.prompt, each, question.turn) for each in shown])

    def ask(self, question: Question) -> Reply:
        """From the rewards of both answers; missing if one is too long for the model."""
        assert isinstance(question, PairQuestion)
        rewards: list[float] = []
        with self._lock:
            for answer in (question.first, question.second):
                reward = self._reward(_dialogue(question.prompt, answer, question.turn))
                if isinstance(reward, str):
                    return Reply(status="parse_error", problem=reward)
                rewards.append(reward)
        first = sigmoid(rewards[0] - rewards[1])
        raw = f"rewards {rewards[0]:.6g}, {rewards[1]:.6g}"
        return Reply(status="ok", probs=(first, 1 - first, 0.0), raw=raw)

    def close(self) -> None:
        """Let the weights go."""
        del self._model

    def _reward(self, dialogue: list[Message]) -> float | str:
        """The logit, or why there is none."""
        key = as_text(dialogue)
        if key not in self._rewards:
            self._rewards[key] = self._compute(dialogue)
        return self._rewards[key]

    def _compute(self, dialogue: list[Message]) -> float | str:
        inputs = self._tokenizer.apply_chat_template(
            dialogue, tokenize=True, return_dict=True, return_tensors="pt"
        )
        length = inputs["input_ids"].shape[1]
        if self._max_length is not None and length > self._max_length:
            return f"prompt and answer have {length} tokens, the model takes {self._max_length}"
        self.num_forwards += 1
        with torch.inference_mode():
            reward = float(self._model(**inputs.to(self._model.device)).logits[0, 0])
        return reward if abs(reward) < float("inf") else f"the reward is {reward}"


def _load(section: RewardModelSection) -> tuple[Any, Any]:
    device = device_of(section.device)
    hush_loading()
    where = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(section.model, **where)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            section.model, dtype=section.dtype, output_loading_info=True, **where
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = reason(error).replace("model.trust_remote_code", "judge.trust_remote_code")
        raise UserError(f"judge.model: cannot load {section.model}. {said}") from error
    if info["missing_keys"]:
        raise UserError(
            f"judge.model: {section.model} lacks {min(info['missing_keys'])}: it is no reward "
            "model. Give a sequence classifier with one logit."
        )
    if model.config.num_labels != 1:
        raise UserError(
            f"judge.model: {section.model} has {model.config.num_labels} logits, a reward model "
            "has one."
        )
    if tokenizer.chat_template is None:
        raise UserError(f"judge.model: the tokenizer of {section.model} has no chat template.")
    return tokenizer, model.to(device).eval()


def _dialogue(prompt: Prompt, answer: Answer, turn: int) -> list[Message]:
    messages = list(prompt.context)
    for request, reply in zip(prompt.turns[:turn], answer.turns[:turn], strict=True):
        messages.append(Message(role="user", content=request))
        messages.append(Message(role="assistant", content=reply))
    return messages
