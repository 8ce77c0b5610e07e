"""Errors that the user can correct. They end the process with one line on stderr, exit code 2 and no traceback."""

import argparse
import difflib
import io
import re
import signal
import sys
from collections.abc import Iterable
from typing import Callable, NoReturn, TypeVar

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


def leave(message: str) -> NoReturn:
    """Print the error, which is one line, and end the process."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def run(main: Callable[[], Result]) -> Result:
    """Return the result of `main`; on a `UserError` or `OSError`, end the process with one line and exit code 2."""
    # While a compiled step runs, MindSpore turns Ctrl-C into SIGTERM. So SIGTERM raises KeyboardInterrupt, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Names of classes and files may have letters that the encoding of the terminal does not have.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except (UserError, OSError) as error:
        leave(text_of(error))
    except KeyboardInterrupt as reason:
        sys.stderr.write(f"error: {reason if isinstance(reason, Interrupted) else 'interrupted'}\n")
        sys.exit(130)
