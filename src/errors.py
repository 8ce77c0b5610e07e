"""Errors that the user can correct. They end the process with one line on stderr, exit code 2 and no traceback."""

import argparse
import difflib
import io
import re
import sys
from collections.abc import Iterable
from typing import Callable, NoReturn, TypeVar

from src import script

Result = TypeVar("Result")

LONGEST_LINE = 1000  # characters of an error; a longer line loses its middle, because its end says what to do
OPTION = re.compile(r"--?[a-zA-Z][\w-]*")


class UserError(ValueError):
    """An error that the user can correct; the message names the file or key, the value found and the values allowed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the message says how to resume the run."""


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that reports its errors as a `UserError`."""

    def error(self, message: str) -> NoReturn:
        # A mistyped option comes first, because it causes other errors: the option that is meant counts as missing.
        known = self._option_string_actions
        for word in sys.argv[1:]:
            name = word.partition("=")[0]
            if OPTION.fullmatch(name) and not any(option.startswith(name) for option in known):
                message = f"{name}: is not an option{did_you_mean(name, known)}"
                break
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return `; did you mean …?` with the most similar of the `known` names, or "" if no name is similar."""
    nearest = difflib.get_close_matches(str(name), [str(candidate) for candidate in known], n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def text_of(error: Exception) -> str:
    """Return what the user reads about a `UserError` or an `OSError`, in one line."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    line = " ".join(text.split())
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def leave(message: str, code: int = 2) -> NoReturn:
    """Print the error, which is one line, and end the process."""
    script.has_line = True
    sys.stderr.write(f"error: {message}\n")
    end(code)


def end(code: int) -> NoReturn:
    """End the process of a script; tests that call `run` get a `SystemExit`."""
    if script.begun:
        script.end(code)
    sys.exit(code)


def run(main: Callable[[], Result]) -> Result:
    """Return the result of `main`, or end the process of a script.

    A `UserError` or `OSError` ends it with one line and exit code 2, a signal with one line and the signal's exit code.
    """
    # Names of classes and files may have letters that the encoding of the terminal does not have.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    script.arrived.clear()
    script.handle(script.interrupt)
    try:
        try:
            result = main()
            if script.arrived:  # A library has caught the exception.
                raise KeyboardInterrupt
        finally:
            script.handle(script.end_at_once)
    except SystemExit as leaving:
        end(int(leaving.code or 0))
    except BaseException as error:
        if script.arrived:  # A library may have turned the exception into another exception.
            leave(str(error) if isinstance(error, Interrupted) else "interrupted", script.exit_code())
        if not isinstance(error, (UserError, OSError)):
            raise
        leave(text_of(error))
    if script.begun:
        script.end(0)
    return result
