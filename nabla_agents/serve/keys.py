"""API keys: made once, kept as hashes, compared in constant time, with an expiry and limits of their own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from nabla_agents.config import Count, Settings

_PREFIX: Final = "nabla-"


class ApiKey(Settings):
    """What the server knows of a key: a name for logs and metrics, the SHA-256 of its text (a key has 256 random bits,
    so that no slow hash is needed), when it expires, and what it may use. None means no limit of its own.
    """

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | None = None
    requests_per_minute: Count | None = None
    concurrent: Count | None = None
    """Answers that may be searched at the same time; further ones wait."""
    rollouts: Count | None = None
    """The largest budget of one answer, where it is to be less than the server's."""

    def expired(self, now: datetime | None = None) -> bool:
        return self.expires is not None and (now or datetime.now(UTC)) >= self.expires


def new_key() -> str:
    """A key with 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def find(keys: Sequence[ApiKey], presented: str) -> ApiKey | None:
    """The key that was presented, expired or not. Takes the same time whichever it is, and if it is none."""
    hashed, found = digest(presented), None
    for key in keys:
        if compare_digest(key.sha256, hashed):
            found = key
    return found
