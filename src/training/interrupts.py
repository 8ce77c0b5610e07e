"""Ctrl-C and SIGTERM during a training: they wait until what must not be cut in two is done."""

import signal


class Interrupts:
    """Turns SIGINT and SIGTERM into `KeyboardInterrupt`: at once, or at `release` where they were on `hold`.

    A second signal does not wait.
    """

    def __init__(self):
        self.holding = False
        self.asked = False
        # While a compiled step runs, MindSpore turns Ctrl-C into SIGTERM.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)

    def receive(self, number, frame):
        again, self.asked = self.asked, True
        if again or not self.holding:
            raise KeyboardInterrupt

    def hold(self):
        self.holding = True

    def release(self):
        """Let a signal act, one that has come meanwhile at once."""
        self.holding = False
        if self.asked:
            raise KeyboardInterrupt
