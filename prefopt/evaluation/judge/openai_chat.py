"""A chat model as judge: log-probs of its label, or shares of the verdicts in its text."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from prefopt.evaluation.judge.base import as_text, normalised, one_line
from prefopt.evaluation.judge.endpoint import CallFailed, Endpoint, Posted, RequestRefused
from prefopt.evaluation.judge.section import OpenaiChatSection
from prefopt.evaluation.judge.template_files import load_prompts
from prefopt.evaluation.judge.templates import Prompts
from prefopt.evaluation.judge.verdict import (
    label_position,
    label_probs,
    last_label,
    last_rating,
    last_verdict,
    on_levels,
)
from prefopt.evaluation.types import Kind, PairQuestion, Question, Reply

_LONGEST_REASON = 2048

Mode = Literal["logprobs", "text"]


class OpenaiChatJudge:
    """A chat model behind an OpenAI-compatible endpoint.

    Args:
        section: how to ask it.

    Raises:
        UserError: if a file of prompts or a key is missing.
    """

    def __init__(self, section: OpenaiChatSection) -> None:
        self._section = section
        self._lock = threading.Lock()
        self._mode: Mode | None = None if section.mode == "auto" else section.mode
        modes: tuple[Mode, ...] = ("logprobs", "text") if self._mode is None else (self._mode,)
        self._prompts = {mode: _prompts(section, mode) for mode in modes}
        self.name = section.name or section.model
        self.kinds: frozenset[Kind] = self._prompts[modes[0]].kinds
        self.levels = section.levels
        self.num_in_flight = section.num_in_flight
        self.max_calls = section.max_calls
        self.identity: dict[str, Any] = {
            "backend": section.backend,
            "model": section.model,
            "mode": section.mode,
            "prompts": {mode: prompts.identity for mode, prompts in self._prompts.items()},
            "labels": list(self._prompts[modes[0]].pair_labels),
            "levels": list(section.levels),
            "params": {mode: self._params(mode) for mode in modes},
            "num_samples": section.num_samples if "text" in modes else 1,
        }
        self._endpoint = Endpoint(section)

    def rendered(self, question: Question) -> str:
        """The messages; in mode auto those that are sent first."""
        mode = next(iter(self._prompts))
        return as_text(self._prompts[mode].messages(question))

    def close(self) -> None:
        """Close all connections."""
        self._endpoint.close()

    def ask(self, question: Question) -> Reply:
        """By log-probs or text; in mode auto the first reply decides which.

        Raises:
            JudgeUnusable: if no question can be answered.
        """
        try:
            if self._mode is None:
                # The others wait until it is known how to ask.
                with self._lock:
                    if self._mode is None:
                        return self._ask_first(question)
            return self._ask(question, self._mode)
        except CallFailed as failed:
            return Reply(
                status="api_error", problem=failed.problem, num_attempts=failed.num_attempts
            )

    def _ask_first(self, question: Question) -> Reply:
        """Ask for log-probs; where there are none, by text from now on."""
        try:
            reply = self._ask(question, "logprobs")
        except RequestRefused as refused:
            if "logprob" not in refused.said:
                raise
            reply = Reply(status="no_logprobs", problem=refused.said)
        if reply.status in ("ok", "parse_error"):
            self._mode = "logprobs"
        if reply.status != "no_logprobs":
            return reply
        logging.getLogger(__name__).warning(
            "judge %s: the endpoint gives no log-probs (%s). From now on it is asked for a verdict "
            "in text, %d times per question; probabilities are shares of the verdicts.",
            self.name,
            reply.problem,
            self._section.num_samples,
        )
        self._mode = "text"
        return self._ask(question, "text")

    def _ask(self, question: Question, mode: Mode) -> Reply:
        prompts = self._prompts[mode]
        body = {
            "model": self._section.model,
            "messages": list(prompts.messages(question)),
            **self._params(mode),
        }
        is_pair = isinstance(question, PairQuestion)
        if mode == "logprobs":
            posted = self._endpoint.post("/chat/completions", body)
            labels = prompts.pair_labels if is_pair else prompts.level_labels
            reply = _by_logprobs(self._read(posted), labels, is_bare=prompts.is_bare)
            if is_pair and len(labels) == 2 and reply.status == "ok":
                reply = replace(reply, probs=(*reply.probs, 0.0))
            return reply
        replies = [
            self._read(self._endpoint.post("/chat/completions", body))
            for _ in range(self._section.num_samples)
        ]
        read = [self._distribution(each["text"], prompts, is_pair) for each in replies]
        return _by_text(replies, read)

    def _distribution(self, text: str, prompts: Prompts, is_pair: bool) -> tuple[float, ...] | None:
        """What one reply's text says; None if nothing that can be read."""
        if not is_pair:
            rating = last_rating(text)
            return None if rating is None else on_levels(rating, self.levels)
        find = last_label if prompts.is_bare else last_verdict
        chosen = find(text, prompts.pair_labels)
        if chosen is None:
            return None
        return tuple(float(index == chosen) for index in range(3))

    def _read(self, posted: Posted) -> dict[str, Any]:
        """What the first choice of a reply holds, in plain words."""
        choices = posted.body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise CallFailed("the reply holds no message", posted.num_attempts)
        message = choice["message"]
        logprobs = choice.get("logprobs")
        return {
            "text": self._endpoint.without_key(str(message.get("content") or "")),
            "refusal": _refusal(choice, message),
            "finish_reason": choice.get("finish_reason"),
            "tokens": logprobs.get("content") if isinstance(logprobs, dict) else None,
            "num_attempts": posted.num_attempts,
            "usage": posted.usage,
        }

    def _params(self, mode: Mode) -> dict[str, Any]:
        """Everything of the request that is neither model nor messages."""
        section = self._section
        is_bare = self._prompts[mode].is_bare
        limit = section.max_tokens or (1 if is_bare else _LONGEST_REASON)
        params: dict[str, Any] = {section.token_limit_key: limit}
        temperature = section.temperature
        if temperature == "auto":
            temperature = 1.0 if mode == "logprobs" or section.num_samples > 1 else 0.0
        if temperature != "omit":
            params["temperature"] = temperature
        if mode == "logprobs":
            params |= {"logprobs": True, "top_logprobs": section.top_logprobs}
        return {**params, **section.extra_body}


