"""The process of a script: Ctrl-C and other signals that end it, output that nobody reads, and the exit."""

from __future__ import annotations  # so that older Pythons reach the error about them in src/__init__.py

import _thread
import atexit
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Callable, NoReturn, Optional

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, `kill`, and a terminal that is closed
PATIENCE = 3  # The signal with this number ends the process at once.
Handler = Callable[[int, Optional[FrameType]], None]

begun = False  # whether `begin` has prepared this process
has_line = False  # whether the process has printed the one line about an error or a signal
arrived: list[int] = []  # the signals that have arrived so far
passed_on: list[int] = []  # signals that the thread of `pass_on` has sent to the main thread as SIGINT


def begin() -> None:
    """Prepare the process of a script, before its other imports; afterwards a signal ends it with one line.

    While MindSpore computes, it turns SIGINT into a SIGTERM of its own. So SIGTERM is blocked in all threads except the
    thread of `pass_on`, which learns who has sent the signal.
    """
    global begun
    begun = True
    open_streams()
    handle(end_at_once)
    sys.unraisablehook = refuse_to_ignore
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=pass_on, args=(threading.get_ident(),), daemon=True).start()


def pass_on(main_thread: int) -> NoReturn:
    """Wait for SIGTERM in a thread of its own, and interrupt the main thread."""
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == os.getpid():  # MindSpore has received SIGINT.
            _thread.interrupt_main()
        else:
            passed_on.append(signal.SIGTERM)
            signal.pthread_kill(main_thread, signal.SIGINT)


def handle(handler: Handler) -> None:
    """Let `handler` receive the signals; SIGHUP stays ignored if it is, as under nohup."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def note(number: int) -> int:
    """Record that a signal has arrived; return how many have arrived so far."""
    arrived.append(passed_on.pop() if passed_on else number)
    return len(arrived)


def interrupt(number: int, frame: Optional[FrameType]) -> None:
    """Raise `KeyboardInterrupt` for the first signal, so that temporary files are removed.

    The second signal does not disturb that. During an import the process ends at once, because modules written in C++
    turn the exception into other exceptions.
    """
    count = note(number)
    if count >= PATIENCE or (count == 1 and is_import(frame)):
        leave_at_once()
    if count == 1:
        raise KeyboardInterrupt


def end_at_once(number: int, frame: Optional[FrameType]) -> None:
    """End the process."""
    note(number)
    leave_at_once()


def leave_at_once() -> NoReturn:
    """End the process with one line, without cleaning up; it may be called in the middle of a call of `print`."""
    with contextlib.suppress(RuntimeError):
        sys.stdout.flush()
    if not has_line:
        with contextlib.suppress(OSError):
            os.write(2, b"error: interrupted\n")
    os._exit(exit_code())


def exit_code() -> int:
    """Return the exit code after a signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + arrived[0]


def is_import(frame: Optional[FrameType]) -> bool:
    """Return whether an import is in progress in a frame or in the frames that called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def refuse_to_ignore(problem: Any) -> None:
    """End the process if Python would ignore a `KeyboardInterrupt`, as it does in a `__del__` method."""
    if isinstance(problem.exc_value, KeyboardInterrupt):
        leave_at_once()
    sys.__unraisablehook__(problem)


def end(code: int) -> NoReturn:
    """End the process with an exit code, without the end of Python's interpreter.

    On a busy machine, MindSpore 2.7.0 crashes in one of eight normal exits, and a signal then ends in a traceback.
    """
    handle(end_at_once)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Output(io.FileIO):
    """Standard output or standard error; if it cannot be written any more, further output is dropped.

    The results are in files, so a script goes on without a reader, such as `head -1`.
    """

    def write(self, content: Any) -> int:
        try:
            while (count := super().write(content)) is None:  # The reader of a non-blocking pipe is slow.
                os.sched_yield()
            return count
        except OSError as error:
            self.drop(error)
            return memoryview(content).nbytes

    def drop(self, error: OSError) -> None:
        """Send all further output, also that of MindSpore's C++ code, to /dev/null."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if self.fileno() == 1 and error.errno != errno.EPIPE:
            sys.stderr.write(f"note: stdout cannot be written, so its further text is lost: {error.strerror}\n")


def open_streams() -> None:
    """Replace standard streams that are closed by /dev/null, and make the outputs an `Output` each.

    Otherwise the next file that is opened gets the number of the closed stream, and text of MindSpore's C++ code.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.__stdout__ = guarded(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = guarded(sys.stderr, 2)  # type: ignore[misc]


def guarded(stream: Any, number: int) -> io.TextIOWrapper:
    """Return a text stream like `stream`, which may be None, that writes to an `Output` with a file's `number`."""
    return io.TextIOWrapper(
        io.BufferedWriter(Output(number, "w", closefd=False)),
        encoding=getattr(stream, "encoding", None),
        errors=getattr(stream, "errors", None),
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )
