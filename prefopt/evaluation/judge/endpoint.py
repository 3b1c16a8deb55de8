"""Posting to an OpenAI-compatible endpoint: retries, and errors in one line without the key.

Retries, waiting as Retry-After says and time limits are those of the openai package.
"""

import json
import os
import re
from dataclasses import dataclass
from typing import Any

from openai import (
    APIConnectionError,
    APIError,
    APIResponse,
    APIStatusError,
    APITimeoutError,
    OpenAI,
    OpenAIError,
)

from prefopt.errors import UserError
from prefopt.evaluation.judge.base import JudgeUnusable, one_line
from prefopt.evaluation.judge.section import EndpointSection

# A single question may be too long while all others are answered.
_ABOUT_LENGTH = re.compile(
    r"context.?(length|window)|too (long|many tokens)|maximum.{0,20}tokens|prompt is longer",
    re.IGNORECASE,
)
_NO_KEY = "none"


class _Raw(APIResponse[object]):
    """The reply as it came, with how often it had to be asked for."""


class CallFailed(Exception):
    """One question got no reply; others may."""

    def __init__(self, problem: str, num_attempts: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.num_attempts = num_attempts


class RequestRefused(JudgeUnusable):
    """A status 4xx that any other question would get, too."""

    def __init__(self, line: str, said: str) -> None:
        super().__init__(line)
        self.said = said
        """What the server said about it."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A reply in JSON."""

    body: dict[str, Any]
    num_attempts: int

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, as the server counts them."""
        counted = self.body.get("usage")
        counts = counted.items() if isinstance(counted, dict) else ()
        return {key: value for key, value in counts if type(value) is int}


class Endpoint:
    """Where a judge's questions go.

    Raises:
        UserError: if the section names a key's variable that is not set.
    """

    def __init__(self, section: EndpointSection) -> None:
        self._section = section
        self._key = _key_of(section)
        try:
            self._client = OpenAI(
                api_key=self._key,
                base_url=section.base_url,
                timeout=section.timeout,
                max_retries=section.max_retries,
            )
        except OpenAIError as error:
            raise UserError(f"judge.base_url: {self.clean(str(error))}") from None
        self._url = str(self._client.base_url).rstrip("/")

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def clean(self, text: str) -> str:
        """Text in one line, without the key."""
        return one_line(self.without_key(text))

    def without_key(self, text: str) -> str:
        """Text in which asterisks stand for the key."""
        return text if self._key == _NO_KEY else text.replace(self._key, "***")

    def post(self, path: str, body: dict[str, Any]) -> Posted:
        """Send JSON to a path below the base URL.

        Raises:
            CallFailed: after all attempts, or if this question alone cannot be answered.
            JudgeUnusable: if no other question would fare better.
        """
        try:
            response = self._client.post(path, body=body, cast_to=_Raw)
        except APIStatusError as error:
            raise self._status_error(error) from None
        except APITimeoutError as error:
            line = f"no reply within {self._section.timeout:g} seconds"
            raise CallFailed(line, _attempts(error)) from None
        except APIConnectionError as error:
            cause = self.clean(str(error.__cause__ or error)).rstrip(".")
            raise JudgeUnusable(
                f"judge: cannot reach {self._shown_url}: {cause}. Is the server running, and is "
                "judge.base_url right?"
            ) from None
        num_attempts = response.retries_taken + 1
        try:
            value = json.loads(response.text())
        except ValueError:
            text = self.clean(response.text())[:100]
            raise CallFailed(f"the reply is no JSON: {text!r}", num_attempts) from None
        if not isinstance(value, dict):
            raise CallFailed("the reply is no JSON object", num_attempts)
        return Posted(value, num_attempts)

    @property
    def _shown_url(self) -> str:
        """The base URL without a user's name and password."""
        return re.sub(r"//[^/@]*@", "//", self._url)

    def _status_error(self, error: APIStatusError) -> Exception:
        said = self.clean(_message(error))
        status = error.status_code
        if status >= 500 or status in (408, 409, 429) or _ABOUT_LENGTH.search(said):
            return CallFailed(f"status {status}: {said}", _attempts(error))
        line = f"judge: {self._shown_url} answers with status {status}: {said}"
        return RequestRefused(f"{line.rstrip('.')}. {self._way_out(status, said)}", said)

    def _way_out(self, status: int, said: str) -> str:
        section = self._section
        if status in (401, 403):
            return f"Is the key in the environment variable {section.api_key_env} right?"
        if status == 404:
            return f"Is judge.model '{section.model}' right, and does judge.base_url end in /v1?"
        if "max_tokens" in said:
            return "Set judge.token_limit_key: max_completion_tokens."
        if "temperature" in said:
            return "Set judge.temperature: omit."
        if "logprobs" in said:
            return "Lower judge.top_logprobs, or set judge.mode: text."
        return "Change the judge's section."


def _key_of(section: EndpointSection) -> str:
    key = os.environ.get(section.api_key_env, "").strip()
    if key:
        return key
    is_asked_for = "api_key_env" in section.model_fields_set
    if section.base_url is None or is_asked_for:
        raise UserError(
            f"judge.api_key_env: the environment variable {section.api_key_env} is not set. "
            "Export the key under that name."
        )
    return _NO_KEY


def _message(error: APIStatusError) -> str:
    """What the server said, without the status and the braces of the package's own text."""
    body = error.body
    if isinstance(body, dict):
        said = body.get("message") or body.get("detail") or body.get("error") or body
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return error.response.text or error.message


def _attempts(error: APIError) -> int:
    """How often it was tried, by the header with which the package counts."""
    return int(error.request.headers.get("x-stainless-retry-count", 0)) + 1
