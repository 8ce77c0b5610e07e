"""Every setting of PocketSpore: its default, unit and allowed values.

A comment above a setting, or on its line, explains it. Command line: `section.key=value`, such as `train.epochs=5`.

This module imports neither MindSpore nor NumPy, so an error in a config is reported at once. Only the tables of
networks and data sets know the allowed widths and the default folders. So `resolve_model` in `src/models` and
`resolve_data` in `src/data/datasets.py` check these settings later.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, Optional, TypeVar, Union

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from src.errors import did_you_mean

MINDCV = "mindcv/"  # prefix in the name of a network that mindcv provides
SAME = "same"  # a value of model.padding
SPLITS = ("train", "val", "test")
MOST_CLASSES = 100_000  # outputs of a network; ImageNet-21k has 21,841 classes
REQUIRED = object()  # stands in place of a default if the user must give the setting

Value = TypeVar("Value")
Choices = Mapping[str, Mapping[str, Any]]  # value of a setting: {setting that this value uses: its default}


def one_of(value: Any, allowed: Collection[Any]) -> Any:
    """Return `value` if it is one of the `allowed` values; otherwise raise a `ValueError` that lists them."""
    if value not in allowed:
        raise ValueError(f"{value!r} is not one of {listed(allowed)}{did_you_mean(value, allowed)}")
    return value


def among(*allowed: int) -> AfterValidator:
    """Return the check that an integer is one of the `allowed`; unlike Literal[1, 2], it does not accept true as 1."""
    return AfterValidator(lambda value: one_of(value, allowed))


def listed(values: Iterable[Any]) -> str:
    """Return the values as text, separated by commas."""
    return ", ".join(str(value) for value in values)


def resolved(value: Optional[Value]) -> Value:
    """Return the value of a setting that is no longer null: its default is filled in, or another setting requires it.

    It tells a type checker what it cannot see.
    """
    if value is None:
        raise TypeError("a setting was used before its default was filled in")
    return value


def resolve_own_keys(section: "Section", chooser: str, chosen: str, choices: Choices) -> None:
    """Fill in the defaults of the keys that the `chosen` value of the key `chooser` uses, and refuse all other keys.

    `choices` maps each value of `chooser` to the keys that it uses, with their defaults. The default REQUIRED means
    that the key must be given; the default None means that it may stay null.
    """
    used = choices[chosen]
    chooser = f"{type(section).__name__.removesuffix('Config').lower()}.{chooser}"
    for key in dict.fromkeys(key for keys in choices.values() for key in keys):
        value = getattr(section, key)
        if key not in used:
            if value is not None:
                users = listed(name for name, keys in choices.items() if key in keys)
                raise ValueError(f"{key}: is used with {chooser}={users} only (found {chooser}={chosen}); leave it out")
        elif value is None:
            if used[key] is REQUIRED:
                raise ValueError(f"{key}: must be given with {chooser}={chosen}")
            setattr(section, key, used[key])


class Section(BaseModel):
    """A group of settings; unknown keys, values of a wrong type, and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def fits_float32(cls, value: Any) -> Any:
        """Refuse numbers that are infinite, or have no reciprocal, in the float32 in which networks compute."""
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and number and not 1e-30 <= abs(number) <= 1e30:
                raise ValueError(f"{number} must be 0, or from 1e-30 to 1e30 without its sign")
        return value


