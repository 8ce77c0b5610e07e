"""The worker's side of the protocol of train_step.py: each request and each answer is a line of JSON.

Only the standard library is imported, because the worker of PyTorch runs in an environment without this project.
"""

import json
import os
import sys
import time


def serve(prepare):
    """Answer requests until stdin is closed. An exception is answered as well, and ends the process.

    The first line of stdin has the settings. `prepare(settings)` returns a function that runs one step, and a dict of
    facts, which is the first answer. A request {"untimed": m} is answered by {"seconds": s} after m steps that are not
    timed and a step that is. The request {} is answered by {"peak_mib": the process's peak memory}.
    """
    # Frameworks and compilers print to stdout. Their text is sent to stderr, so that stdout has only answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        step, facts = prepare(json.loads(sys.stdin.readline()))
        answer(**facts)
        for line in sys.stdin:
            request = json.loads(line)
            if not request:
                answer(peak_mib=peak_mib())
                continue
            for _ in range(request["untimed"]):
                step()
            began = time.perf_counter()
            step()
            answer(seconds=time.perf_counter() - began)
    except Exception as error:  # train_step.py reports it, whatever it is
        answer(error=" ".join(str(error).split()) or type(error).__name__)
        sys.exit(1)


def peak_mib():
    """Return this process's peak memory in MiB: Linux's VmHWM, because ru_maxrss counts the parent's memory too."""
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
