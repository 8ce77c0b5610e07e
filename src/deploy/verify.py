"""The proof that an exported file computes what its checkpoint computes, on every runtime that it is for."""

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from src.config.schema import RuntimeConfig
from src.data.loading import Loader
from src.deploy.description import RuntimeCheck, Verification
from src.deploy.options import Options
from src.deploy.runtimes.lite import find_lite
from src.deploy.runtimes.runtimes import MindSporeRuntime, OnnxRuntime, lite_runtime
from src.deploy.trained import SMALLEST
from src.errors import UserError
from src.evaluation.evaluate import log_softmax, make_eval_step, predict
from src.models.classifier import Classifier

MAX_DIFFERENCE = 1e-4  # between the logits of checkpoint and file, in float32 …
MAX_SHARE = 1e-5  # … or of the largest logit, where that is more: logits of 100 are float32 numbers 8e-6 apart
MIN_AGREEMENT = 0.999  # share of images with the same top-1 class, in float32


def runtimes(path: Path, options: Options) -> list[Any]:
    """Return the runtimes that the file must prove itself on."""
    if options.format == "air":
        return []  # nothing here loads it
    if options.format == "onnx":
        return [OnnxRuntime(path)]
    python = find_lite(options.lite_python)
    if options.format == "ms":
        return [lite_runtime(path, python)]
    if options.mindir_version == 1 and python is not None:
        return [MindSporeRuntime(path), lite_runtime(path, python)]
    return [MindSporeRuntime(path)]


def verify(
    runtime: RuntimeConfig, classifier: Classifier, path: Path, loader: Loader, options: Options
) -> Verification:
    """Run a file on every runtime that it is for, beside the classifier, on the loader's images.

    `runtime` is the config's section. Return the `Verification`; a difference that is too large is a `UserError`.
    """
    step = make_eval_step(classifier.set_train(False), compiled=runtime.mode == "graph")
    targets = runtimes(path, options)
    largest, allowed = [0.0] * len(targets), MAX_DIFFERENCE
    agreed, right, images, right_before = [0] * len(targets), [0] * len(targets), 0, 0
    for batch, labels, logits in predict(step, loader):
        count = len(labels)
        filled = np.concatenate([batch, np.repeat(batch[-1:], options.batch - count, axis=0)])
        x = filled if options.input == "image" else classifier.preprocess(ms.Tensor(filled)).asnumpy()
        expected = logits if options.logits else np.maximum(log_softmax(logits), np.log(SMALLEST))
        allowed = max(allowed, MAX_SHARE * float(np.abs(logits).max()))
        images += count
        right_before += int((logits.argmax(1) == labels).sum())
        for i, target in enumerate(targets):
            scores = log_scores(target.run(x)[:count], options)
            if not np.isfinite(scores).all():
                raise UserError(f"verification failed: on {target.name} the output is not finite; no file was written")
            largest[i] = max(largest[i], float(np.abs(scores - expected).max()))
            agreed[i] += int((scores.argmax(1) == logits.argmax(1)).sum())
            right[i] += int((scores.argmax(1) == labels).sum())
    checks = [
        RuntimeCheck(
            runtime=target.name,
            version=target.version,
            max_difference=largest[i],
            agreement=agreed[i] / images,
            top1=right[i] / images,
        )
        for i, target in enumerate(targets)
    ]
    for target in targets:
        target.close()
    verification = Verification(images=images, checkpoint_top1=right_before / images, runtimes=checks)
    for check in checks:
        check_limits(check, verification, options, allowed)
    return verification


def log_scores(output: np.ndarray, options: Options) -> np.ndarray:
    """Return logits as they are and probabilities as their logarithms, float64."""
    output = output.astype(np.float64)
    return output if options.logits else np.log(np.maximum(output, SMALLEST))


def check_limits(check: RuntimeCheck, verification: Verification, options: Options, allowed: float) -> None:
    """Raise a `UserError` where results are too far from the checkpoint's: logits by more than `allowed`."""
    where = f"verification failed on {check.runtime} {check.version}, {verification.images} images"
    if options.precision != "float32":
        drop = 100 * (verification.checkpoint_top1 - check.top1)
        if drop > options.max_drop:
            raise UserError(
                f"{where}: {options.precision} loses {drop:.2f} points of top-1, allowed are {options.max_drop:g} "
                "(--max-drop); no file was written"
            )
        return
    if check.max_difference > allowed:
        raise UserError(
            f"{where}: file and checkpoint differ by {check.max_difference:.2g}, allowed is {allowed:.2g}; "
            "no file was written"
        )
    if check.agreement < MIN_AGREEMENT:
        raise UserError(
            f"{where}: {1 - check.agreement:.2%} have another top-1 class than with the checkpoint, allowed are "
            f"{1 - MIN_AGREEMENT:.1%}; no file was written"
        )