class ModelConfig(Section):
    name: str = "shufflenet_v2"  # a network of src/models; or mindcv/NAME: a network of mindcv, for comparison
    width: float = 1.0  # width multiplier; each network has a list of allowed values
    groups: Optional[int] = None  # name: shufflenet_v1 only; groups of the 1x1 convolutions; null: 3
    layout: Optional[str] = None  # name: shufflenet_v2 only; authors, or equal_split (torchvision's); null: authors
    # Number of outputs; null: the number of classes in the training data.
    classes: Optional[int] = Field(None, ge=2, le=MOST_CLASSES)
    dropout: float = Field(0.0, ge=0, lt=1)  # probability of dropping a feature before the classifier, in training
    # Stride of the first convolution. 1 is for small images; it also removes the max pooling after this convolution.
    stem_stride: Annotated[int, among(1, 2)] = 2
    # Epsilon of BatchNorm; null: the value that the pretrained weights were trained with, else the network's default.
    norm_epsilon: Optional[float] = Field(None, gt=0, le=1)
    # Share of the old moving statistics of BatchNorm that a step keeps (1 - PyTorch's momentum); null: the network's
    # default.
    norm_momentum: Optional[float] = Field(None, ge=0, lt=1)
    # Padding of layers with stride 2, if a side of the feature map is even. symmetric: the same on all sides; same: one
    # pixel less above and on the left (MobileNetV3's depthwise convolutions, the ShuffleNets' poolings); null: what the
    # pretrained weights were trained with, else symmetric.
    padding: Optional[Literal["symmetric", "same"]] = None
    # File of initial weights: a .ckpt of PocketSpore or mindcv, a .safetensors or a .pth; null: random weights.
    pretrained: Optional[str] = None
    # Part that is not trained: none; backbone: all except the classifier; a number n: the stem and the first n blocks.
    freeze: Union[int, str] = "none"

    @field_validator("freeze")
    @classmethod
    def known_part(cls, freeze: Union[int, str]) -> Union[int, str]:
        if isinstance(freeze, str):
            return one_of(freeze, ("none", "backbone"))
        if isinstance(freeze, bool) or freeze < 0:
            raise ValueError(f"{freeze!r} is not none, backbone, or a number of blocks (at least 0)")
        return freeze


