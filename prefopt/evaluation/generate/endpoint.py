"""Answers by an endpoint that speaks OpenAI's chat completions, several requests in flight."""

import os
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import openai

from prefopt.errors import UserError
from prefopt.evaluation.generate.base import Key, Request, messages_of
from prefopt.evaluation.generate.endpoint_section import EndpointSection
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.types import Answer

_NO_KEY = "none"
_MOST_CHARACTERS = 200


class EndpointBackend:
    """A model behind a URL."""

    chat_template: str | None = None
    """The endpoint renders messages itself."""
    weights: str | None = None
    """Nor does it say which these are."""

    def __init__(self, model: str, endpoint: EndpointSection, section: GenerationSection) -> None:
        """Prepare the requests; none is sent yet.

        Args:
            model: the name by which the endpoint knows it.
            endpoint: where it is.
            section: how it answers.

        Raises:
            UserError: if the variable that should hold the key is not set.
        """
        self.model = model
        self.decode: dict[str, Any] = {
            "backend": "openai_chat",
            **section.model_dump(mode="json", exclude={"batch_size"}),
            "extra_body": endpoint.extra_body,
        }
        self.versions = {"openai": openai.__version__}
        self._endpoint = endpoint
        self._section = section
        self._key = _key(endpoint)
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=self._key or _NO_KEY,
            timeout=endpoint.timeout,
            max_retries=endpoint.max_retries,
        )

    def answers(
        self, requests: Sequence[Request], done: Set[Key]
    ) -> Iterator[tuple[Request, Answer]]:
        """As they come. What is in flight when it has to end is waited for and yielded first.

        Raises:
            UserError: if a request fails for good; the next run goes on from there.
            KeyboardInterrupt: after Ctrl-C; a second one does not wait.
        """
        waiting = (request for request in requests if request.key not in done)
        running: dict[Future[Answer], Request] = {}
        ended: BaseException | None = None
        pool = ThreadPoolExecutor(self._endpoint.num_in_flight)
        try:
            while True:
                room = self._endpoint.num_in_flight - len(running)
                for request in islice(waiting, 0 if ended else room):
                    running[pool.submit(self._answer, request)] = request
                if not running:
                    break
                try:
                    finished = wait(running, return_when=FIRST_COMPLETED).done
                except KeyboardInterrupt as interrupt:
                    if isinstance(ended, KeyboardInterrupt):
                        raise
                    ended = interrupt
                    continue
                for future in finished:
                    request = running.pop(future)
                    error = future.exception()
                    if isinstance(error, UserError):
                        ended = ended or error
                        continue
                    yield request, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if ended is not None:
            raise ended

    def close(self) -> None:
        """Give back connections."""
        self._client.close()

    def _answer(self, request: Request) -> Answer:
        """All turns of one answer, one after another."""
        turns: list[str] = []
        finish_reasons: list[str] = []
        num_tokens: list[int] = []
        for turn in range(len(request.prompt.turns)):
            reply = self._ask(request, turns, request.seed + turn)
            if not reply.choices:
                raise UserError(
                    f"{self._endpoint.url}: a reply of {self.model} holds no choice. "
                    "Check that the endpoint speaks OpenAI's chat completions."
                )
            choice = reply.choices[0]
            turns.append(choice.message.content or "")
            finish_reasons.append(str(choice.finish_reason))
            if reply.usage is not None:
                num_tokens.append(int(reply.usage.completion_tokens))
        prompt_id, sample = request.key
        return Answer(
            prompt_id=prompt_id,
            turns=tuple(turns),
            sample=sample,
            num_tokens=tuple(num_tokens) if len(num_tokens) == len(turns) else (),
            finish_reasons=tuple(finish_reasons),
        )

    def _ask(self, request: Request, said: Sequence[str], seed: int) -> Any:
        """The endpoint's reply to one turn."""
        section = self._section
        messages: Any = messages_of(request.prompt, said, section.system)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": section.temperature_of(request.prompt),
            "seed": seed % (1 << 31),
            self._endpoint.token_limit_key: section.max_new_tokens,
        }
        if section.top_p < 1:
            body["top_p"] = section.top_p
        if section.stop:
            body["stop"] = list(section.stop)
        extra = dict(self._endpoint.extra_body)
        if section.top_k:
            extra["top_k"] = section.top_k
        try:
            return self._client.chat.completions.create(**body, extra_body=extra or None)
        except openai.OpenAIError as error:
            raise UserError(self._said(error)) from None

    def _said(self, error: openai.OpenAIError) -> str:
        """One line on what went wrong and the way out, without the key."""
        place = f"{self._endpoint.url}, model {self.model}"
        text = " ".join(str(error).split())
        if self._key:
            text = text.replace(self._key, "***")
        text = text[:_MOST_CHARACTERS].rstrip(".")
        if isinstance(error, openai.APITimeoutError):
            way_out = "Raise endpoint.timeout, or lower endpoint.num_in_flight"
        elif isinstance(error, openai.APIConnectionError):
            way_out = "Check the URL and that the server runs"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            way_out = "Put the name of the variable with the right key into endpoint.api_key_env"
        elif isinstance(error, openai.NotFoundError):
            way_out = "Check the model's name and the end of the URL, often /v1"
        elif isinstance(error, openai.BadRequestError):
            way_out = "Change the setting it names; endpoint.token_limit_key may be one"
        else:
            way_out = "Try later, or lower endpoint.num_in_flight"
        return f"{place}: {text}. {way_out}; the same command goes on with what is missing."


def _key(endpoint: EndpointSection) -> str | None:
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env)
    if not key:
        raise UserError(
            f"endpoint.api_key_env: the environment variable {endpoint.api_key_env} is not set. "
            "Set it to the key."
        )
    return key
