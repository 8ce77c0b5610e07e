"""What the device does with one batch, compiled or op by op."""

import mindspore as ms
from mindspore import nn, ops


def make_train_step(classifier, optimizer, label_smoothing, compiled):
    """Return `step(images, labels, rate) -> (loss, logits)`, which updates the weights once.

    images: uint8 (N, H, W, C), labels: int32 (N), rate: the learning rate, float32 scalar; loss: float32 scalar,
    logits: float32 (N, classes).
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(images, labels):
        logits = classifier(images)
        return criterion(logits, labels), logits

    gradients_of = ms.value_and_grad(forward, None, optimizer.parameters, has_aux=True)

    def step(images, labels, rate):
        (loss, logits), gradients = gradients_of(images, labels)
        return ops.depend(loss, optimizer(gradients, rate)), logits

    return ms.jit(step) if compiled else step


def make_eval_step(classifier, compiled):
    """Return `step(images) -> logits` for uint8 images (N, H, W, C); the classifier must be in evaluation mode."""

    def step(images):
        return classifier(images)

    return ms.jit(step) if compiled else step