class DataConfig(Section):
    name: str = "digits"  # a data set of src/data/datasets.py
    root: Optional[str] = None  # folder of the data set; null: the default folder of this data set
    image_size: int = Field(224, ge=8, le=1024)  # height and width of the network's input, in pixels
    channels: Annotated[int, among(1, 3)] = 3  # channels of the network's input: 1 (gray) or 3 (RGB)
    # Mean and standard deviation per channel, of pixels scaled to 0..1; null: ImageNet's values, and with 1 channel
    # their averages over RGB.
    mean: Optional[list[float]] = None
    std: Optional[list[float]] = None
    # Evaluation resizes the short side to image_size / crop_fraction pixels and crops the centre. Training does the
    # same with augment.crop none or pad.
    crop_fraction: float = Field(0.875, gt=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of this resizing
    # true: this resizing computes what Pillow and torchvision compute; false: it skips pixels of large images (OpenCV's
    # interpolation, as before version 0.2.0).
    antialias: bool = True
    # Threads that prepare images. null: the processors that the process may use, divided by the ranks that share them,
    # at most 8; a resumed run keeps its number.
    workers: Optional[int] = Field(None, ge=1, le=1024)
    # Image folders only: share of the images that becomes the val split; null: the data set has a folder per split.
    # Each class with two images or more is in both splits.
    val_fraction: Optional[float] = Field(None, gt=0, lt=1)
    # val_fraction only: a regular expression, which is searched in each file's path inside its class folder. Files with
    # the same match, such as a patient or a burst of photos, stay in one split. The match is group 1 if the expression
    # has groups, otherwise the whole match. null: each file is on its own.
    group: Optional[str] = None
    download: bool = False  # true: download a standard data set to data.root if it is missing there
    # What to do with an image that cannot be decoded. error: stop; skip: count it, and train on the next good image
    # instead, or leave it out of the evaluation.
    on_bad_image: Literal["error", "skip"] = "error"

    @field_validator("group")
    @classmethod
    def valid_pattern(cls, group: Optional[str]) -> Optional[str]:
        try:
            re.compile(group or "")
        except re.error as error:
            raise ValueError(f"{group!r} is not a regular expression: {error}") from None
        return group

    @model_validator(mode="after")
    def resolve(self) -> "DataConfig":
        if self.group is not None and self.val_fraction is None:
            raise ValueError(f"group: is used with data.val_fraction only (found {self.group!r}); leave it out")
        imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        for key, rgb in imagenet.items():
            values = getattr(self, key)
            if values is None:
                values = rgb if self.channels == 3 else [round(sum(rgb) / 3, 3)]
                setattr(self, key, values)
            if len(values) != self.channels:
                raise ValueError(f"{key}: {values} has {len(values)} numbers, but data.channels is {self.channels}")
        # Pixels that are normalised with other numbers have no squares in float32, or are all equal.
        if self.mean is not None and max(map(abs, self.mean)) > 1e6:
            raise ValueError(f"mean: {self.mean} must be from -1e6 to 1e6")
        if self.std is not None and not 1e-6 <= min(self.std) <= max(self.std) <= 1e6:
            raise ValueError(f"std: {self.std} must be greater than 0, from 1e-6 to 1e6")
        return self


# Each crop and each automatic augmentation, with the keys that it uses and their defaults.
CROPS: Choices = {
    "none": {},
    "pad": {"padding": None},  # null: an eighth of data.image_size
    "resized": {"scale": [0.08, 1.0], "ratio": [0.75, 1.3333]},
}
AUTO_AUGMENTATIONS: Choices = {
    "none": {},
    "randaugment": {"num_ops": 2, "magnitude": 9, "probability": 1.0, "magnitude_std": 0.0},
    "trivialaugment": {},
    "autoaugment": {},
}


class AugmentConfig(Section):
    # Random crop of training images. none: the centre crop of evaluation; pad: a window of the padded image; resized: a
    # random area, resized to image_size.
    crop: Literal["none", "pad", "resized"] = "resized"
    padding: Optional[int] = Field(None, ge=1, le=1024)  # crop: pad only; pixels on each side; null: image_size / 8
    scale: Optional[list[float]] = None  # crop: resized only; smallest and largest share of the area; null: 0.08 to 1
    ratio: Optional[list[float]] = None  # crop: resized only; smallest and largest width / height; null: 3/4 to 4/3
    flip: float = Field(0.5, ge=0, le=1)  # probability of a horizontal flip
    vertical_flip: float = Field(0.0, ge=0, le=1)  # probability of a vertical flip
    # Brightness, contrast and saturation are multiplied by random factors in 1 - color_jitter to 1 + color_jitter.
    color_jitter: float = Field(0.0, ge=0, le=1)
    # The hue is turned by a random part of the colour circle, from -hue to hue.
    hue: float = Field(0.0, ge=0, le=0.5)
    # Automatic augmentation; autoaugment is the policy for ImageNet.
    auto: Literal["none", "randaugment", "trivialaugment", "autoaugment"] = "none"
    num_ops: Optional[int] = Field(None, ge=1, le=14)  # auto: randaugment only; operations per image; null: 2
    magnitude: Optional[int] = Field(None, ge=0, le=30)  # auto: randaugment only; strength, 0 to 30; null: 9
    probability: Optional[float] = Field(None, gt=0, le=1)  # auto: randaugment only; of each operation; null: 1
    # auto: randaugment only; standard deviation of the magnitude, which stays within 0 to 30; null: 0.
    magnitude_std: Optional[float] = Field(None, ge=0, le=30)
    erasing: float = Field(0.0, ge=0, le=1)  # probability of filling a random rectangle with data.mean
    # Repeated augmentation: number of views of an image per epoch. An epoch has as many images as with 1, so it uses
    # only a share of 1 / repeats of the different images.
    repeats: int = Field(1, ge=1, le=100)
    mixup: float = Field(0.0, ge=0)  # alpha of the Beta distribution that blends pairs of images; 0: no mixup
    # Alpha of the Beta distribution of the area that comes from another image; 0: no cutmix. With mixup and cutmix, a
    # random half of the batches uses cutmix.
    cutmix: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def resolve(self) -> "AugmentConfig":
        resolve_own_keys(self, "crop", self.crop, CROPS)
        resolve_own_keys(self, "auto", self.auto, AUTO_AUGMENTATIONS)
        for key, bound in (("scale", 1.0), ("ratio", 100.0)):
            values = getattr(self, key)
            if values and (len(values) != 2 or not 0 < values[0] <= values[1] or values[1] > bound):
                raise ValueError(f"{key}: {values} must be two numbers above 0 in ascending order, at most {bound}")
        return self


class TrainConfig(Section):
    epochs: int = Field(30, ge=1, le=10_000)
    # Images per step and process. The incomplete last batch of an epoch is dropped.
    batch_size: int = Field(64, ge=2, le=16_384)
    seed: int = Field(0, ge=0, lt=2**31)  # seed of the initial weights, the order of the images and the augmentation
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # share of the target that is spread over all classes; 0: none
    accumulate: int = Field(1, ge=1)  # gradient accumulation: batches whose mean gradient makes one update
    clip_norm: Optional[float] = Field(None, gt=0)  # largest norm of all gradients together; null: no clipping
    clip_value: Optional[float] = Field(None, gt=0)  # largest absolute value in a gradient; null: no clipping
    ema_decay: Optional[float] = Field(None, gt=0, lt=1)  # decay of the moving average of the weights; null: no average
    # Progressive resizing: image sizes in pixels, each for an equal part of the epochs; null: always data.image_size.
    image_sizes: Optional[list[int]] = None
    # Batches that recompute BatchNorm's moving statistics before an evaluation; 0: off; auto: enough for 512 images,
    # if the moving statistics average over more than a tenth of an epoch (see docs/training.md).
    recalibrate: Union[int, Literal["auto"]] = "auto"
    patience: Optional[int] = Field(None, ge=1)  # early stopping: end after this many epochs without a better epoch
    # What to do if the loss is not finite. error: end the run; rollback: return to the last state with finite weights.
    on_nonfinite: Literal["error", "rollback"] = "error"
    max_rollbacks: Optional[int] = Field(None, ge=1)  # on_nonfinite: rollback only; rollbacks per run; null: 3
    # on_nonfinite: rollback only; each rollback multiplies the learning rate by this factor; null: 0.5.
    rollback_factor: Optional[float] = Field(None, gt=0, lt=1)

    @field_validator("recalibrate", mode="before")
    @classmethod
    def known_batches(cls, batches: object) -> object:
        if batches != "auto" and (
            not isinstance(batches, int) or isinstance(batches, bool) or not 0 <= batches <= 10**9
        ):
            raise ValueError(f"{batches!r} is not auto, or a number of batches (0 to 1e9)")
        return batches

    @model_validator(mode="after")
    def resolve(self) -> "TrainConfig":
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(
                f"clip_value: {self.clip_value} cannot be used with train.clip_norm; leave one of them out"
            )
        choices: Choices = {"error": {}, "rollback": {"max_rollbacks": 3, "rollback_factor": 0.5}}
        resolve_own_keys(self, "on_nonfinite", self.on_nonfinite, choices)
        if self.image_sizes is not None:
            if not self.image_sizes or min(self.image_sizes) < 8 or max(self.image_sizes) > 1024:
                raise ValueError(f"image_sizes: {self.image_sizes} must be sizes from 8 to 1024 pixels")
            if len(self.image_sizes) > self.epochs:
                raise ValueError(f"image_sizes: {self.image_sizes} has more sizes than the {self.epochs} epochs")
        return self


# Each optimizer, with the keys that it uses and their defaults. All optimizers use the other keys of `OptimizerConfig`.
OPTIMIZERS: Choices = {
    "sgd": {"lr": 0.1, "weight_decay": 4e-5, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"lr": 0.01, "weight_decay": 1e-5, "momentum": 0.9, "rho": 0.9, "epsilon": 1e-3},
    "adamw": {"lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.999], "epsilon": 1e-8},
    "lamb": {"lr": 5e-3, "weight_decay": 0.02, "betas": [0.9, 0.999], "epsilon": 1e-6},
    "lion": {"lr": 1e-4, "weight_decay": 0.5, "betas": [0.9, 0.99]},
}


class OptimizerConfig(Section):
    # null in a setting below means the default of the optimizer in OPTIMIZERS, unless its comment says otherwise.
    name: str = "sgd"  # one of OPTIMIZERS; rmsprop is TensorFlow's variant
    lr: Optional[float] = Field(None, gt=0, le=1e6)  # peak learning rate, after the warm-up
    # Images per update that the learning rates are meant for. All learning rates are multiplied by
    # (actual images per update) / lr_batch; null: they are not scaled.
    lr_batch: Optional[int] = Field(None, ge=1)
    head_lr: Optional[float] = Field(None, gt=0)  # peak learning rate of the classifier, for fine-tuning; null: lr
    momentum: Optional[float] = Field(None, ge=0, lt=1)  # sgd, rmsprop
    nesterov: Optional[bool] = None  # sgd: Nesterov momentum; null: true, or false if momentum is 0
    rho: Optional[float] = Field(None, gt=0, lt=1)  # rmsprop: decay of the moving average of squared gradients
    # adamw, lamb: decay of the first and the second moment. lion: share of the momentum in the sign, decay of the
    # momentum.
    betas: Optional[list[float]] = None
    epsilon: Optional[float] = Field(None, gt=0, le=1)  # rmsprop: added under the root; adamw, lamb: added to the root
    # sgd, rmsprop: weight_decay * weight is added to the gradient. adamw, lamb, lion: decoupled, so it is multiplied by
    # the learning rate only.
    weight_decay: Optional[float] = Field(None, ge=0)
    # true: weight decay acts on all parameters; false: only on the weights of convolutions and dense layers.
    decay_all: bool = False

    @field_validator("name")
    @classmethod
    def known_optimizer(cls, name: str) -> str:
        return one_of(name, OPTIMIZERS)

    @model_validator(mode="after")
    def resolve(self) -> "OptimizerConfig":
        no_nesterov = self.nesterov is None and self.momentum == 0
        resolve_own_keys(self, "name", self.name, OPTIMIZERS)
        if no_nesterov and self.name == "sgd":
            self.nesterov = False
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs optimizer.momentum above 0")
        if self.betas is not None and (len(self.betas) != 2 or not 0 < min(self.betas) <= max(self.betas) < 1):
            raise ValueError(f"betas: {self.betas} must be two numbers between 0 and 1")
        if self.decay_all and self.weight_decay == 0:
            raise ValueError("decay_all: true needs optimizer.weight_decay above 0")
        return self


# Each schedule, with the keys that it uses and their defaults. All schedules use the other keys of `ScheduleConfig`.
SCHEDULES: Choices = {
    "cosine": {"end_lr": 0.0},
    "linear": {"end_lr": 0.0},
    "constant": {},
    "step": {"step_epochs": REQUIRED, "gamma": 0.1},
    "multistep": {"milestones": REQUIRED, "gamma": 0.1},
    "exponential": {"decay_epochs": 1.0, "gamma": REQUIRED},
    "polynomial": {"power": 2.0, "end_lr": 0.0},
    "one_cycle": {"rise": 0.3, "initial_divisor": 25.0, "final_divisor": 1e4},
}


class ScheduleConfig(Section):
    # The learning rate after the warm-up. p is the fraction of the run after the warm-up, from 0 to 1.
    # It changes with every update:
    #   cosine: half a period of a cosine from lr to end_lr
    #   linear: a straight line from lr to end_lr
    #   polynomial: end_lr + (lr - end_lr) * (1 - p) ** power
    #   exponential: multiplied by gamma in the course of decay_epochs
    #   one_cycle: a cosine up from lr / initial_divisor to lr, during the fraction `rise` of the run; then a cosine
    #     down to lr / initial_divisor / final_divisor
    # It changes at some epochs:
    #   step: multiplied by gamma every step_epochs
    #   multistep: multiplied by gamma at each of the milestones
    # It does not change:
    #   constant: lr
    # null in a setting below means the default of the schedule in SCHEDULES.
    name: str = "cosine"  # one of SCHEDULES
    warmup_epochs: float = Field(0.0, ge=0)  # epochs of linear warm-up from 0 to lr; not for one_cycle
    end_lr: Optional[float] = Field(None, ge=0)  # cosine, linear, polynomial: learning rate at the end of the run
    step_epochs: Optional[float] = Field(None, ge=0.01)  # step: epochs between changes, from the start of the run
    milestones: Optional[list[float]] = None  # multistep: epochs from the start of the run to each change
    gamma: Optional[float] = Field(None, gt=0, lt=1)  # step, multistep, exponential: factor of the learning rate
    decay_epochs: Optional[float] = Field(None, ge=0.01)  # exponential: epochs in which the factor is gamma
    power: Optional[float] = Field(None, gt=0)  # polynomial: the exponent
    rise: Optional[float] = Field(None, gt=0, lt=1)  # one_cycle: fraction of the run in which the learning rate rises
    initial_divisor: Optional[float] = Field(None, ge=1)  # one_cycle: lr / first learning rate
    final_divisor: Optional[float] = Field(None, ge=1)  # one_cycle: first learning rate / last learning rate

    @field_validator("name")
    @classmethod
    def known_schedule(cls, name: str) -> str:
        return one_of(name, SCHEDULES)

    @model_validator(mode="after")
    def resolve(self) -> "ScheduleConfig":
        resolve_own_keys(self, "name", self.name, SCHEDULES)
        if self.name == "one_cycle" and self.warmup_epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} is not used by one_cycle, which starts with a rise")
        marks = self.milestones
        if marks is not None and (not marks or marks[0] <= 0 or any(a >= b for a, b in zip(marks, marks[1:]))):
            raise ValueError(f"milestones: {marks} must be epochs above 0 in ascending order")
        return self


class DistillConfig(Section):
    # Teacher of knowledge distillation: a checkpoint of PocketSpore, or mindcv/NAME for a network of mindcv;
    # null: no distillation.
    teacher: Optional[str] = None
    pretrained: Optional[str] = None  # teacher: mindcv/NAME only, and required there; file of the teacher's weights
    weight: Optional[float] = Field(None, gt=0, le=1)  # share of the distillation loss in the loss; null: 0.5
    temperature: Optional[float] = Field(None, gt=0)  # divisor of the logits of teacher and student; null: 4

    @model_validator(mode="after")
    def resolve(self) -> "DistillConfig":
        mindcv = self.teacher is not None and self.teacher.startswith(MINDCV)
        chosen = "null" if self.teacher is None else "mindcv/…" if mindcv else "checkpoint"
        defaults = {"weight": 0.5, "temperature": 4.0}
        choices: Choices = {
            "null": {},
            "checkpoint": defaults,
            "mindcv/…": {**defaults, "pretrained": REQUIRED},
        }
        resolve_own_keys(self, "teacher", chosen, choices)
        return self


class CheckpointConfig(Section):
    # Updates of the weights between two saved states; null: a state is saved only at the end of each epoch.
    every_steps: Optional[int] = Field(None, ge=1)
    # Number of saved states to resume from. With 1, there is no other state if the state is damaged.
    keep_last: int = Field(2, ge=1)
    keep_best: int = Field(1, ge=1)  # number of best epochs whose weights are kept
    # Metric on the test images that decides which epoch is the best. Of equal epochs, the lower loss decides.
    metric: Literal["top1", "top5", "loss"] = "top1"


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "gpu", "ascend"] = "auto"  # auto: Ascend if available, else GPU, else CPU
    mode: Literal["graph", "pynative"] = "graph"  # graph: compiled steps; pynative: op by op, for debugging
    # Kernels on the CPU. native: of this project; stock: MindSpore's operators; auto: native if they can be built and
    # the processor has the instructions that make them faster (docs/kernels.md).
    kernels: Literal["auto", "native", "stock"] = "auto"
    # float16, bfloat16: mixed precision, on Ascend and GPU only, if the device computes with these numbers.
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    # Numbers that BatchNorm reads and writes in mixed precision; its parameters and statistics are always float32.
    # auto: float16 with precision float16, float32 with precision bfloat16 (see docs/training.md).
    norm_precision: Literal["auto", "float32", "float16"] = "auto"
    sync_norm: bool = False  # true: BatchNorm uses the statistics of the images of all processes
    # Ascend and GPU only: number of the device; null: 0, and with several processes another device for each process.
    device_id: Optional[int] = Field(None, ge=0)
    memory_limit: Optional[str] = None  # Ascend and GPU only: most memory to use, such as 30GB; null: all of the device
    # true: Ascend and GPU give the same bits in every run, but more slowly. A CPU gives the same bits in any case.
    deterministic: bool = False
    # Ascend and GPU with mode: graph only: optimisation by MindSpore's compiler. O0: little; O1: it fuses operators;
    # O2 (Ascend only): CANN's GraphEngine compiles the whole graph; null: MindSpore chooses.
    jit_level: Optional[Literal["O0", "O1", "O2"]] = None

    @field_validator("memory_limit")
    @classmethod
    def known_size(cls, limit: Optional[str]) -> Optional[str]:
        if limit is not None and not re.fullmatch(r"(?!0(\.0*)?G)(0|[1-9]\d*)(\.\d+)?GB", limit):
            raise ValueError(f"{limit!r} is not a size above 0 in GB, such as 30GB or 7.5GB")
        return limit

    @model_validator(mode="after")
    def resolve(self) -> "RuntimeConfig":
        if self.norm_precision == "float16" and self.precision != "float16":
            raise ValueError(
                "norm_precision: float16 is used with runtime.precision=float16 only (found runtime.precision="
                f"{self.precision}); use auto"
            )
        if self.jit_level is not None and self.mode != "graph":
            raise ValueError(f"jit_level: is used with runtime.mode=graph only (found {self.mode}); leave it out")
        return self

    @property
    def has_half_norms(self) -> bool:
        """Whether BatchNorms read and write 2-byte numbers; MindSpore's operator does not accept bfloat16."""
        return self.precision == "float16" and self.norm_precision != "float32"


