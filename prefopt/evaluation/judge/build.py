"""From a section to the judge that it describes."""

import importlib
from typing import Any

from prefopt.evaluation.judge.base import Judge
from prefopt.evaluation.judge.section import AnyJudgeSection

_PACKAGE = "prefopt.evaluation.judge"
# Each backend's libraries are imported when it is used, and only then.
_CLASSES = {
    "OpenaiChatSection": ("openai_chat", "OpenaiChatJudge"),
    "DecisionsSection": ("decisions", "TypedEndpointJudge"),
    "SystemOneSection": ("decisions", "TypedEndpointJudge"),
    "HfDecisionSection": ("hf_decision", "HfDecisionJudge"),
    "RewardModelSection": ("reward_model", "RewardModelJudge"),
    "RuleSection": ("rule", "RuleJudge"),
    "ReplaySection": ("replay", "ReplayJudge"),
}


def build_judge(section: AnyJudgeSection) -> Judge:
    """The judge, ready to be asked; close it after use.

    Raises:
        UserError: if a model, a file or a key is missing.
        ModuleNotFoundError: if an endpoint is asked and the extra `judge` is not installed.
    """
    module, name = _CLASSES[type(section).__name__]
    build: Any = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
    judge: Judge = build(section)
    return judge
