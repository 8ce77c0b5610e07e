"""Knowledge distillation: the trained network (teacher) whose outputs the trained network (student) imitates."""

from typing import Optional

import mindspore as ms
from mindspore import nn

from src.config.schema import MINDCV, Config, ModelConfig, resolved
from src.errors import UserError
from src.models import create_model
from src.models.classifier import Classifier
from src.weights.checkpoint import fill, load_checkpoint, restore
from src.weights.readers import read_tensors


class Teacher(nn.Cell):
    """Computes the teacher's logits, float32 (N, classes), for images (N, C, H, W) as normalised for the student."""

    def __init__(self, classifier: Classifier, student: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.set_train(False)
        self.teacher_preprocess, self.student_preprocess = classifier.preprocess, student.preprocess

    def construct(self, pixels: ms.Tensor) -> ms.Tensor:
        raw = pixels / self.student_preprocess.scale + self.student_preprocess.mean
        return self.classifier.classify((raw - self.teacher_preprocess.mean) * self.teacher_preprocess.scale)


def create_teacher(config: Config, student: Classifier, classes: list[str]) -> Optional[Teacher]:
    """Return the `Teacher` that `distill.teacher` names, or None if `distill.teacher` is null.

    A teacher that is missing, damaged, or has other classes or channels than the student is a `UserError`.
    """
    settings = config.distill
    if settings.teacher is None:
        return None
    if settings.teacher.startswith(MINDCV):
        classifier = create_model(ModelConfig(name=settings.teacher), config.data, len(classes))
        path = resolved(settings.pretrained)
        tensors = {f"backbone.{name}": ms.Tensor(value) for name, value in read_tensors(path).items()}
        fill(classifier.parameters_dict(), tensors, path)
    else:
        checkpoint = load_checkpoint(settings.teacher)
        if checkpoint.classes != classes:
            raise UserError(f"distill.teacher: {settings.teacher} was trained on other classes than {config.data.name}")
        if checkpoint.config.data.channels != config.data.channels:
            raise UserError(
                f"distill.teacher: {settings.teacher} was trained on images with another number of channels "
                f"(found {checkpoint.config.data.channels}, expected {config.data.channels} from data.channels)"
            )
        classifier = restore(checkpoint)
    for parameter in classifier.get_parameters():
        parameter.requires_grad = False
        parameter.name = f"teacher.{parameter.name}"
    return Teacher(classifier, student)
