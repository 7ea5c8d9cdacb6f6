"""Body: what a server sends after its headers, read only so far as memory and time allow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import httpx

from nabla_agents.backends import deadline

MOST_BYTES: Final = 1 << 26  # of a body, and of a line of a stream
_MOST_OF_REFUSAL: Final = 1 << 16


class BodyError(Exception):
    """A body that is not read: too long, or in an encoding that was not asked for."""


def whole(response: httpx.Response) -> bytes:
    """The body of an answer.

    Raises:
        BodyError: more than `MOST_BYTES`, or compressed.
        httpx.HTTPError: it broke off, or came too slowly.
    """
    body = bytearray()
    for chunk in _chunks(response):
        body += chunk
        if len(body) > MOST_BYTES:
            raise BodyError(f"more than {MOST_BYTES >> 20} MiB")
    return bytes(body)


def beginning(response: httpx.Response) -> str:
    """The first of a body as text, for people; what is no UTF-8 is replaced."""
    body = bytearray()
    with suppress(BodyError):
        for chunk in _chunks(response):
            body += chunk
            if len(body) > _MOST_OF_REFUSAL:
                break
    return body[:_MOST_OF_REFUSAL].decode(errors="replace")


class Incoming:
    """An answer that has begun, read as it comes, by one thread at a time.

    Args:
        moment: after which nothing comes any more.
        stop: nor once this is set.

    What reads it raises `BodyError` where the body is compressed, or what is kept of it at a time is more than
    `MOST_BYTES`; `httpx.HTTPError` where it broke off, or came too slowly.
    """

    def __init__(self, response: httpx.Response, moment: float, stop: threading.Event | None = None) -> None:
        self._response, self._moment, self._stop = response, moment, stop

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._response.headers.raw

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    def chunks(self) -> Iterator[bytes]:
        """The body in the pieces that it comes in."""
        chunks = _chunks(self._response)
        while True:
            with deadline.until(self._moment, self._stop):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def lines(self) -> Iterator[bytes]:
        """Each whole line, without its end; one that was begun and not ended is left out."""
        line = bytearray()
        for chunk in self.chunks():
            first, *others = chunk.split(b"\n")
            line += first
            for other in others:
                yield bytes(line).removesuffix(b"\r")
                line = bytearray(other)
            if len(line) > MOST_BYTES:
                raise BodyError(f"a line of more than {MOST_BYTES >> 20} MiB")

    def whole(self) -> bytes:
        with deadline.until(self._moment, self._stop):
            return whole(self._response)

    def close(self) -> None:
        self._response.close()


def _chunks(response: httpx.Response) -> Iterator[bytes]:
    """The body as it came over the line: nothing is unpacked, so that no kilobyte becomes a gigabyte."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise BodyError(f"an answer in the encoding {encoding[:40]!r}, which was not asked for")
    if response.is_stream_consumed:
        yield response.content
        return
    for chunk in response.iter_raw():
        deadline.check()
        yield chunk
