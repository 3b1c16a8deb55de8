"""The decision pipeline of transformers as judge: one forward pass per question."""

import threading
from typing import Any

from safetensors import SafetensorError
from transformers import pipeline

from prefopt.errors import UserError
from prefopt.evaluation.judge.base import as_text
from prefopt.evaluation.judge.local_model import device_of, hush_loading
from prefopt.evaluation.judge.section import HfDecisionSection
from prefopt.evaluation.judge.typed import QUESTION_NAME, TypedQuestions
from prefopt.evaluation.types import Kind, Question, Reply
from prefopt.models.tokenizer import check_local_folder, first_line


class HfDecisionJudge:
    """A causal language model whose next-token logits of the options' letters are read.

    The probabilities are a softmax over the letters alone, so there is no label mass.

    Args:
        section: which model.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, section: HfDecisionSection) -> None:
        check_local_folder(section.model, "judge.model")
        device = device_of(section.device)
        hush_loading()
        try:
            self._decide = pipeline(
                "decision",
                model=section.model,
                revision=section.revision,
                dtype=section.dtype,
                device=device,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"judge.model: cannot load {section.model} as a causal language model. "
                f"{first_line(error)}"
            ) from error
        self._questions = TypedQuestions(section)
        # One model on one device: a second forward at the same time would gain nothing.
        self._lock = threading.Lock()
        self.name = section.name or section.model.rstrip("/").rpartition("/")[2]
        self.kinds: frozenset[Kind] = frozenset({"pair", "score"})
        self.levels = section.levels
        self.num_in_flight = 1
        self.max_calls = section.max_calls
        self.identity: dict[str, Any] = {
            "backend": section.backend,
            "model": section.model,
            "revision": section.revision,
            "dtype": str(self._decide.model.dtype).removeprefix("torch."),
            "prompts": self._questions.identity,
            "levels": list(section.levels),
        }

    def rendered(self, question: Question) -> str:
        """State and question."""
        return as_text(self._questions.system_one(question))

    def ask(self, question: Question) -> Reply:
        """The probabilities of the options.

        Raises:
            UserError: if the tokenizer has no token for each letter.
        """
        try:
            with self._lock:
                answers: Any = self._decide(self._questions.system_one(question))
        except ValueError as error:
            raise UserError(f"judge.model: {first_line(error)} Choose another model.") from error
        return self._questions.reply(question, answers[QUESTION_NAME])

    def close(self) -> None:
        """Let the weights go."""
        del self._decide
