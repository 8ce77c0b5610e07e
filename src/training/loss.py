"""The loss of a batch: cross-entropy with label smoothing, mixed images, and a teacher's share."""

from mindspore import ops


def make_loss(classifier, config, teacher=None, scaler=None):
    """Return `loss_of(images, labels, *drawn) -> (scaled loss, loss, logits)`; `drawn` is what `RandomDraws` says.

    images: uint8 (N, H, W, C), labels: int32 (N); loss: float32 scalar, logits: float32 (N, classes). With a `teacher`
    the loss is (1 - weight) * cross-entropy + weight * distillation (arXiv 1503.02531, section 2). The scaled
    loss, that gradients are to be of, is `scaler`'s multiple.
    """
    smoothing = config.train.label_smoothing
    mixes, drops = config.augment.mixup > 0 or config.augment.cutmix > 0, config.model.dropout > 0
    weight, temperature = config.distill.weight, config.distill.temperature

    def loss_of(images, labels, *drawn):
        pixels = classifier.preprocess(images)
        share, partners = 0.0, labels
        if mixes:
            pixels, share = mix(pixels, drawn[0])
            partners = ops.flip(labels, (0,))
        logits = classifier.classify(pixels, drawn[-1] if drops else None)
        scores = ops.log_softmax(logits, -1)
        loss = cross_entropy(scores, labels, smoothing)
        if mixes:
            loss = (1 - share) * loss + share * cross_entropy(scores, partners, smoothing)
        if teacher is not None:
            loss = (1 - weight) * loss + weight * distillation(logits, teacher(pixels), temperature)
        return (loss if scaler is None else scaler.scale(loss)), loss, logits

    return loss_of


def cross_entropy(scores, labels, smoothing):
    """Return the mean cross-entropy of log-probabilities (N, classes) with labels smoothed over all classes.

    Smoothing as in arXiv 1512.00567, section 7.
    """
    own = ops.gather_elements(scores, 1, ops.expand_dims(labels, 1))
    return -((1 - smoothing) * own.mean() + smoothing * scores.mean())


def mix(pixels, drawn):
    """Give each image of (N, C, H, W) a share of the one as far from the batch's other end.

    `drawn` is (weight, top, bottom, left, right) of `RandomDraws`. Return the images and the partner's share of the
    area, a float32 scalar.
    """
    height, width = pixels.shape[-2:]
    weight, top, bottom, left, right = drawn[0], drawn[1], drawn[2], drawn[3], drawn[4]
    rows, columns = ops.arange(height) + 0.5, ops.arange(width) + 0.5
    rows = ops.logical_and(rows > top * height, rows < bottom * height).astype(pixels.dtype)
    columns = ops.logical_and(columns > left * width, columns < right * width).astype(pixels.dtype)
    mask = weight * ops.expand_dims(rows, 1) * ops.expand_dims(columns, 0)
    return pixels + mask * (ops.flip(pixels, (0,)) - pixels), mask.mean()


def distillation(logits, teacher_logits, temperature):
    """Return T² * KL(teacher || student) of outputs softened by the temperature T, the mean over images."""
    target = ops.log_softmax(ops.stop_gradient(teacher_logits) / temperature, -1)
    scores = ops.log_softmax(logits / temperature, -1)
    return temperature**2 * (ops.exp(target) * (target - scores)).sum(-1).mean()
