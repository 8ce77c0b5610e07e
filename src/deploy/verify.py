"""Verify on each of its runtimes that an exported file gives the same outputs as its checkpoint."""

import math
from pathlib import Path

import mindspore as ms
import numpy as np

from src.config.schema import RuntimeConfig
from src.data.loading import Loader
from src.deploy.description import RuntimeCheck, Split, Verification
from src.deploy.options import Options, check_images
from src.deploy.runtimes.lite import find_lite, need_lite
from src.deploy.runtimes.runtimes import MindSporeRuntime, OnnxRuntime, Runtime, lite_runtime, ncnn_runtime
from src.deploy.trained import SMALLEST_PROBABILITY
from src.errors import UserError
from src.evaluation.evaluate import log_softmax, make_eval_step, predict
from src.models.classifier import Classifier

# Limits for float32. Logits may differ by MAX_DIFFERENCE or by MAX_RELATIVE_DIFFERENCE times the largest logit,
# whichever is more: near 100, the next float32 number is already 8e-6 away.
MAX_DIFFERENCE = 1e-4
MAX_RELATIVE_DIFFERENCE = 1e-5
NORMAL_95 = 1.959964  # 97.5 % quantile of the normal distribution
MIN_AGREEMENT = 0.999  # share of images with the same top-1 class


def runtimes(path: Path, options: Options) -> list[Runtime]:
    """Return the runtimes to verify the file on."""
    if options.format == "air":
        return []  # only Ascend's own tools load it
    if options.format in ("onnx", "web"):
        return [OnnxRuntime(path)]
    if options.format == "ncnn":
        return [ncnn_runtime(path)]
    if options.format == "ms":
        return [lite_runtime(path, need_lite(options.lite_python))]
    python = find_lite(options.lite_python)
    if options.mindir_version == 1 and python is not None:
        return [MindSporeRuntime(path), lite_runtime(path, python)]
    return [MindSporeRuntime(path)]


def verify(
    runtime: RuntimeConfig, classifier: Classifier, path: Path, loader: Loader, split: Split, options: Options
) -> Verification:
    """Run the file at `path` on each of its runtimes, and compare with the classifier on the loader's images.

    `runtime` is the section of the config, and `split` is the split of the images. Return the `Verification`; a
    difference above the limits is a `UserError`.
    """
    step = make_eval_step(classifier.set_train(False), compiled=runtime.mode == "graph")
    targets = runtimes(path, options)
    images, checkpoint_correct, allowed = 0, 0, MAX_DIFFERENCE
    difference, agreed = [0.0] * len(targets), [0] * len(targets)
    lost, won = [0] * len(targets), [0] * len(targets)  # images that only the checkpoint, or only the file, gets right
    for batch, labels, logits in predict(step, loader):
        count = len(labels)
        padded = np.concatenate([batch, np.repeat(batch[-1:], options.batch - count, axis=0)])
        x = padded if options.input == "image" else classifier.preprocess(ms.Tensor(padded)).asnumpy()
        expected = logits if options.logits else np.maximum(log_softmax(logits), np.log(SMALLEST_PROBABILITY))
        allowed = max(allowed, MAX_RELATIVE_DIFFERENCE * float(np.abs(logits).max()))
        images += count
        right = logits.argmax(1) == labels
        checkpoint_correct += int(right.sum())
        for i, target in enumerate(targets):
            scores = log_scores(target.run(x)[:count], options)
            if not np.isfinite(scores).all():
                raise UserError(f"verification failed on {target.name}: the output is not finite; no file was written")
            difference[i] = max(difference[i], float(np.abs(scores - expected).max()))
            agreed[i] += int((scores.argmax(1) == logits.argmax(1)).sum())
            still_right = scores.argmax(1) == labels
            lost[i] += int((right & ~still_right).sum())
            won[i] += int((~right & still_right).sum())
    checks = [
        RuntimeCheck(
            runtime=target.name,
            version=target.version,
            max_difference=difference[i],
            agreement=agreed[i] / images,
            top1=(checkpoint_correct - lost[i] + won[i]) / images,
            drop_interval=drop_interval(lost[i], won[i], images),
        )
        for i, target in enumerate(targets)
    ]
    for target in targets:
        target.close()
    verification = Verification(
        images=images, split=split, checkpoint_top1=checkpoint_correct / images, runtimes=checks
    )
    for check in checks:
        check_limits(check, verification, options, allowed)
    return verification


def drop_interval(lost: int, won: int, images: int) -> list[float]:
    """Return the 95 % confidence interval [low, high] of the drop in top-1, as fractions of 1.

    `lost` of the `images` are right with the checkpoint only, `won` with the exported file only. Both see the same
    images, so the interval is for paired proportions: the adjusted Wald interval of Bonett and Price, as Fagerland,
    Lydersen and Laake recommend it (Statistics in Medicine 33, 2014, doi.org/10.1002/sim.6148).
    """
    p_lost, p_won = (lost + 1) / (images + 2), (won + 1) / (images + 2)
    drop = p_lost - p_won
    margin = NORMAL_95 * math.sqrt((p_lost + p_won - drop**2) / (images + 2))
    return [max(-1.0, drop - margin), min(1.0, drop + margin)]


def log_scores(output: np.ndarray, options: Options) -> np.ndarray:
    """Return logits unchanged, and probabilities as their logarithms; float64."""
    output = output.astype(np.float64)
    return output if options.logits else np.log(np.maximum(output, SMALLEST_PROBABILITY))


def check_limits(check: RuntimeCheck, verification: Verification, options: Options, allowed: float) -> None:
    """Raise a `UserError` if the results differ too much from the checkpoint's; `allowed` is the limit for logits."""
    where = f"verification failed on {check.runtime} {check.version} with {verification.images} images"
    if options.precision != "float32":
        drop = 100 * (verification.checkpoint_top1 - check.top1)
        if drop > options.max_drop:
            raise UserError(
                f"{where}: {options.precision} loses too much top-1 (found {drop:.2f} points, expected at most "
                f"{options.max_drop:g}); no file was written, --max-drop allows more"
            )
        if 100 * check.agreement < options.min_agreement:
            raise UserError(
                f"{where}: {options.precision} gives too many images another top-1 class than the checkpoint (found "
                f"{check.agreement:.2%} with the same class, expected at least {options.min_agreement:g} %); no file "
                "was written, --min-agreement allows less"
            )
        if options.precision == "int8":
            check_images(verification.images, options.min_images)
        return
    if check.max_difference > allowed:
        raise UserError(
            f"{where}: the outputs differ too much from the checkpoint's (found {check.max_difference:.2g}, expected "
            f"at most {allowed:.2g}); no file was written"
        )
    if check.agreement < MIN_AGREEMENT:
        raise UserError(
            f"{where}: too many images have another top-1 class than with the checkpoint (found "
            f"{1 - check.agreement:.2%}, expected at most {1 - MIN_AGREEMENT:.1%}); no file was written"
        )
