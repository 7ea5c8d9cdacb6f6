"""What a GGUF file says of itself, read in a fraction of a second: fields and the places of its tensors.

The format is llama.cpp's: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` reads the same,
but takes 12 s for a vocabulary of 150,000.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nabla_agents.errors import ModelLoadError

_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufHeader:
    """The fields of a file, an array as its length, and how many numbers its tensors hold."""

    fields: Mapping[str, Any]
    weights: int

    @classmethod
    def read(cls, file: Path) -> GgufHeader:
        """Requires that the package `gguf` is installed.

        Raises:
            ModelLoadError: no GGUF file, one of several parts, or one that was cut short.
        """
        if not file.is_file():
            raise ModelLoadError(
                f"Cannot load model {str(file)!r}: there is no such file. Give the path of a GGUF file."
            )
        if file.stat().st_size == 0:
            raise ModelLoadError(_broken(file, "is empty"))
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != _MAGIC:
                raise ModelLoadError(
                    f"{str(file)!r} is no GGUF file: it begins with {data[:4]!r}. Give a GGUF file, or a folder with "
                    "config.json and tokenizer files."
                )
            try:
                fields, weights, end = _Reader(data).all()
            except (struct.error, ValueError, MemoryError, OverflowError) as e:
                raise ModelLoadError(_broken(file, f"has a header that cannot be read ({e})")) from e
            if end > len(data):
                raise ModelLoadError(_broken(file, f"ends after {len(data):,} of {end:,} bytes"))
        if int(fields.get("split.count", 1)) > 1:
            raise ModelLoadError(
                f"{str(file)!r} is one of {fields['split.count']} parts of a model; expected a whole one. Join them "
                "with llama.cpp: llama-gguf-split --merge FIRST_PART WHOLE."
            )
        if not fields.get("general.architecture"):
            raise ModelLoadError(_broken(file, "names no architecture"))
        return cls(fields, weights)

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])


def is_gguf(file: Path) -> bool:
    """Whether a file begins as GGUF files do; those of Ollama have names without an ending."""
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _broken(file: Path, how: str) -> str:
    return f"The GGUF file {str(file)!r} {how}. Fetch or convert it anew."


class _Reader:
    """Reads a file from its beginning on."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def all(self) -> tuple[dict[str, Any], int, int]:
        """The fields, the numbers in all tensors, and where the last of these ends."""
        from gguf.constants import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        (version,) = self._take("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}; expected 2 or 3, little-endian")
        tensors, count = self._take("QQ")
        fields = {self._text(): self._value(*self._take("I")) for _ in range(count)}
        weights = end = 0
        for _ in range(tensors):
            name, (dimensions,) = self._text(), self._take("I")
            numbers = prod(self._take("Q" * min(dimensions, _DIMENSIONS)))
            kind, offset = self._take("IQ")
            if dimensions > _DIMENSIONS:
                raise ValueError(f"{name} has {dimensions} dimensions")
            if kind not in sizes:
                raise ValueError(f"{name} is of type {kind}, which the installed gguf package does not know")
            block, length = sizes[kind]
            weights, end = weights + numbers, max(end, offset + numbers // block * length)
        alignment = int(fields.get("general.alignment", 32))
        return fields, weights, -(-self._at // alignment) * alignment + end

    def _take(self, numbers: str) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{numbers}")
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise ValueError("it goes on behind the end of the file")

    def _text(self) -> str:
        (length,) = self._take("Q")
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._take(_NUMBERS[kind])[0]
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a field of type {kind}")
        inner, count = self._take("IQ")
        if inner in _NUMBERS:
            self._skip(struct.calcsize(f"<{_NUMBERS[inner]}") * count)
        elif inner == _TEXT:
            for _ in range(count):
                self._skip(*self._take("Q"))
        else:
            raise ValueError(f"an array of type {inner}")
        return count
