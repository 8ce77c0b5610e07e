"""Ctrl-C and SIGTERM during training: a signal waits until the current step or file is complete."""

from types import FrameType
from typing import Optional

from src import script


class PolledInterrupt(KeyboardInterrupt):
    """A signal that `Interrupts.poll` found."""


class Interrupts:
    """Turns the signals of `src/script.py` into `KeyboardInterrupt`.

    Between `hold` and `release`, the first signal waits until `poll` or `release`. A second signal never waits.
    """

    def __init__(self) -> None:
        self.holding = False
        self.asked = False
        script.handle(self.receive)

    def receive(self, number: int, frame: Optional[FrameType]) -> None:
        """Raise `KeyboardInterrupt`, or only remember the signal if it has to wait."""
        script.note(number)
        again, self.asked = self.asked, True
        if again or not self.holding:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Let the next signal wait until `poll` or `release`."""
        self.holding = True

    def poll(self) -> None:
        """Raise `PolledInterrupt` if a signal waits."""
        if self.asked:
            raise PolledInterrupt

    def release(self) -> None:
        """Let signals act at once again; raise `KeyboardInterrupt` if a signal arrived since `hold`."""
        self.holding = False
        if self.asked:
            raise KeyboardInterrupt
