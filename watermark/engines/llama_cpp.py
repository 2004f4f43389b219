"""llama-cpp-python: its `Llama` object, and its OpenAI server.

::

    attach(llama, marker)                                  # once: refuses another tokenizer, tries the path
    request = marker.admit({"taggant_account": "acme"}, strength=before_temperature(0.8))
    llama.create_completion("Once", temperature=0.8, logits_processor=processors(llama, marker, request))

    mark_server(llama_cpp.server.app, app, marker)         # the server: every completion, chat and stream

The processor runs first in llama.cpp's sampler chain, before penalties, grammar, top-k, mirostat and the
temperature, and at temperature 0. Four traps of release 0.3.36 are closed here:

- a client's ``logit_bias`` drops every logits processor (``list.extend`` returns None): `attach` puts ours back
  where a response begins, and `GreenListLogitsProcessorList.extend` returns itself;
- an error inside a processor is printed and the token sampled unmarked, since ctypes swallows what its
  callbacks raise: it is kept and raised by `Llama.sample`;
- with a draft model, processors are shown the draft's guesses as if they had been said: the position that is
  being sampled says where the ids end;
- some chat formats answer one request by several completions, one of them without processors: each
  is a response of its own, and marked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from watermark.engines.plain import RowMarker
from watermark.errors import MissingExtraError, TaggantError
from watermark.green_list import before_temperature
from watermark.ingress.context import CURRENT_TICKET
from watermark.marker import Marker, RequestMark
from watermark.self_test import check_marker, trial_marker
from watermark.ticket import PREFIX, TICKET_FIELD, RequestRefusedError
from watermark.tokenizer import Tokenizer, load

try:
    import llama_cpp
    from llama_cpp import LogitsProcessorList
except ImportError:
    raise MissingExtraError("this engine needs llama-cpp-python: pip install 'taggant[llama-cpp]'") from None

__all__ = [
    "GreenListLogitsProcessor",
    "GreenListLogitsProcessorList",
    "attach",
    "mark_server",
    "processors",
    "tokenizer_of",
]

#: What the running request was admitted as: set by the server's dependency, read when its answer is prepared.
_ADMITTED: ContextVar[RequestMark | None] = ContextVar("taggant_admitted", default=None)


class GreenListLogitsProcessor:
    """Mark the answers of one request: ``f(input_ids, scores) -> scores``.

    Args:
        marker: the server's.
        request: what `Marker.admit` returned for the request.
        prompt_length: ids of the prompt; None: those of the first call, which is right for `Llama.generate`.
    """

    def __init__(self, marker: Marker, request: RequestMark, *, prompt_length: int | None = None) -> None:
        self._marker = RowMarker(marker, request, prompt_length=prompt_length)
        self._row = np.empty(0, dtype=np.float32)
        self._position: int | None = None
        self.calls = 0
        """Rows that went through here."""
        self.error: Exception | None = None
        """What went wrong in a call: llama.cpp's callback would swallow it, so that `Llama.sample` raises it."""

    def __call__(self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """Return the logits with delta added to the green ones, in an array that the next call uses again.

        Args:
            input_ids: int32 (T,), the prompt and the response so far (and the draft's guesses after them).
            scores: float32 (V,), a strided view of llama.cpp's candidates, in the order of their ids. It stays as it
                is: who called copies what is returned into it.
        """
        self.calls += 1
        try:
            if self._row.shape != scores.shape:
                self._row = np.empty(scores.shape, dtype=np.float32)
            self._row[:] = scores
            self._marker(input_ids if self._position is None else input_ids[: self._position], self._row)
        except Exception as error:
            if self._position is None:
                raise
            self.error = error
            return scores
        return self._row

    def begin(self, prompt_length: int) -> None:
        """Begin a response: the ids after the first *prompt_length* are its."""
        self._marker.prompt_length = prompt_length

    def at(self, position: int | None) -> None:
        """Say how many of the ids that the next call is shown are known, those of a draft model excluded."""
        self._position = position


class GreenListLogitsProcessorList(LogitsProcessorList):  # type: ignore[misc]
    """A list whose `extend` returns it: llama-cpp-python goes on with what `extend` returns."""

    def extend(self, processors: Any) -> GreenListLogitsProcessorList:
        """Append *processors*, and return the list itself."""
        super().extend(processors)
        return self


def processors(
    llama: Any, marker: Marker, request: RequestMark, *, others: Sequence[Any] = ()
) -> GreenListLogitsProcessorList:
    """Return the ``logits_processor`` argument for one call of ``llama.create_completion`` or its like.

    Args:
        llama: the `llama_cpp.Llama` that is called; `attach` is called with it if it was not before.
        marker: the server's.
        request: what `Marker.admit` returned.
        others: processors that come after ours.
    """
    attach(llama, marker)
    return GreenListLogitsProcessorList([GreenListLogitsProcessor(marker, request), *others])


def attach(llama: Any, marker: Marker) -> None:
    """Make a `llama_cpp.Llama` fit to mark: check its tokenizer, hook its `generate` and `sample`, try the path.

    The try puts a row of zeros through the bias, and generates a handful of ids with a `logit_bias`. A second
    call does nothing.

    Raises:
        TokenizerError: the scope was made for another tokenizer.
        TaggantError: a row is not biased as the keyed function says, or the processor's rows do not reach the sampler.
    """
    if isinstance(llama.generate, _Generate):
        return
    if marker.green_list is not None:
        named = marker.config.tokenizer
        tokenizer = tokenizer_of(llama) if named is None else load(named)
        marker.check_tokenizer(tokenizer.digest(), tokenizer.name)
        check_marker(marker, vocabulary=llama.n_vocab())
    llama.generate = _Generate(llama.generate, marker)
    llama.sample = _sampling(llama.sample)
    if marker.green_list is not None:
        trial = GreenListLogitsProcessor(trial_marker(marker), RequestMark(green_list=marker.green_list))
        said = llama.create_completion(
            [0],
            max_tokens=4,
            temperature=0.0,
            logit_bias={0: 0.0},
            logits_processor=GreenListLogitsProcessorList([trial]),
        )
        if trial.calls < said["usage"]["completion_tokens"] or not trial.calls:
            raise TaggantError(
                f"llama-cpp-python {_release()} does not call its logits processors as release 0.3.36 does: nothing "
                "would be marked. Install that release, or report this"
            )


class _Generate:
    """`Llama.generate` that puts our processor back and tells it where the response begins."""

    def __init__(self, generate: Callable[..., Iterator[int]], marker: Marker) -> None:
        self._generate = generate
        self.marker = marker
        #: The running request's, where a server sets it: it answers one request at a time.
        self.current: GreenListLogitsProcessor | None = None

    def __call__(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Iterator[int]:
        given = list(kwargs.get("logits_processor") or ())
        if self.current is not None and not _ours(given):
            given.insert(0, self.current)
        if given:
            kwargs["logits_processor"] = GreenListLogitsProcessorList(given)
        for processor in _ours(given):
            processor.begin(len(tokens))
        return self._generate(tokens, *args, **kwargs)


def _ours(given: Iterable[Any] | None) -> list[GreenListLogitsProcessor]:
    return [processor for processor in given or () if isinstance(processor, GreenListLogitsProcessor)]


def _sampling(sample: Callable[..., int]) -> Callable[..., int]:
    @wraps(sample)
    def sample_marked(*args: Any, **kwargs: Any) -> int:
        ours = _ours(kwargs.get("logits_processor"))
        index = kwargs.get("idx")
        for processor in ours:
            processor.at(None if index is None else index + 1)
        calls = [processor.calls for processor in ours]
        token = sample(*args, **kwargs)
        for processor, before in zip(ours, calls, strict=True):
            if processor.error is not None:
                raise processor.error
            if processor.calls == before:
                raise TaggantError("llama.cpp drew a token without its logits processors: it would be unmarked")
        return token

    return sample_marked


def tokenizer_of(llama: Any) -> Tokenizer:
    """Return the running engine's own tokenizer: llama.cpp's encoding and its tokens' bytes."""
    return Tokenizer(
        name=Path(llama.model_path).name,
        vocabulary_size=llama.n_vocab(),
        special_ids=tuple(i for i in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_control(llama._model.vocab, i)),
        encode_text=lambda text: llama.tokenize(text.encode("utf-8"), add_bos=False, special=False),
        bytes_of=partial(_token_bytes, llama._model.vocab),
    )


def _token_bytes(vocabulary: Any, token: int) -> bytes:
    room = 64
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, room, 0, True)
        if length >= 0:
            return buffer.raw[:length]
        room = -length  # The length that it needs, says llama.h.


def mark_server(app_module: Any, app: Any, marker: Marker) -> None:
    """Mark what llama-cpp-python's OpenAI server answers: completions and chat, streamed or not.

    Every completion request is admitted before it is answered (`Marker.admit`): by the ticket that
    `watermark.middleware` has left in `CURRENT_TICKET`, or by the body's fields of ours, which the configuration's
    ``fields`` judges. A refusal is a 4xx or 503, a streamed request's too.

    Args:
        app_module: the module `llama_cpp.server.app`.
        app: what its `create_app` returned. The model that it has loaded is attached at once (see `attach`), and
            one that it loads later with the first request for it.
        marker: the server's.

    Raises:
        TokenizerError: the scope was made for another tokenizer.
        TaggantError: this release's server is made otherwise.
    """
    prepare = getattr(app_module, "prepare_request_resources", None)
    authenticate = getattr(app_module, "authenticate", None)
    if prepare is None or authenticate is None or getattr(app_module, "_llama_proxy", None) is None:
        raise TaggantError(
            f"llama-cpp-python {_release()}'s server is made otherwise than that of release 0.3.36, and nothing would "
            "be marked: install 'llama-cpp-python[server]==0.3.36'"
        )
    attach(app_module._llama_proxy(), marker)

    def prepare_marked(body: Any, llama_proxy: Any, body_model: str | None, kwargs: dict[str, Any]) -> Any:
        request = _ADMITTED.get()
        if request is None:
            raise TaggantError("a request was answered that had not been admitted: it would be unmarked")
        llama = prepare(body, llama_proxy, body_model, kwargs)
        attach(llama, marker)
        # Mirostat stands in the place of the temperature in llama-cpp-python's chain.
        hot = body.mirostat_mode == 0 or body.temperature == 0
        strength = before_temperature(body.temperature) if hot else 1.0
        llama.generate.current = GreenListLogitsProcessor(marker, replace(request, strength=strength))
        return llama

    app_module.prepare_request_resources = prepare_marked
    app.dependency_overrides[authenticate] = _admission(app_module, marker)


def _admission(app_module: Any, marker: Marker) -> Callable[..., Awaitable[Any]]:
    """Return the server's authentication with our admission after it; it runs before anything is sent."""
    from fastapi import Depends, HTTPException, Request

    async def admit(
        request: Any,
        settings: Any = Depends(app_module.get_server_settings),  # noqa: B008 (FastAPI's way)
        authorization: Any = Depends(app_module.bearer_scheme),  # noqa: B008
    ) -> Any:
        known = await app_module.authenticate(settings=settings, authorization=authorization)
        if request.url.path.endswith("/completions"):
            body = await request.json()
            ours = {name: body[name] for name in body if name.startswith(PREFIX)} if isinstance(body, dict) else {}
            ticket = CURRENT_TICKET.get()
            if ticket is not None:
                ours[TICKET_FIELD] = ticket
            try:
                _ADMITTED.set(marker.admit(ours))
            except RequestRefusedError as error:
                raise HTTPException(status_code=error.status, detail=str(error)) from None
        return known

    admit.__annotations__ = {"request": Request}  # FastAPI looks at it, and FastAPI is imported only here.
    return admit


def _release() -> str:
    return str(getattr(llama_cpp, "__version__", "of an unknown release"))
