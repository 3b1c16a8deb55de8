"""Where an endpoint is and how it is asked."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from prefopt.errors import UserError
from prefopt.section import Section


class EndpointSection(Section):
    """Any endpoint that answers chat completions as OpenAI's does: vLLM, SGLang and others."""

    url: str
    """Such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """NAME of the environment variable that holds the key; null for endpoints that ask for none."""
    num_in_flight: int = Field(default=32, ge=1, le=1024)
    """Requests at the same time."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds after which one attempt is given up."""
    max_retries: int = Field(default=5, ge=0)
    """Further attempts after a lost connection, a timeout or status 408, 409, 429 or 5xx; waits as
    Retry-After says, else longer each time."""
    token_limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How it calls the limit of tokens; newer models of OpenAI know the longer name only."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as chat_template_kwargs: {enable_thinking: false}."""

    @field_validator("url")
    @classmethod
    def _is_a_url_without_key(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint.url: {url!r} is no URL. Write http://HOST:PORT/v1.")
        if parts.username or parts.password:
            raise UserError(
                "endpoint.url must hold no user or password. Put the key into an environment "
                "variable and its name into endpoint.api_key_env."
            )
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and (not name.replace("_", "").isalnum() or len(name) > 64):
            # The value may be a key, so it is not repeated.
            raise UserError(
                "endpoint.api_key_env must be the NAME of an environment variable, not the key."
            )
        return name