def _prompts(section: OpenaiChatSection, mode: Mode) -> Prompts:
    return load_prompts(
        section.templates,
        is_bare=mode == "logprobs",
        levels=section.levels,
        labels=section.labels,
    )


def _refusal(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str | None:
    if message.get("refusal"):
        return one_line(f"refused: {message['refusal']}")
    if choice.get("finish_reason") == "content_filter":
        return "stopped by a content filter"
    return None


def _by_logprobs(read: Mapping[str, Any], labels: Sequence[str], *, is_bare: bool) -> Reply:
    about: dict[str, Any] = {
        "raw": read["text"],
        "num_attempts": read["num_attempts"],
        "usage": read["usage"],
    }
    if read["refusal"]:
        return Reply(status="refusal", problem=read["refusal"], **about)
    tokens = read["tokens"]
    if not tokens or any(not isinstance(each, dict) for each in tokens):
        if not read["text"] and tokens is not None:
            return Reply(status="parse_error", problem="the reply is empty", **about)
        return Reply(status="no_logprobs", problem="the reply holds no log-probs", **about)
    texts = [str(each.get("token", "")) for each in tokens]
    position = label_position(texts, labels, is_bare=is_bare)
    if position is None:
        return Reply(status="parse_error", problem=_no_label(read, labels), **about)
    top = tokens[position].get("top_logprobs")
    if not top:
        return Reply(status="no_logprobs", problem="the label has no top_logprobs", **about)
    try:
        found = label_probs(top, labels)
    except (KeyError, TypeError, ValueError):
        problem = "top_logprobs are no list of tokens with numbers"
        return Reply(status="parse_error", problem=problem, **about)
    if found.probs is None:
        problem = f"none of {', '.join(labels)} is among the {len(top)} likeliest tokens"
        return Reply(status="parse_error", problem=problem, label_mass=0.0, **about)
    return Reply(status="ok", probs=found.probs, label_mass=found.mass, **about)


def _no_label(read: Mapping[str, Any], labels: Sequence[str]) -> str:
    if read["finish_reason"] == "length":
        return "cut before its verdict; raise judge.max_tokens"
    return (
        f"no single token of the reply is its verdict, one of {', '.join(labels)}; if the "
        "tokenizer splits a label, set judge.mode: text"
    )


def _by_text(
    replies: Sequence[Mapping[str, Any]], distributions: Sequence[tuple[float, ...] | None]
) -> Reply:
    """Shares of the verdicts of all replies that can be read."""
    good = [
        each
        for each, read in zip(distributions, replies, strict=True)
        if each is not None and not read["refusal"]
    ]
    usage: dict[str, int] = {}
    for read in replies:
        for key, count in read["usage"].items():
            usage[key] = usage.get(key, 0) + count
    about: dict[str, Any] = {
        "raw": "\n---\n".join(read["text"] for read in replies),
        "num_attempts": sum(read["num_attempts"] for read in replies),
        "usage": usage,
    }
    if not good:
        refusals = [read["refusal"] for read in replies if read["refusal"]]
        if refusals:
            return Reply(status="refusal", problem=refusals[0], **about)
        return Reply(status="parse_error", problem=_unread(replies[0]), **about)
    probs = normalised([sum(column) for column in zip(*good, strict=True)])
    assert probs is not None
    return Reply(status="ok", probs=probs, **about)


def _unread(read: Mapping[str, Any]) -> str:
    if read["finish_reason"] == "length":
        return "cut before its verdict; raise judge.max_tokens"
    return "no verdict in the reply" if read["text"] else "the reply is empty"
