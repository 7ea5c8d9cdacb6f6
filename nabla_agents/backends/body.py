"""Body: what a server sends after its headers, read only so far as memory and time allow."""

from __future__ import annotations

import socket
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


class Lines:
    """The lines of an answer that has begun, as they come; read by one thread, and shut by any.

    Args:
        moment: after which none comes any more.
    """

    def __init__(self, response: httpx.Response, moment: float) -> None:
        self._response, self._moment = response, moment

    def __iter__(self) -> Iterator[bytes]:
        """Each whole line, without its end; one that was begun and not ended is left out.

        Raises:
            BodyError: a line has more than `MOST_BYTES`, or the body is compressed.
            httpx.HTTPError: it broke off, or came too slowly.
        """
        chunks, line = _chunks(self._response), bytearray()
        while True:
            with deadline.until(self._moment):
                chunk = next(chunks, None)
            if chunk is None:
                return
            first, *others = chunk.split(b"\n")
            line += first
            for other in others:
                yield bytes(line).removesuffix(b"\r")
                line = bytearray(other)
            if len(line) > MOST_BYTES:
                raise BodyError(f"a line of more than {MOST_BYTES >> 20} MiB")

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    def shut(self) -> None:
        """Ends the connection at once: the server hears it, and a thread that waits for a line wakes."""
        if self._response.is_closed:
            return
        stream = self._response.extensions.get("network_stream")
        connection = None if stream is None else stream.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)

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
