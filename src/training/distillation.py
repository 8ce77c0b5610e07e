"""The trained network that another one learns from."""

from typing import Optional

import mindspore as ms
from mindspore import nn

from src.config.schema import MINDCV, Config, ModelConfig
from src.errors import UserError
from src.models import create_model
from src.models.classifier import Classifier
from src.weights.checkpoint import fill, load_checkpoint, restore
from src.weights.readers import read_tensors


class Teacher(nn.Cell):
    """A classifier's logits, float32 (N, classes), for images (N, C, H, W) that are normalised for a student."""

    def __init__(self, classifier, student):
        super().__init__()
        self.classifier = classifier.set_train(False)
        self.own, self.students = classifier.preprocess, student.preprocess

    def construct(self, pixels):
        raw = pixels / self.students.scale + self.students.mean
        return self.classifier.classify((raw - self.own.mean) * self.own.scale)


def create_teacher(config: Config, student: Classifier, classes: list[str]) -> Optional[Teacher]:
    """Return the `Teacher` that `distill.teacher` names, or None; its classes must be the student's.

    One that is missing, damaged or does not fit is a `UserError`.
    """
    settings = config.distill
    if settings.teacher is None:
        return None
    if settings.teacher.startswith(MINDCV):
        classifier = create_model(ModelConfig(name=settings.teacher), config.data, len(classes))
        tensors = {f"backbone.{name}": ms.Tensor(value) for name, value in read_tensors(settings.pretrained).items()}
        fill(classifier.parameters_dict(), tensors, settings.pretrained)
    else:
        checkpoint = load_checkpoint(settings.teacher)
        if checkpoint.classes != classes:
            raise UserError(f"distill.teacher: {settings.teacher} has other classes than {config.data.name}")
        if checkpoint.config.data.channels != config.data.channels:
            raise UserError(
                f"distill.teacher: {settings.teacher} sees {checkpoint.config.data.channels} channels, "
                f"but data.channels is {config.data.channels}"
            )
        classifier = restore(checkpoint)
    for parameter in classifier.get_parameters():
        parameter.requires_grad = False
        parameter.name = f"teacher.{parameter.name}"
    return Teacher(classifier, student)
