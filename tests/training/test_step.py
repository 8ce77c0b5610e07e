"""The techniques of a training step against formulas in NumPy."""

import functools

import mindcv
import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.config.load import make_config
from src.errors import UserError
from src.models import create_model
from src.models.classifier import Classifier, Preprocess
from src.runtime.parallel import Ranks
from src.runtime.precision import create_scaler
from src.training.distillation import Teacher, create_teacher
from src.training.loss import mix
from src.training.moving_average import DeviceMovingAverage, MovingAverage
from src.training.optimizer import create_optimizer
from src.training.random_draws import RandomDraws
from src.training.recalibration import Recalibration, batches_of_auto
from src.training.step import TrainStep

CLASSES, FEATURES = 3, 12


class Linear(nn.Cell):
    """A softmax regression on the pixels of float32 images (N, 1, 3, 4)."""

    features = FEATURES

    def __init__(self, dropout=0.0, seed=0, preprocess=None):
        super().__init__()
        self.preprocess = preprocess or nn.Identity()
        generator = np.random.default_rng(seed)
        self.head = nn.Dense(FEATURES, CLASSES)
        self.head.weight.set_data(ms.Tensor(generator.normal(size=(CLASSES, FEATURES)).astype(np.float32)))
        self.head.bias.set_data(ms.Tensor(generator.normal(size=CLASSES).astype(np.float32)))
        self.dropout = dropout

    def classify(self, pixels, kept=None):
        features = pixels.reshape((len(pixels), FEATURES))
        return self.head(features if kept is None else features * kept.astype(ms.float32) / (1 - self.dropout))

    def construct(self, images):
        return self.classify(images)

    def arrays(self):
        return self.head.weight.asnumpy().astype(np.float64), self.head.bias.asnumpy().astype(np.float64)


def settings(compiled=False, **sections):
    plain = {"lr": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    runtime = {"mode": "graph" if compiled else "pynative"}
    return make_config({"optimizer": plain, "schedule": {"name": "constant"}, "runtime": runtime, **sections})


def batch(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 1, 3, 4)).astype(np.float32), generator.integers(0, CLASSES, count, np.int32)


def run(network, config, images, labels, number=0, **parts):
    """Train on one batch, which has this number in the run; return its loss and hits."""
    step = TrainStep(network, create_optimizer(config, network), config, **parts)
    step.begin(np.float32([0.5]), epoch=number)
    step(ms.Tensor(images), ms.Tensor(labels))
    ((loss, hits),) = step.results()
    return loss, hits


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def gradients(x, targets, weight, bias):
    """Return the gradients of the mean cross-entropy of a softmax regression."""
    error = (np.exp(log_softmax(x @ weight.T + bias)) - targets) / len(x)
    return error.T @ x, error.sum(0)


def flat(images):
    return images.reshape(len(images), -1).astype(np.float64)


