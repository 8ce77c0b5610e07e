"""Every setting of PocketSpore: its default, unit and allowed values.

This module imports neither MindSpore nor NumPy, so a mistake in a config is answered at once. What only the table of
networks or of data sets knows (allowed widths, default folders) is checked by `resolve_model` of `src/models` and
`resolve_data` of `src/data/datasets.py`, after this schema.
"""

import os
from typing import Annotated, Any, Literal, Optional, Union

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from src.errors import did_you_mean

MINDCV = "mindcv/"  # a name that starts so is the name of a network of mindcv
SPLITS = ("train", "val", "test")
REQUIRED = object()  # stands for the default of a key that must be given


def one_of(value: Any, allowed) -> Any:
    """Return `value` if it is among the `allowed` values; otherwise raise naming them."""
    if value not in allowed:
        raise ValueError(f"{value!r} is not one of {listed(allowed)}{did_you_mean(value, allowed)}")
    return value


def integer_of(*allowed: int):
    """Return the type of an integer among the `allowed`; unlike Literal[1, 2], it does not take true for 1."""
    return Annotated[int, AfterValidator(lambda value: one_of(value, allowed))]


def listed(values) -> str:
    return ", ".join(str(value) for value in values)


def resolve_own_keys(section: "Section", chooser: str, chosen: str, choices: dict[str, dict[str, Any]]) -> None:
    """Give the keys that only the `chosen` value of the key `chooser` uses their defaults; refuse other choices' keys.

    `choices` maps each value of `chooser` to the keys that it uses and their defaults. REQUIRED: the key must be given;
    None: it may stay null.
    """
    own = choices[chosen]
    for key in dict.fromkeys(key for keys in choices.values() for key in keys):
        value = getattr(section, key)
        if key not in own:
            if value is not None:
                users = listed(name for name, keys in choices.items() if key in keys)
                raise ValueError(f"{key}: is used with {chooser}={users} only (found {chooser}={chosen}); leave it out")
        elif value is None:
            if own[key] is REQUIRED:
                raise ValueError(f"{key}: must be given with {chooser}={chosen}")
            setattr(section, key, own[key])


