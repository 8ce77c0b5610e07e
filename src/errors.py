"""Mistakes of the user: one line on stderr, exit code 2, no traceback."""

import argparse
import difflib
import signal
import sys


class UserError(ValueError):
    """Something that the user can mend; the message names the file or key, the value and what is allowed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the message says how to go on."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, reporting its errors as every other mistake is reported: as a `UserError`."""

    def error(self, message):
        raise UserError(f"{message} (see {self.prog} --help)")


def did_you_mean(name, known):
    """Return `; did you mean …?` for the nearest of the `known` names, or an empty string."""
    nearest = difflib.get_close_matches(str(name), [str(candidate) for candidate in known], n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def leave(message):
    """Print the error as one line and end the process."""
    sys.stderr.write(f"error: {' '.join(str(message).split())}\n")
    sys.exit(2)


def run(main):
    """Return `main()`; a `UserError` or an operating-system error becomes one line and exit code 2."""
    # While a compiled step runs, MindSpore turns Ctrl-C into SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main()
    except UserError as error:
        leave(error)
    except OSError as error:
        leave(f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt as reason:
        sys.stderr.write(f"error: {reason if isinstance(reason, Interrupted) else 'interrupted'}\n")
        sys.exit(130)
