"""Verify on each of its runtimes that an exported file gives the same outputs as its checkpoint."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np

from src.config.schema import RuntimeConfig
from src.data.loading import Loader
from src.deploy.description import RuntimeCheck, Split, Verification
from src.deploy.options import Options, check_images
from src.deploy.runtimes.lite import find_lite, need_lite
from src.deploy.runtimes.openvino import DEFAULT_PRECISION, openvino_runtimes
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
CHECKPOINT_BATCH = 64  # images that the checkpoint classifies at a time; a batch for each would take longer
MIN_AGREEMENT = 0.999  # share of images with the same top-1 class


def runtimes(path: Path, options: Options) -> list[Runtime]:
    """Return the runtimes to verify the file on."""
    if options.format == "air":
        return []  # only Ascend's own tools load it
    if options.format == "onnx":
        return [OnnxRuntime(path), *openvino_runtimes(path)]
    if options.format == "web":
        return [OnnxRuntime(path)]
    if options.format == "ncnn":
        return [ncnn_runtime(path)]
    if options.format == "ms":
        return [lite_runtime(path, need_lite(options.lite_python))]
    python = find_lite(options.lite_python)
    if options.mindir_version == 1 and python is not None:
        return [MindSporeRuntime(path), lite_runtime(path, python)]
    return [MindSporeRuntime(path)]


@dataclass(frozen=True)
class Expected:
    """The checkpoint's outputs for the images of the verification, in the loader's order."""

    labels: np.ndarray  # int32 (N)
    logits: np.ndarray  # float32 (N, classes)

    @property
    def top1(self) -> float:
        """The checkpoint's top-1, as a fraction of 1."""
        return float((self.logits.argmax(1) == self.labels).mean())


class LossError(UserError):
    """A float16 or int8 file loses more top-1, or agrees with the checkpoint on fewer images, than the limits allow."""


def expected_outputs(runtime: RuntimeConfig, classifier: Classifier, loader: Loader) -> Expected:
    """Return the checkpoint's outputs for the loader's images; `runtime` is the section of the config.

    They do not depend on the batch size, so small batches are enlarged.
    """
    step = make_eval_step(classifier.set_train(False), compiled=runtime.mode == "graph")
    larger = copy.copy(loader)
    larger.batch_size = max(loader.batch_size, min(CHECKPOINT_BATCH, len(loader.samples)))
    _, labels, logits = zip(*predict(step, larger))
    return Expected(np.concatenate(labels), np.concatenate(logits))


@dataclass(frozen=True)
class Verifier:
    """Runs exported files of one checkpoint on each of their runtimes, and compares with the checkpoint's outputs.

    `loader` gives the images of `split` that gave `expected`. The files divide the logits by `temperature`.
    """

    expected: Expected
    classifier: Classifier
    loader: Loader
    split: Split
    options: Options
    temperature: float = 1.0

    def verify(self, path: Path) -> Verification:
        """Return the `Verification` of the file at `path`; a difference above the limits is a `UserError`."""
        verification = self.compare(path)
        largest = float(np.abs(self.expected.logits).max()) / self.temperature
        allowed = max(MAX_DIFFERENCE, MAX_RELATIVE_DIFFERENCE * largest)
        for check in verification.runtimes:
            check_limits(check, verification, self.options, allowed)
        return verification

    def compare(self, path: Path) -> Verification:
        """Return the `Verification` of the file at `path`. An output that is not finite is a `UserError`."""
        options, labels = self.options, self.expected.labels
        targets = runtimes(path, options)
        wanted = self.expected.logits.astype(np.float64) / self.temperature
        if not options.logits:
            wanted = np.maximum(log_softmax(wanted), np.log(SMALLEST_PROBABILITY))
        found: list[list[np.ndarray]] = [[] for _ in targets]
        for batch, _ in self.loader.epoch() if targets else ():
            missing = 0 if options.dynamic_batch else options.batch - len(batch)
            padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            x = padded if options.input == "image" else self.classifier.preprocess(ms.Tensor(padded)).asnumpy()
            for scores, target in zip(found, targets):
                scores.append(log_scores(target.run(x)[: len(batch)], options))
                if not np.isfinite(scores[-1]).all():
                    raise UserError(
                        f"verification failed on {target.name}: the output is not finite; no file was written"
                    )
        for target in targets:
            target.close()
        checks = [check_of(target, np.concatenate(scores), wanted, labels) for target, scores in zip(targets, found)]
        return Verification(images=len(labels), split=self.split, checkpoint_top1=self.expected.top1, runtimes=checks)


def check_of(target: Runtime, scores: np.ndarray, wanted: np.ndarray, labels: np.ndarray) -> RuntimeCheck:
    """Return the `RuntimeCheck` of a runtime's outputs `scores` (N, classes), where `wanted` are the checkpoint's."""
    right, still_right = wanted.argmax(1) == labels, scores.argmax(1) == labels
    lost, won = int((right & ~still_right).sum()), int((~right & still_right).sum())
    return RuntimeCheck(
        runtime=target.name,
        version=target.version,
        max_difference=float(np.abs(scores - wanted).max()),
        agreement=float((scores.argmax(1) == wanted.argmax(1)).mean()),
        top1=float(still_right.mean()),
        drop_interval=drop_interval(lost, won, len(labels)),
    )


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
    precision = "its precision" if check.runtime == DEFAULT_PRECISION else options.precision
    where = f"verification failed on {check.runtime} {check.version} with {verification.images} images"
    if options.precision != "float32" or check.runtime == DEFAULT_PRECISION:
        drop = 100 * (verification.checkpoint_top1 - check.top1)
        if drop > options.max_drop:
            raise LossError(
                f"{where}: {precision} loses too much top-1 (found {drop:.2f} points, expected at most "
                f"{options.max_drop:g}); no file was written, --max-drop allows more"
            )
        if 100 * check.agreement < options.min_agreement:
            raise LossError(
                f"{where}: {precision} gives too many images another top-1 class than the checkpoint (found "
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