class Section(BaseModel):
    """A group of settings: unknown keys, values of another type and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    name: str = "shufflenet_v2"  # a network of src/models, or mindcv/ and one of its names, for comparison
    width: float = 1.0  # width multiplier, one of the network's variants
    groups: Optional[int] = None  # ShuffleNetV1 only: groups of its 1x1 convolutions; null there: 3
    layout: Optional[str] = None  # ShuffleNetV2 only: authors, equal_split; null there: authors
    classes: Optional[int] = Field(None, ge=2)  # outputs; null: as many as the training data has
    dropout: float = Field(0.0, ge=0, lt=1)  # probability, before the classifier
    stem_stride: integer_of(1, 2) = 2  # 1: for small images, then without the stem's max-pool
    norm_epsilon: Optional[float] = Field(None, gt=0)  # BatchNorm's; null: the network's, or its weights' source's
    norm_momentum: Optional[float] = Field(None, ge=0, lt=1)  # share of the old moving statistics; null: the network's
    pretrained: Optional[str] = None  # weights to start from: our or mindcv's .ckpt, .safetensors or .pth
    freeze: Union[int, str] = "none"  # what keeps its weights: none, backbone, or the stem and so many blocks after it

    @field_validator("freeze")
    @classmethod
    def known_part(cls, freeze):
        if isinstance(freeze, str):
            return one_of(freeze, ("none", "backbone"))
        if isinstance(freeze, bool) or freeze < 0:
            raise ValueError(f"{freeze!r} is not none, backbone, or a number of blocks from 0 on")
        return freeze


class DataConfig(Section):
    name: str = "digits"  # a dataset of src/data/datasets.py
    root: Optional[str] = None  # the folder that holds it; null: where the dataset is by default
    image_size: int = Field(224, ge=8, le=1024)  # pixels, height and width of the network's input
    channels: integer_of(1, 3) = 3  # of the network's input: 1 gray, 3 RGB
    mean: Optional[list[float]] = None  # per channel, of pixels scaled to 0..1; null: ImageNet's
    std: Optional[list[float]] = None
    crop_fraction: float = Field(0.875, gt=0, le=1)  # evaluation: image_size / short side before the centre crop
    workers: Optional[int] = Field(None, ge=1)  # threads that prepare images; null: one a core, at most 8
    val_fraction: Optional[float] = Field(None, gt=0, lt=1)  # image folders only: share of one folder held out for val
    download: bool = False  # fetch a standard set into data.root where it is missing
    on_bad_image: Literal["error", "skip"] = "error"  # skip: leave it out, or train on the next good one, and count it

    @model_validator(mode="after")
    def resolve(self):
        if self.workers is None:
            self.workers = min(os.cpu_count() or 1, 8)
        imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        for key, rgb in imagenet.items():
            values = getattr(self, key)
            if values is None:
                values = rgb if self.channels == 3 else [round(sum(rgb) / 3, 3)]
                setattr(self, key, values)
            if len(values) != self.channels:
                raise ValueError(f"{key}: {values} has {len(values)} numbers, but data.channels is {self.channels}")
        if min(self.std) <= 0:
            raise ValueError(f"std: {self.std} must be greater than 0")
        return self


# The crops and automatic augmentations, the keys that each uses, and their defaults.
CROPS = {
    "none": {},
    "pad": {"padding": None},  # null: an eighth of data.image_size
    "resized": {"scale": [0.08, 1.0], "ratio": [0.75, 1.3333]},
}
AUTO_AUGMENTATIONS = {
    "none": {},
    "randaugment": {"num_ops": 2, "magnitude": 9},
    "trivialaugment": {},
    "autoaugment": {},
}


class AugmentConfig(Section):
    crop: Literal["none", "pad", "resized"] = "resized"  # pad: crop of the padded image; resized: of a random area
    padding: Optional[int] = Field(None, ge=1)  # crop: pad only; pixels on each side; null: image_size / 8
    scale: Optional[list[float]] = None  # crop: resized only; range of the area, 0..1; null: 0.08 to 1
    ratio: Optional[list[float]] = None  # crop: resized only; range of width / height; null: 3/4 to 4/3
    flip: float = Field(0.5, ge=0, le=1)  # probability of a horizontal flip
    vertical_flip: float = Field(0.0, ge=0, le=1)  # probability
    color_jitter: float = Field(0.0, ge=0, le=1)  # brightness, contrast and saturation times 1 - this to 1 + this
    auto: Literal["none", "randaugment", "trivialaugment", "autoaugment"] = "none"  # autoaugment: ImageNet's policy
    num_ops: Optional[int] = Field(None, ge=1, le=14)  # auto: randaugment only; operations an image; null: 2
    magnitude: Optional[int] = Field(None, ge=0, le=30)  # auto: randaugment only; of 30; null: 9
    erasing: float = Field(0.0, ge=0, le=1)  # probability that a random rectangle is filled with data.mean
    repeats: int = Field(1, ge=1)  # repeated augmentation: so many views of an image, an epoch being as long as without
    mixup: float = Field(0.0, ge=0)  # alpha of the Beta distribution that blends pairs of images; 0: none
    cutmix: float = Field(0.0, ge=0)  # alpha, of the area taken from another image; with mixup, each half the time

    @model_validator(mode="after")
    def resolve(self):
        resolve_own_keys(self, "crop", self.crop, CROPS)
        resolve_own_keys(self, "auto", self.auto, AUTO_AUGMENTATIONS)
        for key, bound in (("scale", 1.0), ("ratio", None)):
            values = getattr(self, key)
            if values and (len(values) != 2 or not 0 < values[0] <= values[1] or (bound and values[1] > bound)):
                limit = f", at most {bound}" if bound else ""
                raise ValueError(f"{key}: {values} must be two numbers above 0, the smaller first{limit}")
        return self


class TrainConfig(Section):
    epochs: int = Field(30, ge=1, le=10_000)
    batch_size: int = Field(64, ge=2)  # images a step and process; an epoch's rest waits for another epoch
    seed: int = Field(0, ge=0, lt=2**31)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    accumulate: int = Field(1, ge=1)  # batches whose gradients are averaged into one update
    clip_norm: Optional[float] = Field(None, gt=0)  # largest length of all gradients together; null: any
    clip_value: Optional[float] = Field(None, gt=0)  # largest absolute value of a gradient's element; null: any
    ema_decay: Optional[float] = Field(None, gt=0, lt=1)  # of the weights' moving average; null: none is kept
    image_sizes: Optional[list[int]] = None  # one an equal stretch of the epochs; null: data.image_size
    recalibrate: int = Field(0, ge=0)  # batches for BatchNorm's statistics before an evaluation; 0: none
    patience: Optional[int] = Field(None, ge=1)  # epochs without a better one after which training ends; null: all run
    on_nonfinite: Literal["error", "rollback"] = "error"  # a loss that is no number: end, or return to a checkpoint
    max_rollbacks: Optional[int] = Field(None, ge=1)  # on_nonfinite: rollback only; null there: 3
    rollback_factor: Optional[float] = Field(None, gt=0, lt=1)  # of the learning rate after each; null there: 0.5

    @model_validator(mode="after")
    def resolve(self):
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(f"clip_value: {self.clip_value} cannot be used with train.clip_norm")
        choices = {"error": {}, "rollback": {"max_rollbacks": 3, "rollback_factor": 0.5}}
        resolve_own_keys(self, "on_nonfinite", self.on_nonfinite, choices)
        if self.image_sizes is not None:
            if not self.image_sizes or min(self.image_sizes) < 8 or max(self.image_sizes) > 1024:
                raise ValueError(f"image_sizes: {self.image_sizes} must be sizes from 8 to 1024 pixels")
            if len(self.image_sizes) > self.epochs:
                raise ValueError(f"image_sizes: {self.image_sizes} are more than the {self.epochs} epochs")
        return self


# The optimizers, the keys that each uses besides those that all use, and its defaults.
OPTIMIZERS = {
    "sgd": {"lr": 0.1, "weight_decay": 4e-5, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"lr": 0.01, "weight_decay": 1e-5, "momentum": 0.9, "rho": 0.9, "epsilon": 1e-3},
    "adamw": {"lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.999], "epsilon": 1e-8},
    "lamb": {"lr": 5e-3, "weight_decay": 0.02, "betas": [0.9, 0.999], "epsilon": 1e-6},
    "lion": {"lr": 1e-4, "weight_decay": 0.5, "betas": [0.9, 0.99]},
}


class OptimizerConfig(Section):
    name: str = "sgd"  # one of OPTIMIZERS; rmsprop is TensorFlow's; null in what follows: the default there
    lr: Optional[float] = Field(None, gt=0, le=1e6)  # the peak, after warm-up
    lr_batch: Optional[int] = Field(None, ge=1)  # images an update that lr is meant for, to scale it; null: as it is
    head_lr: Optional[float] = Field(None, gt=0)  # the classifier's own peak, for fine-tuning; null: lr
    momentum: Optional[float] = Field(None, ge=0, lt=1)  # sgd, rmsprop
    nesterov: Optional[bool] = None  # sgd; null also means false where momentum is 0
    rho: Optional[float] = Field(None, gt=0, lt=1)  # rmsprop: share of the old in the moving mean square
    betas: Optional[list[float]] = None  # adamw, lamb: shares of the old moments; lion: in the sign, in the momentum
    epsilon: Optional[float] = Field(None, gt=0, le=1)  # rmsprop: inside the root; adamw, lamb: added to the root
    weight_decay: Optional[float] = Field(None, ge=0)  # sgd, rmsprop: added to the gradient; others: times the rate
    decay_all: bool = False  # true: weight decay acts on BatchNorm and biases too, not on weights only

    @field_validator("name")
    @classmethod
    def known_optimizer(cls, name):
        return one_of(name, OPTIMIZERS)

    @model_validator(mode="after")
    def resolve(self):
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


# The schedules, the keys that each uses besides those that all use, and its defaults.
SCHEDULES = {
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
    # After the warm-up, changing with every update:
    #   cosine: half a cosine from lr to end_lr; linear: a line; polynomial: (1 - share of the run) ** power
    #   exponential: times gamma in the course of decay_epochs
    # In jumps: step: times gamma every step_epochs; multistep: times gamma at each of the milestones
    # Not at all: constant
    # one_cycle: cosines from lr / initial_divisor to lr, after `rise` of the run, and to the first rate / final_divisor
    name: str = "cosine"  # one of SCHEDULES; null in what follows: the default there
    warmup_epochs: float = Field(0.0, ge=0)  # epochs in which the rate rises linearly from 0; not for one_cycle
    end_lr: Optional[float] = Field(None, ge=0)  # cosine, linear, polynomial: where they would be after the last update
    step_epochs: Optional[float] = Field(None, ge=0.01)  # step: epochs between jumps, from the run's beginning
    milestones: Optional[list[float]] = None  # multistep: epochs from the run's beginning to each jump
    gamma: Optional[float] = Field(None, gt=0, lt=1)  # step, multistep, exponential
    decay_epochs: Optional[float] = Field(None, ge=0.01)  # exponential
    power: Optional[float] = Field(None, gt=0)  # polynomial
    rise: Optional[float] = Field(None, gt=0, lt=1)  # one_cycle
    initial_divisor: Optional[float] = Field(None, ge=1)  # one_cycle
    final_divisor: Optional[float] = Field(None, ge=1)  # one_cycle

    @field_validator("name")
    @classmethod
    def known_schedule(cls, name):
        return one_of(name, SCHEDULES)

    @model_validator(mode="after")
    def resolve(self):
        resolve_own_keys(self, "name", self.name, SCHEDULES)
        if self.name == "one_cycle" and self.warmup_epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} is not used by one_cycle, which rises by itself")
        marks = self.milestones
        if marks is not None and (not marks or marks[0] <= 0 or any(a >= b for a, b in zip(marks, marks[1:]))):
            raise ValueError(f"milestones: {marks} must be epochs above 0, each later than the one before")
        return self


class DistillConfig(Section):
    teacher: Optional[str] = None  # a checkpoint of ours, or mindcv/ and one of its networks; null: no distillation
    pretrained: Optional[str] = None  # mindcv's networks only: the file of the teacher's weights
    weight: Optional[float] = Field(None, gt=0, le=1)  # of the teacher's share in the loss; null: 0.5
    temperature: Optional[float] = Field(None, gt=0)  # that softens both outputs; null: 4

    @model_validator(mode="after")
    def resolve(self):
        mindcv = self.teacher is not None and self.teacher.startswith(MINDCV)
        chosen = "null" if self.teacher is None else "mindcv/…" if mindcv else "checkpoint"
        softening = {"weight": 0.5, "temperature": 4.0}
        choices = {"null": {}, "checkpoint": softening, "mindcv/…": {**softening, "pretrained": REQUIRED}}
        resolve_own_keys(self, "teacher", chosen, choices)
        return self


class CheckpointConfig(Section):
    every_steps: Optional[int] = Field(None, ge=1)  # batches; null: at the end of each epoch only
    keep_last: int = Field(2, ge=1)  # states to resume from; with one alone, a damaged one leaves none
    keep_best: int = Field(1, ge=1)  # epochs' weights
    metric: Literal["top1", "top5", "loss"] = "top1"  # on the test split, that tells the best; of equals, lower loss


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "gpu", "ascend"] = "auto"  # auto: Ascend, else GPU, else CPU
    mode: Literal["graph", "pynative"] = "graph"  # graph: compiled steps; pynative: op by op, for debugging
    kernels: Literal["auto", "native", "stock"] = "auto"  # native: our own on the CPU; auto: where they can be built
    precision: Literal["float32", "float16", "bfloat16"] = "float32"  # other ones: Ascend and GPU only
    sync_norm: bool = False  # BatchNorm over the images of all processes


class LogConfig(Section):
    tensorboard: bool = True  # record events for TensorBoard in the run folder


class RunConfig(Section):
    dir: str = Field("runs/latest", min_length=1)  # the run folder, made by train.py


class Config(Section):
    """The resolved settings of one run."""

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
    def consistent(self):
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs: {self.schedule.warmup_epochs} must be at most "
                f"train.epochs, {self.train.epochs}"
            )
        end_lr = self.schedule.end_lr
        if end_lr is not None and end_lr > self.optimizer.lr:
            raise ValueError(f"schedule.end_lr: {end_lr} must be at most optimizer.lr, {self.optimizer.lr}")
        if self.optimizer.head_lr is not None and self.model.name.startswith(MINDCV):
            raise ValueError(f"optimizer.head_lr: {self.optimizer.head_lr} is not for mindcv's networks, leave it out")
        if self.augment.crop == "pad" and self.augment.padding is None:
            self.augment.padding = max(1, self.data.image_size // 8)
        return self

    def to_yaml(self):
        """Return the resolved settings as YAML text that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)
