"""The types of command-line options: their limits are checked before MindSpore is imported."""

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Callable, TypeVar

Number = TypeVar("Number", int, float)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that is a whole number from `least` to `most`."""
    return limited(int, lambda value: least <= value <= most, f"a whole number from {least:,} to {most:,}")


def number(least: float, most: float) -> Callable[[str], float]:
    """Return the type of an option that is a number from `least` to `most`; nan is outside of all limits."""
    return limited(float, lambda value: least <= value <= most, f"a number from {least:,} to {most:,}")


def above_zero(most: float) -> Callable[[str], float]:
    """Return the type of an option that is a number above 0, and at most `most`."""
    return limited(float, lambda value: 0 < value <= most, f"a number above 0, at most {most:,.0f}")


def limited(kind: Callable[[str], Number], allows: Callable[[Number], bool], expected: str) -> Callable[[str], Number]:
    """Return the function that turns the text of an option into a number that `allows` accepts."""

    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allows(value):
            raise ArgumentTypeError(f"must be {expected} (found {text})")
        return value

    return convert


def existing(text: str) -> str:
    """Return the path of a file or a folder, which must exist."""
    try:
        os.stat(text)
    except FileNotFoundError:
        raise ArgumentTypeError(f"{text}: no such file or folder") from None
    except OSError as error:
        raise ArgumentTypeError(f"{text}: {error.strerror}") from None
    return text


def existing_file(text: str) -> str:
    """Return the path of a file, which must exist; a folder or a pipe is refused."""
    if not Path(existing(text)).is_file():
        raise ArgumentTypeError(f"{text}: is not a file")
    return text