class LogConfig(Section):
    tensorboard: bool = True  # true: write TensorBoard events to the run folder
    # Number of steps after which loss and speed are shown, and a loss that is not finite is found. The host waits for
    # the device only then. null: about once a second.
    every_steps: Optional[int] = Field(None, ge=1, le=1000)


class RunConfig(Section):
    dir: str = Field("runs/latest", min_length=1)  # the run folder, which train.py creates


class Config(Section):
    """The settings of one run, with all defaults filled in."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    @model_validator(mode="after")
    def check_pairs(self) -> "Config":
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs: {self.schedule.warmup_epochs} must be at most "
                f"train.epochs, {self.train.epochs}"
            )
        end_lr, lr = self.schedule.end_lr, self.optimizer.lr
        if end_lr is not None and lr is not None and end_lr > lr:
            raise ValueError(f"schedule.end_lr: {end_lr} must be at most optimizer.lr, {lr}")
        head_lr = self.optimizer.head_lr
        if head_lr is not None and self.model.name.startswith(MINDCV):
            raise ValueError(f"optimizer.head_lr: {head_lr} is not supported by mindcv's networks; leave it out")
        if self.augment.crop == "pad" and self.augment.padding is None:
            self.augment.padding = max(1, self.data.image_size // 8)
        return self

    def to_yaml(self) -> str:
        """Return the settings as YAML text that `load_config` can read."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)
