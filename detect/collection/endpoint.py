"""One request to an OpenAI-compatible endpoint that is not trusted: bounded in time, bytes and tries.

Whatever an endpoint answers ends in an `Answer`: a response, or an error in words. Redirects are not followed, cookies
are not kept, bodies are read up to a bound and not decompressed, and nothing of them is run or shown raw. What repeats
the API key is no answer, and the key is cut out of every complaint, so that no journal and no message holds it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from detect.conversation import text_of
from detect.strict_json import TOO_DEEP, parse_object
from watermark.errors import InputError, MissingExtraError, UsageError, printable
from watermark.keys import Secret

if TYPE_CHECKING:
    import httpx

__all__ = ["Answer", "Endpoint", "FatalAnswerError"]

#: Bytes of one reply that are read; an answer of 100,000 tokens with log-probabilities is some 20 MB.
_MAX_BYTES: Final = 32 << 20

#: Arrays and objects inside one another in log-probabilities that are taken: those of the known forms are 5. What can
#: hardly be parsed here might not be parsed where the journal is read.
_DEEPEST: Final = 16

#: Statuses after which the same request may succeed.
_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})

#: Statuses that every further request would meet as well.
_FATAL: Final = frozenset({401, 403, 404, 405})

#: Seconds that a server's Retry-After is believed.
_LONGEST_WAIT: Final = 120.0


class FatalAnswerError(UsageError):
    """The endpoint refuses in a way that no further request would change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one request."""

    text: str
    """The response; empty after an error."""
    error: str | None
    """In words; None for a response."""
    finish_reason: str | None = None
    model: str | None = None
    """As the endpoint names it."""
    system_fingerprint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: list[Any] | None = None
    status: int | None = None
    """Of the last try; None where there was no reply."""
    tries: int = 1
    unread: int = 0
    """Tries among them that may have been paid for all the same: the request was taken, and no answer could be read."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where and how to ask.

    Raises:
        UsageError: the address is no http or https address, or holds a user or a password.
    """

    url: str
    """Base address, such as https://host/v1."""
    model: str
    kind: str = "chat"
    """"chat" or "completions"."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of every request: temperature, top_p, max_tokens, ..."""
    logprobs: int | None = None
    """Log-probabilities of so many likeliest tokens are asked for."""
    key: Secret | None = field(default=None, repr=False)
    retries: int = 6
    seconds: float = 120.0
    """For one try, from the connection to the last byte."""
    backoff: float = 1.0
    """Seconds before the first retry; twice as many before each next."""

    def __post_init__(self) -> None:
        scheme, _, rest = self.url.partition("://")
        if scheme not in ("http", "https") or not rest or "@" in rest.split("/")[0]:
            raise UsageError(
                f"{printable(self.url, 200)}: expected an address such as https://host/v1, without a user or password"
            )
        if self.kind not in ("chat", "completions"):
            raise UsageError(f"kind: expected chat or completions, got {printable(self.kind, 40)!r}")
        if self.key is not None and scheme == "http" and not _is_local(rest):
            raise UsageError("the API key would go over plain http to another machine: use https")

    def client(self, connections: int) -> httpx.AsyncClient:
        """Return a client for this endpoint.

        Raises:
            MissingExtraError: httpx is not installed.
        """
        try:
            import httpx
        except ImportError:
            raise MissingExtraError("collecting needs httpx: pip install 'taggant[collect]'") from None
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "taggant"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key.reveal().decode()}"
        return httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,
            timeout=httpx.Timeout(self.seconds, connect=min(20.0, self.seconds), pool=None),
            limits=httpx.Limits(max_connections=connections),
            # None is kept: they would grow from reply to reply.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            # What goes to this machine goes through no proxy, which may be on another.
            trust_env=not _is_local(self.url.partition("://")[2]),
        )

    def body(self, prompt: str, sample: int) -> dict[str, Any]:
        """Return a request's JSON; a seed in the sampling goes up by one with each sample of a prompt."""
        body: dict[str, Any] = {"model": self.model, **self.sampling, "stream": False, "n": 1}
        if isinstance(body.get("seed"), int):
            body["seed"] += sample
        if self.kind == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
            if self.logprobs:
                body |= {"logprobs": True, "top_logprobs": self.logprobs}
        else:
            body["prompt"] = prompt
            if self.logprobs:
                body["logprobs"] = self.logprobs
        return body

    async def ask(self, client: httpx.AsyncClient, prompt: str, sample: int) -> Answer:
        """Ask until there is an answer, the tries are over, or another would be of no use.

        Raises:
            FatalAnswerError: no request of this kind will be answered.
        """
        started = time.monotonic()
        answer, unread = Answer(text="", error="not asked", tries=0), 0
        for tried in range(1, self.retries + 2):
            answer, wait = await self._try(client, self.body(prompt, sample))
            unread += answer.unread
            seconds = round(time.monotonic() - started, 3)
            answer = replace(answer, tries=tried, unread=unread, seconds=seconds)
            if answer.error is None or wait is None or tried > self.retries:
                break
            # A little of chance keeps the workers apart.
            pause = max(wait, self.backoff * 2 ** (tried - 1))
            await asyncio.sleep(min(_LONGEST_WAIT, pause) * random.uniform(1.0, 1.25))  # noqa: S311
        return answer

    async def _try(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Answer, float | None]:
        """Return an answer, and how many seconds to wait at least before another try; None for no other."""
        import httpx

        path = "/chat/completions" if self.kind == "chat" else "/completions"
        try:
            async with asyncio.timeout(self.seconds):
                async with client.stream("POST", self.url.rstrip("/") + path, json=body) as response:
                    status, headers = response.status_code, response.headers
                    if 300 <= status < 400:
                        raise FatalAnswerError(
                            f"{printable(self.url, 200)}: redirects (HTTP {status}) to "
                            f"{self._hushed(headers.get('location', 'nowhere'))}; redirects are not followed: give "
                            "the address itself"
                        )
                    content = await _bounded(response)
        except TimeoutError:
            return Answer(text="", error=f"no answer within {self.seconds:g} seconds", unread=1), 0.0
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Answer(text="", error=f"no answer: {type(error).__name__}"), 0.0
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Answer(text="", error=f"no answer: {type(error).__name__}", unread=1), 0.0
        except InputError as error:
            return Answer(text="", error=str(error), status=status, unread=int(status == 200)), 0.0
        if status in _FATAL:
            raise FatalAnswerError(
                f"{printable(self.url, 200)}: HTTP {status}: {self._complaint(content)}. Check the address, --model "
                "and the API key"
            )
        if status != 200:
            answer = Answer(text="", error=f"HTTP {status}: {self._complaint(content)}", status=status)
            return answer, _retry_after(headers.get("retry-after")) if status in _RETRIED else None
        try:
            answer = _parsed(content, self.kind)
            if self.key is not None and _repeats(answer, self.key.reveal().decode()):
                raise InputError("the reply repeats the API key")
        except InputError as error:
            return Answer(text="", error=f"not an answer: {error}", status=status, unread=1), 0.0
        return answer, None

    def _complaint(self, content: bytes) -> str:
        """Return what a refusal says, made printable."""
        try:
            said: object = parse_object(content).get("error")
            said = said.get("message") if isinstance(said, dict) else said
        except InputError:
            said = None
        if not isinstance(said, str):
            said = content[:4096].decode("utf-8", "replace")
        return self._hushed(said) or "no reason given"

    def _hushed(self, text: str) -> str:
        """Return what the endpoint said for a message: without the API key, printable, and cut."""
        if self.key is not None:
            text = text.replace(self.key.reveal().decode(), "[API key]")
        return printable(text, 200)


