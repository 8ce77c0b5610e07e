import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from sklearn import metrics

from src.data.loading import Loader
from src.data.samples import Samples
from src.data.transforms import View
from src.evaluation.evaluate import evaluate, make_eval_step, predict, softmax, summarize


class PixelsAsLogits(nn.Cell):
    """A network in place of a classifier: its logits are the pixels of the image."""

    def construct(self, images):
        return images.reshape((images.shape[0], -1)).astype(ms.float32) / 50


@pytest.mark.parametrize(("classes", "batch_size"), [(9, 7), (9, 40), (4, 8)])
def test_metrics_agree_with_scikit_learn(classes, batch_size):
    generator = np.random.default_rng(0)
    # The pixels of an image are all different, because scikit-learn breaks ties in another way than argmax.
    pixels = np.stack([generator.choice(256, classes, replace=False) for _ in range(40)]).astype(np.uint8)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, 40 - classes)]).astype(np.int32)
    names = [str(i) for i in range(classes)]
    samples = Samples(pixels.reshape(40, 1, classes, 1), labels, names)
    network = PixelsAsLogits()
    result = evaluate(network, make_eval_step(network, compiled=False), Loader(samples, View([], []), batch_size, 1))

    logits = pixels / 50
    probabilities = softmax(logits)
    predicted = logits.argmax(1)
    assert result.images == 40
    assert result.loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(classes)), rel=1e-5)
    assert result.top1 == metrics.accuracy_score(labels, predicted)
    expected_top5 = 1.0 if classes <= 5 else metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
    assert result.top5 == expected_top5
    assert (result.confusion == metrics.confusion_matrix(labels, predicted, labels=range(classes))).all()
    precision, recall, _, images = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=np.nan
    )
    for i, row in enumerate(result.per_class(names)):
        assert row["class"] == names[i]
        assert row["images"] == images[i]
        assert row["recall"] == pytest.approx(recall[i])
        if row["precision"] is None:
            assert np.isnan(precision[i])
        else:
            assert row["precision"] == pytest.approx(precision[i])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [3, 9])
def test_logits_with_nan_count_as_wrong(classes):
    labels = np.arange(classes, dtype=np.int32)
    logits = np.eye(classes, dtype=np.float32)  # all correct
    logits[0] = np.nan
    logits[1, 1] = np.nan
    logits[2, 0] = np.nan
    result = summarize([(None, labels, logits)])
    assert np.isnan(result.loss)
    assert (result.top1, result.top5) == ((classes - 3) / classes, (classes - 3) / classes)
    assert [row["recall"] for row in result.per_class(labels)] == [0.0] * 3 + [1.0] * (classes - 3)
    assert result.confusion.sum() == result.images == classes
    infinite = summarize([(None, labels, np.full((classes, classes), np.inf, np.float32))])
    assert np.isnan(infinite.loss)


def test_softmax_of_large_logits_is_finite():
    assert softmax(np.array([[1000.0, 0.0, -1000.0]])).tolist() == [[1.0, 0.0, 0.0]]


def test_the_device_has_a_batch_while_the_host_works_on_an_earlier_batch():
    """The host waits once for four batches, starts the next batch, and only then hands out a finished batch."""
    events, batches = [], []

    class Logits:
        def asnumpy(self):
            events.append("wait")
            return np.zeros((2, 3), np.float32)

    def step(images):
        events.append("start")
        batches.append(images.asnumpy())
        return Logits()

    images = np.arange(19, dtype=np.uint8).reshape(19, 1, 1, 1)
    for found, labels, logits in predict(step, Loader(Samples(images, np.arange(19), list("abc")), View([], []), 2, 1)):
        events.append("use")
        assert len(found) == len(labels) == len(logits)
    group = ["wait"] * 4 + ["start", "use"] * 4
    assert events == ["start"] * 4 + group + group[:8] + ["use"] * 2 + ["wait"] * 2 + ["use"] * 2
    assert np.array_equal(np.concatenate(batches).ravel(), [*range(19), 18])  # the last batch is filled up