@pytest.mark.parametrize("compiled", [False, True])
def test_accumulated_batches_equal_one_large_batch(compiled):
    images, labels = batch(24)
    network = Linear()
    weight, bias = network.arrays()
    config = settings(compiled, train={"accumulate": 3, "batch_size": 8})
    step = TrainStep(network, create_optimizer(config, network), config)
    step.begin(np.float32([0.5, 0.25]))
    for update in range(2):
        rate = (0.5, 0.25)[update]
        for part in range(3):
            np.testing.assert_allclose(network.arrays()[0], weight, rtol=1e-5, atol=1e-6)
            chosen = slice(8 * part, 8 * part + 8)
            step(ms.Tensor(images[chosen]), ms.Tensor(labels[chosen]))
        expected = gradients(flat(images), np.eye(CLASSES)[labels], weight, bias)
        weight, bias = weight - rate * expected[0], bias - rate * expected[1]
        np.testing.assert_allclose(network.arrays()[0], weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(network.arrays()[1], bias, rtol=1e-5, atol=1e-6)


def test_loading_a_state_sets_the_gradient_sums_to_zero():
    images, labels = batch(16)
    network = Linear()
    weight, bias = network.arrays()
    config = settings(train={"accumulate": 2, "batch_size": 8})
    step = TrainStep(network, create_optimizer(config, network), config)
    saved = {name: ms.Tensor(parameter.asnumpy().copy()) for name, parameter in step.state.items()}
    step.begin(np.float32([0.5]))
    step(ms.Tensor(np.full_like(images[:8], np.nan)), ms.Tensor(labels[:8]))
    assert not any(np.isfinite(total.asnumpy()).any() for total in step.gradient_sums)
    step.load(saved, "state.ckpt")
    step.begin(np.float32([0.5]))
    for chosen in (slice(8), slice(8, 16)):
        step(ms.Tensor(images[chosen]), ms.Tensor(labels[chosen]))
    expected = gradients(flat(images), np.eye(CLASSES)[labels], weight, bias)
    np.testing.assert_allclose(network.arrays()[0], weight - 0.5 * expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(network.arrays()[1], bias - 0.5 * expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("key", "limit"), [("clip_norm", 0.2), ("clip_norm", 100.0), ("clip_value", 0.05)])
def test_gradients_are_clipped(key, limit):
    images, labels = batch(8)
    network = Linear()
    before = network.arrays()
    run(network, settings(True, train={key: limit}), images, labels)
    expected = gradients(flat(images), np.eye(CLASSES)[labels], *before)
    if key == "clip_norm":
        length = np.sqrt(sum((gradient**2).sum() for gradient in expected))
        expected = [gradient * min(1, limit / length) for gradient in expected]
    else:
        expected = [np.clip(gradient, -limit, limit) for gradient in expected]
    for old, new, gradient in zip(before, network.arrays(), expected):
        np.testing.assert_allclose(old - new, 0.5 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixup_and_cutmix_follow_the_papers(mixup, cutmix):
    config = settings(augment={"mixup": mixup, "cutmix": cutmix})
    generator = np.random.default_rng(1)
    images = generator.normal(size=(5, 2, 16, 12)).astype(np.float32)
    weights, shares = [], []
    for number in range(30):
        (box,) = RandomDraws(config, None).tensors(number, 5)
        mixed, share = mix(ms.Tensor(images), ms.Tensor(box))
        weight, top, bottom, left, right = box
        mask = np.zeros((16, 12))
        for row in range(16):
            for column in range(12):
                if top * 16 < row + 0.5 < bottom * 16 and left * 12 < column + 0.5 < right * 12:
                    mask[row, column] = weight
        expected = np.stack([image * (1 - mask) + other * mask for image, other in zip(images, images[::-1])])
        np.testing.assert_allclose(mixed.asnumpy(), expected, atol=1e-5)
        assert float(share.asnumpy()) == pytest.approx(mask.mean(), abs=1e-6)
        weights.append(weight)
        shares.append(mask.mean())
    blended = [share for weight, share in zip(weights, shares) if weight < 1]
    assert bool(blended) == (mixup > 0)
    assert (len(blended) < 30) == (cutmix > 0)
    if not cutmix:  # the variance of Beta(a, a) is 1 / (4 (2 a + 1))
        assert np.var(blended) == pytest.approx(1 / (4 * (2 * mixup + 1)), rel=0.5)


def test_loss_of_mixed_and_smoothed_labels():
    images, labels = batch(6)
    config = settings(augment={"cutmix": 1.0}, train={"label_smoothing": 0.1})
    (box,) = RandomDraws(config, None).tensors(7, 6)
    mixed, share = (value.asnumpy().astype(np.float64) for value in mix(ms.Tensor(images), ms.Tensor(box)))
    network = Linear()
    weight, bias = network.arrays()
    loss, hits = run(network, config, images, labels, number=7)
    expected = flat(mixed) @ weight.T + bias
    assert hits == (expected.argmax(1) == labels).sum()
    targets = (1 - share) * np.eye(CLASSES)[labels] + share * np.eye(CLASSES)[labels[::-1]]
    targets = 0.9 * targets + 0.1 / CLASSES
    assert loss == pytest.approx(-(targets * log_softmax(expected)).sum(1).mean(), rel=1e-5)


def test_dropout_drops_its_share_and_scales_the_rest():
    images, labels = batch(50)
    config = settings(model={"dropout": 0.3})
    (kept,) = RandomDraws(config, FEATURES).tensors(4, 50)
    assert kept.mean() == pytest.approx(0.7, abs=0.06)
    network = Linear(dropout=0.3)
    weight, bias = network.arrays()
    loss, _ = run(network, config, images, labels, number=4)
    scores = log_softmax(flat(images) * kept / 0.7 @ weight.T + bias)
    assert loss == pytest.approx(-scores[np.arange(50), labels].mean(), rel=1e-5)


def test_random_numbers_depend_on_seed_rank_and_batch_number_only():
    config = settings(model={"dropout": 0.3}, augment={"mixup": 1.0})
    random_numbers = [
        b"".join(array.tobytes() for array in RandomDraws(changed, 8, rank).tensors(number, 4))
        for changed, rank, number in [
            (config, 0, 3),
            (config, 0, 3),
            (config, 1, 3),
            (config, 0, 4),
            (make_config(config.model_dump(), ["train.seed=1"]), 0, 3),
        ]
    ]
    assert random_numbers[0] == random_numbers[1]
    assert len(set(random_numbers)) == 4


AVERAGES = {
    "host": MovingAverage,
    "device": functools.partial(DeviceMovingAverage, compiled=False),
    "compiled": functools.partial(DeviceMovingAverage, compiled=True),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_moving_average_follows_its_formula(kind):
    # Compiled graphs that change parameters need graph mode, as `runtime.mode` sets it: in PyNative mode, MindSpore
    # 2.7.0 gives them memory that is in use elsewhere.
    ms.set_context(mode=ms.GRAPH_MODE if kind == "compiled" else ms.PYNATIVE_MODE)
    make = AVERAGES[kind]
    network = Linear()
    average = make(network, 0.6)
    expected = network.head.weight.asnumpy().astype(np.float64)
    average.begin(0, 29)
    for updates in range(1, 30):
        weight = np.full((CLASSES, FEATURES), float(updates), np.float32)
        network.head.weight.set_data(ms.Tensor(weight))
        average.update()
        decay = min(0.6, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * weight
    np.testing.assert_allclose(average.values()["head.weight"], expected, rtol=1e-5)
    with average.in_place():
        np.testing.assert_allclose(network.head.weight.asnumpy(), expected, rtol=1e-5)
    assert (network.head.weight.asnumpy() == 29).all()


class Batches:
    """A loader that gives the images in batches of four."""

    batch_size = 4

    def __init__(self, images):
        self.images = images

    def epoch(self):
        for start in range(0, len(self.images), 4):
            yield self.images[start : start + 4], None


def test_recalibrated_norms_have_the_mean_statistics_of_the_batches():
    network = nn.SequentialCell(nn.BatchNorm2d(2, momentum=0.97))
    norm = network[0]
    images = np.random.default_rng(0).normal(3, 2, (14, 2, 5, 6)).astype(np.float32)
    recalibration = Recalibration(network, Batches(images), 3, False, Ranks())
    batches = images[:12].astype(np.float64).reshape(3, 4, 2, 5, 6)
    with recalibration.in_place(lambda: None):
        assert not network.training
        np.testing.assert_allclose(norm.moving_mean.asnumpy(), batches.mean((1, 3, 4)).mean(0), rtol=1e-4)
        np.testing.assert_allclose(norm.moving_variance.asnumpy(), batches.var((1, 3, 4), ddof=1).mean(0), rtol=1e-4)
    assert (norm.moving_mean.asnumpy() == 0).all()
    assert (norm.moving_variance.asnumpy() == 1).all()


def test_an_exception_during_recalibration_or_averaging_restores_the_network():
    network = nn.SequentialCell(nn.BatchNorm2d(2))
    images = np.random.default_rng(0).normal(3, 2, (14, 2, 5, 6)).astype(np.float32)
    calls = iter(range(9))

    def poll():
        if next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Recalibration(network, Batches(images), 3, False, Ranks()).in_place(poll):
        pytest.fail("the context was entered")
    assert (network[0].moving_mean.asnumpy() == 0).all()
    assert (network[0].moving_variance.asnumpy() == 1).all()
    average = MovingAverage(network, decay=0.5)
    average.averages = {name: np.full_like(value, 7) for name, value in average.values().items()}
    del average.averages[list(average.averages)[-1]]
    with pytest.raises(KeyError), average.in_place():
        pytest.fail("the context was entered")
    assert (network[0].gamma.asnumpy() == 1).all()


@pytest.mark.parametrize(
    ("momentum", "batches", "expected"),
    # 1 / (1 - m) batches against a tenth of an epoch; 512 images are 16 batches of 32.
    [(0.9, 468, 0), (0.9, 101, 0), (0.9, 99, 16), (0.9, 6, 6), (0.99, 468, 16), (0.99, 1010, 0), (0.5, 44, 0)],
)
def test_automatic_recalibration_acts_in_short_epochs(momentum, batches, expected):
    network = nn.SequentialCell(nn.BatchNorm2d(2, momentum=momentum))
    assert batches_of_auto(network, batches, 32) == expected
    network[0].gamma.requires_grad = False
    assert batches_of_auto(network, batches, 32) == 0


def test_distillation_follows_its_formula():
    images, labels = batch(6)
    network, teacher = Linear(), Linear(seed=5)
    config = settings(distill={"teacher": "any.ckpt", "weight": 0.3, "temperature": 2.5})
    scores = flat(images) @ network.arrays()[0].T + network.arrays()[1]
    teacher_scores = flat(images) @ teacher.arrays()[0].T + teacher.arrays()[1]
    loss, _ = run(network, config, images, labels, teacher=teacher)
    hard_loss = -log_softmax(scores)[np.arange(6), labels].mean()
    p, q = log_softmax(teacher_scores / 2.5), log_softmax(scores / 2.5)
    soft_loss = 2.5**2 * (np.exp(p) * (p - q)).sum(1).mean()
    assert loss == pytest.approx(0.7 * hard_loss + 0.3 * soft_loss, rel=1e-5)


def test_teacher_gets_images_with_the_normalisation_of_the_teacher():
    student = Linear(preprocess=Preprocess([0.2], [0.5]))
    classifier = Linear(seed=5, preprocess=Preprocess([0.6], [0.1]))
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 4, 1), np.uint8)
    logits = Teacher(classifier, student)(student.preprocess(ms.Tensor(images)))
    pixels = (images.transpose(0, 3, 1, 2) / 255 - 0.6) / 0.1
    weight, bias = classifier.arrays()
    np.testing.assert_allclose(logits.asnumpy(), flat(pixels) @ weight.T + bias, rtol=1e-3)


def test_mindcv_teacher_has_the_weights_of_its_file(tmp_path):
    peer = mindcv.create_model("mobilenet_v1_025", num_classes=3, in_channels=1).set_train(False)
    ms.save_checkpoint(peer, str(tmp_path / "peer.ckpt"))
    model = {"name": "shufflenet_v2", "width": 0.5}
    data = {"channels": 1, "image_size": 32, "mean": [0.3], "std": [0.2]}
    distill = {"teacher": "mindcv/mobilenet_v1_025", "pretrained": str(tmp_path / "peer.ckpt")}
    config = settings(model=model, data=data, distill=distill)
    student = create_model(config.model, config.data, 3)
    pixels = ms.Tensor(np.random.default_rng(0).normal(size=(2, 1, 32, 32)).astype(np.float32))
    logits = create_teacher(config, student, ["a", "b", "c"])(pixels)
    np.testing.assert_allclose(logits.asnumpy(), peer(pixels).asnumpy(), rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match=r"peer.ckpt: the weights do not fit the network"):
        create_teacher(config, student, ["a", "b"])


def test_teacher_that_does_not_fit_is_an_error(tmp_path):
    config = settings(model={"width": 0.5}, distill={"teacher": str(tmp_path / "none.ckpt")})
    with pytest.raises(UserError, match=r"none.ckpt: no such checkpoint"):
        create_teacher(config, create_model(config.model, config.data, 3), ["a", "b", "c"])


def test_an_overflow_skips_the_update_and_halves_the_scale():
    images, labels = batch(4)
    network = Linear()
    config = settings(True)
    scaler = create_scaler()
    step = TrainStep(network, create_optimizer(config, network), config, scaler=scaler)
    before = network.arrays()
    step.begin(np.float32([0.5, 0.5]))
    images[0, 0, 0, 0] = np.inf
    step(ms.Tensor(images), ms.Tensor(labels))
    assert (network.arrays()[0] == before[0]).all()
    assert float(scaler.scale_value.asnumpy()) == 2.0**15
    images[0, 0, 0, 0] = 0.5
    step(ms.Tensor(images), ms.Tensor(labels))
    loss = step.results()[1, 0]
    expected = gradients(flat(images), np.eye(CLASSES)[labels], *before)
    np.testing.assert_allclose(network.arrays()[0], before[0] - 0.5 * expected[0], rtol=1e-4, atol=1e-6)
    scores = log_softmax(flat(images) @ before[0].T + before[1])
    assert loss == pytest.approx(-scores[np.arange(4), labels].mean(), rel=1e-5)


class RankBesideAnOverflow(Ranks):
    """A rank of two; the gradients of the other rank, which does not exist, are not finite."""

    def gradient_mean(self, parameters):
        return None

    def all_true(self):
        return ops.zeros_like

    def total(self):
        return None


@pytest.mark.parametrize("compiled", [False, True])
def test_an_overflow_on_another_rank_skips_the_update_on_this_rank_too(compiled):
    config, network, scaler = settings(compiled), Linear(), create_scaler()
    before = network.arrays()
    step = TrainStep(network, create_optimizer(config, network), config, RankBesideAnOverflow(0, 2), scaler=scaler)
    images, labels = batch(4)
    step.begin(np.float32([0.5]))
    step(ms.Tensor(images), ms.Tensor(labels))
    assert all((left == right).all() for left, right in zip(before, network.arrays()))
    assert float(scaler.scale_value.asnumpy()) == 2.0**15


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_and_loss_of_a_network_in_float16_are_float32(compiled):
    """A network of mindcv has no head here, so mixed precision gives its last layer float16."""
    backbone = nn.SequentialCell(nn.Flatten(), nn.Dense(12, CLASSES)).to_float(ms.float16)
    classifier = Classifier(backbone, None, 0.0, [0.5], [0.25])
    config, scaler = settings(compiled), create_scaler()
    step = TrainStep(classifier, create_optimizer(config, classifier), config, scaler=scaler)
    before = backbone[1].weight.asnumpy().copy()
    images = ms.Tensor(np.random.default_rng(0).integers(0, 256, (8, 3, 4, 1), np.uint8))
    step.begin(np.float32([0.5]))
    step(images, ms.Tensor(np.arange(8, dtype=np.int32) % CLASSES))
    # A loss in float16, at most 65,504, would be infinite after its scaling by 65,536, and the update would be skipped.
    assert float(scaler.scale_value.asnumpy()) == 2.0**16
    assert (backbone[1].weight.asnumpy() != before).any()
