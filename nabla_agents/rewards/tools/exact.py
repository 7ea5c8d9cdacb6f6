"""Exact numbers as people write them: read, rounded as at school, and written again. Nothing is evaluated as code."""

from __future__ import annotations

from fractions import Fraction

MINUS = "-−–"
# How many of one unit make another: a result in other words may be right, `60 + 60 = 2 hours`.
CONVERSIONS = [Fraction(n) for n in (2, 3, 4, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 52, 60, 90, 100, 144, 365, 1000)]
CONVERSIONS += [Fraction(n) for n in (1440, 1760, 2000, 3600, 5280, 8760, 10**4, 10**5, 10**6, 10**9, 10**12)]


def number(text: str) -> Fraction:
    """Of digits in any script, thousands separators, one decimal point, and one sign at most."""
    for written, plain in ((",", ""), ("−", "-"), ("–", "-")):
        text = text.replace(written, plain)
    return Fraction(text) if "." in text else Fraction(int(text))


def decimals(text: str) -> int:
    return len(text.partition(".")[2])


def rounded(value: Fraction, places: int) -> Fraction:
    """Halves away from zero."""
    scale = 10**places
    return Fraction((abs(value) * scale + Fraction(1, 2)).__floor__(), scale) * (1 if value >= 0 else -1)


def agrees(value: Fraction, written: Fraction, places: int) -> bool:
    """Whether a number written with that many decimals is the value, or the value rounded to them."""
    return written == value or (places > 0 and rounded(value, places) == written)


def short_decimals(value: Fraction) -> int | None:
    """The decimals that write the value exactly, if four are enough."""
    return next((d for d in range(5) if rounded(value, d) == value), None)


def text(value: Fraction, places: int, *, prefix: str = "", grouping: str = "") -> str:
    """The rounded value in decimal digits, every one of them exact; `prefix` stands behind the sign."""
    scaled = abs(rounded(value, places)) * 10**places
    whole, part = divmod(int(scaled), 10**places)
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{prefix}{whole:{grouping}d}" + (f".{part:0{places}d}" if places else "")


def is_float_of(value: Fraction, written: str) -> bool:
    """Whether a number with 15 digits or more, a point among them, is the value as binary floats have it:
    14.999999999999998 for 15.
    """
    digits = "".join(c for c in written if c.isdecimal() or c == ".").lstrip("0.")
    return (
        "." in written
        and len(digits.replace(".", "")) >= 15
        and abs(number(unsigned(written)) - abs(value)) <= (abs(value) + 1) / 10**12
    )


def unsigned(written: str) -> str:
    """The digits of a number with their separators, without sign and currency."""
    return "".join(c for c in written if c.isdecimal() or c in ".,")


def cut_off(value: Fraction, places: int) -> Fraction:
    """Without what stands behind that many decimals."""
    scale = 10**places
    return Fraction((abs(value) * scale).__floor__(), scale) * (1 if value >= 0 else -1)


def about(value: Fraction) -> str:
    """The value as one says it: exactly, if four decimals are enough, else rounded to at least three digits, with a
    sign that says so.
    """
    places = short_decimals(value)
    if places is not None:
        return f"= {text(value, places)}"
    places = next((d for d in range(1, 12) if abs(value) * 10**d >= 100), 12)
    return f"≈ {text(value, places)}"