async def _bounded(response: httpx.Response) -> bytes:
    """Read a body as it comes over the wire, up to the bound."""
    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise InputError("a compressed reply, which was not asked for")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > _MAX_BYTES:
            raise InputError(f"a reply of more than {_MAX_BYTES >> 20} MiB")
    return bytes(content)


def _parsed(content: bytes, kind: str) -> Answer:
    """Return the answer in a reply.

    Raises:
        InputError: it is none.
    """
    reply = parse_object(content)
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise InputError("expected one choice")
    choice = choices[0]
    message = choice.get("message") if kind == "chat" else choice
    text = message.get("content" if kind == "chat" else "text") if isinstance(message, dict) else None
    if text is None and isinstance(message, dict) and isinstance(message.get("refusal"), str):
        text = message["refusal"]
    if not isinstance(text, str):
        raise InputError("expected a text in the choice")
    text_of(text, "the choice")
    found = reply.get("usage")
    usage = found if isinstance(found, dict) else {}
    logprobs = choice.get("logprobs")
    if _nests(logprobs, beyond=_DEEPEST):
        raise InputError(TOO_DEEP)
    return Answer(
        text=text,
        error=None,
        status=200,
        finish_reason=_text(choice.get("finish_reason")),
        model=_text(reply.get("model")),
        system_fingerprint=_text(reply.get("system_fingerprint")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        logprobs=logprobs.get("content") if isinstance(logprobs, dict) and kind == "chat" else _list(logprobs),
    )


def _repeats(answer: Answer, key: str) -> bool:
    """Tell whether an answer holds the key, in whatever way the reply escaped it."""
    said = [answer.text, answer.model, answer.system_fingerprint, answer.finish_reason, answer.logprobs]
    return json.dumps(key)[1:-1] in json.dumps(said)


def _nests(value: object, *, beyond: int) -> bool:
    level = [value]
    for _ in range(beyond):
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [child for children in inside for child in children]
    return any(isinstance(each, (dict, list)) for each in level)


def _list(value: object) -> list[Any] | None:
    return None if value is None else [value]


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**40 else None


def _retry_after(value: str | None) -> float:
    if value is None:
        return 0.0
    try:
        return min(_LONGEST_WAIT, max(0.0, float(value)))
    except ValueError:
        pass
    try:
        return min(_LONGEST_WAIT, max(0.0, parsedate_to_datetime(value).timestamp() - time.time()))
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _is_local(rest: str) -> bool:
    host = rest.split("/")[0].rsplit(":", 1)[0]
    return host in ("localhost", "127.0.0.1", "[::1]")
