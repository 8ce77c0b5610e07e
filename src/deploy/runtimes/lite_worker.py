"""MindSpore Lite in a process of its own, on any Python that has it (3.7): reads requests, writes answers.

It must not share a process with MindSpore. Requests and answers are lines of JSON; those with an array are followed by
its bytes. `lite.py` is the other end.
"""

import json
import os
import sys
import time

import numpy as np


def main():
    # Lite prints: what it says goes to stderr, the answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import mindspore_lite

    session = Session(mindspore_lite)
    answer(answers, {"version": mindspore_lite.__version__})
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        action = request.pop("action")
        try:
            if action == "run":
                output = session.run(read_array(request), request["repeats"])
                answer(answers, *output)
            else:
                answer(answers, getattr(session, action)(**request))
        except Exception as error:  # whatever it is, the other end reports it
            answer(answers, {"error": " ".join(str(error).split())})


class Session:
    """One model at a time."""

    def __init__(self, lite):
        self.lite = lite
        self.model = None

    def load(self, path, threads):
        """Load a .ms or .mindir file; `threads` 0 leaves their number to Lite."""
        lite = self.lite
        context = lite.Context()
        context.target = ["cpu"]
        if threads:
            context.cpu.thread_num = threads
        kind = lite.ModelType.MINDIR_LITE if path.endswith(".ms") else lite.ModelType.MINDIR
        self.model = lite.Model()
        began = time.perf_counter()
        self.model.build_from_file(path, kind, context)
        entry = self.model.get_inputs()[0]
        return {
            "seconds": time.perf_counter() - began,
            "shape": list(entry.shape),
            "dtype": entry.dtype.name.lower(),
        }

    def run(self, array, repeats):
        """Return ({dtype, shape, milliseconds of each run, peak memory}, output)."""
        inputs = self.model.get_inputs()
        times = []
        for _ in range(repeats):
            inputs[0].set_data_from_numpy(array)
            began = time.perf_counter()
            outputs = self.model.predict(inputs)
            times.append((time.perf_counter() - began) * 1000)
        output = outputs[0].get_data_to_numpy().copy()  # a view of what the next run overwrites
        return {"dtype": output.dtype.name, "shape": list(output.shape), "milliseconds": times}, output

    def convert(self, source, target, weight_fp16, config):
        """Convert a MindIR file to .ms; `target` has no ending, `config` is {section: {key: value}}."""
        lite = self.lite
        converter = lite.Converter()
        converter.save_type = lite.ModelType.MINDIR_LITE
        converter.input_format = lite.Format.NCHW  # NHWC is the default, and silently wrong
        converter.weight_fp16 = weight_fp16
        for section, settings in config.items():
            converter.set_config_info(section, settings)
        converter.convert(fmk_type=lite.FmkType.MINDIR, model_file=source, output_file=target)
        return {}

    def memory(self):
        """Return the process's peak memory, bytes."""
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def read_array(request):
    count = int(np.prod(request["shape"])) * np.dtype(request["dtype"]).itemsize
    return np.frombuffer(sys.stdin.buffer.read(count), request["dtype"]).reshape(request["shape"])


def answer(stream, header, array=None):
    stream.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


if __name__ == "__main__":
    main()
