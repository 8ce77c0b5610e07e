"""Train a network: python train.py --config configs/quickstart.yaml [section.key=value …]"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # PYTHONSAFEPATH leaves it out

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

from argparse import Namespace
from pathlib import Path
from typing import Any, Optional

from src.arguments import existing
from src.config.load import load_config, make_config
from src.config.schema import MINDCV, Config
from src.config.yaml_text import parse_yaml
from src.errors import ArgumentParser, UserError, run
from src.launch import launcher


def main() -> None:
    # Mistakes in the arguments and the settings are reported before MindSpore is imported, because that takes seconds.
    args = parse()
    # Of several ranks, the first rank alone reads the run folder, and the processes do not know yet which they are.
    in_run_folder = args.resume not in (None, "auto")
    started_by = launcher()
    later = in_run_folder and started_by is not None
    config = early_config(args) if later else read_config(args)

    # The device and the other processes, if there are any. Only the first process prints and uses the run folder.
    from src.runs.resume import open_run
    from src.runtime.agreement import refuse_unlike, settings_of
    from src.runtime.device import keep_device, use_device
    from src.runtime.parallel import join_ranks
    from src.runtime.precision import check_precision

    started = config.runtime
    use_device(started, config.train.seed, started_by)
    ranks = join_ranks()
    with ranks.output():
        refuse_unlike({"--resume": args.resume, "--overwrite": args.overwrite}, ranks)
        if later:
            saved = ranks.from_first(lambda: saved_config(args).read_bytes())
            config = read_config(args, saved.decode())
            keep_device(config.runtime, config.train.seed, started)
        refuse_unlike(settings_of(config), ranks)
        check_precision(config.runtime)
        for override in args.overrides:
            print(f"override {override}")
        folder, resumed = open_run(config, args.resume, args.overwrite, ranks)
        train(config, folder, resumed, ranks)
    ranks.leave()


def parse() -> Namespace:
    """Return the command-line arguments."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=existing, help="YAML file of settings; src/config/schema.py lists every setting"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that run.dir already holds")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="resume the run in this folder; auto: resume the run in run.dir, or start it",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace settings of the file"
    )
    args = parser.parse_intermixed_args()
    if args.resume and args.overwrite:
        raise UserError("--resume: cannot be used with --overwrite")
    return args


def read_config(args: Namespace, saved: Optional[str] = None) -> Config:
    """Return the settings of the --config file, or of the run folder that --resume names.

    `saved` is the text of the run folder's config.yaml; without it, the file is read.
    """
    if args.resume in (None, "auto"):
        if args.config is None:
            raise UserError("--config: is missing; give a YAML file of settings")
        return load_config(args.config, args.overrides)
    path = saved_config(args) if saved is None else Path(args.resume) / "config.yaml"
    overrides = [*args.overrides, f"run.dir={args.resume}"]
    if args.config or saved is None:
        return load_config(args.config or path, overrides)
    return make_config(parse_yaml(saved, source=path), overrides, source=path)


def early_config(args: Namespace) -> Config:
    """Return settings with the `runtime` that the command line asks for; the run folder is not read."""
    if args.config:
        return load_config(args.config, args.overrides)
    return make_config({}, [override for override in args.overrides if override.startswith("runtime.")], "command line")


def saved_config(args: Namespace) -> Path:
    """Return the path of config.yaml in the run folder that --resume names."""
    path = Path(args.resume) / "config.yaml"
    if not path.is_file():
        raise UserError(f"--resume: {args.resume} is not a run folder ({path.name} is missing)")
    return path


def train(config: Config, folder: Any, resumed: Any, ranks: Any) -> None:
    """Train the network, or resume the run in `folder` (a `RunFolder`), and write the results to the run folder.

    `resumed` is the `Checkpoint` to resume from, or None. `ranks` are the `Ranks` of this process. The classes are not
    imported above, because they import MindSpore.
    """
    from src.data.datasets import load_samples
    from src.data.loading import count_bad, eval_loader, train_loader
    from src.runs.resume import choose_workers, refuse_workers
    from src.runtime.agreement import data_of, refuse_unlike
    from src.training.distillation import create_teacher
    from src.training.interrupts import Interrupts
    from src.training.loop import fit
    from src.training.network import prepare_network
    from src.training.optimizer import create_optimizer
    from src.training.schedule import learning_rates
    from src.training.step import TrainStep
    from src.training.trainer import Trainer

    check_files(config, resumed)

    # Training images are shuffled and augmented; each stage of progressive resizing has its loader. For evaluation,
    # every image comes once and in order.
    train_samples = load_samples(config.data, "train")
    test_samples = load_samples(config.data, "eval", train_samples.classes)
    classes = class_names(config, train_samples.classes)
    refuse_unlike(data_of({"training": train_samples, "test": test_samples}), ranks)
    config.data.workers = choose_workers(config, resumed, ranks)
    sizes = config.train.image_sizes or [config.data.image_size]
    loaders = [train_loader(config, train_samples, ranks.rank, ranks.count, size) for size in sizes]
    test_batches = eval_loader(config, test_samples, rank=ranks.rank, ranks=ranks.count)
    if resumed:
        refuse_workers(resumed, loaders[0], ranks)

    # The network, and the step that updates its weights.
    network = prepare_network(config, classes, train_samples, test_batches, ranks, resumed)
    config, classifier = network.config, network.classifier
    teacher = create_teacher(config, classifier, classes)
    step = TrainStep(classifier, create_optimizer(config, classifier), config, ranks, teacher, network.scaler)
    rates = learning_rates(config, step.updates(len(loaders[0])), ranks.count).reshape(config.train.epochs, -1)

    # From here on, Ctrl-C saves the state, and the record of the run is written to the run folder.
    trainer = Trainer(config, folder, ranks, Interrupts(), classes, classifier, step, network.average)
    if resumed:
        trainer.load(resumed)
    elif ranks.is_first:
        folder.start(config)
    if config.log.tensorboard and ranks.is_first:
        folder.open_events(trainer.state.epoch * rates.shape[1])
    if not resumed:
        trainer.save()  # so a run that has anything else also has a state to resume from
    for note in dict.fromkeys((*train_samples.notes, *test_samples.notes)):
        print(f"note: {note}")
    print(
        f"{config.model.name} {config.model.width}x: {network.params:,} parameters, {network.macs / 1e6:.1f} M MACs at "
        f"{config.data.image_size}x{config.data.image_size}; {config.data.name}: {len(train_samples):,} training and "
        f"{len(test_samples):,} test images of {len(train_samples.classes)} classes",
        flush=True,
    )
    if step.compiled and not trainer.is_over():
        print("compiling the training step, which takes some seconds ...", flush=True)

    # Each epoch of training is followed by an evaluation.
    fit(trainer, loaders, rates, network.validation)

    # The results. A signal waits until they are complete.
    trainer.interrupts.hold()
    bad = {"train": count_bad(loaders, ranks), "test": count_bad([test_batches], ranks)}
    summary = {**trainer.summary(network.params, network.macs), "bad_images": bad}
    if ranks.is_first:
        folder.finish(trainer.state, summary, classes)
    trainer.interrupts.release()
    print_summary(summary, folder.path)


def check_files(config: Config, resumed: Any) -> None:
    """Raise a `UserError` if a file of weights that the config names is missing.

    It comes before the images are listed, which can take minutes. A `resumed` run has the weights of its network.
    """
    teacher = config.distill.teacher
    paths = {
        "model.pretrained": None if resumed else config.model.pretrained,
        "distill.teacher": None if teacher is None or teacher.startswith(MINDCV) else teacher,
        "distill.pretrained": config.distill.pretrained,
    }
    for key, path in paths.items():
        if path is not None and not Path(path).is_file():
            raise UserError(f"{key}: {path}: no such file")


def class_names(config: Config, names: list[str]) -> list[str]:
    """Return the class names of the network's outputs: the `names` of the data, then `unused N` up to model.classes."""
    count = config.model.classes or len(names)
    if count < len(names):
        raise UserError(f"model.classes: {count} is fewer than the {len(names)} classes of {config.data.name}")
    return names + [f"unused {i}" for i in range(len(names), count)]


def print_summary(summary: dict[str, Any], path: Path) -> None:
    """Print the best and the last epoch, the speed, and the command to evaluate the best weights."""
    print(f"\n{'':8}{'epoch':>6}{'top-1':>9}{'top-5':>9}{'loss':>9}")
    for name in ("best", "final"):
        row = summary[name]
        print(f"{name:8}{row['epoch']:>6}{row['top1']:>9.2%}{row['top5']:>9.2%}{row['loss']:>9.4f}")
    for split, count in summary["bad_images"].items():
        if count:
            print(f"\nbad {split} images skipped (data.on_bad_image): {count:,}")
    print(
        f"\n{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s, "
        f"{summary['data_wait_fraction']:.1%} of the time waiting for data\n"
        f"run folder: {path}\n"
        f"next: python eval.py --checkpoint {path / 'best.ckpt'}"
    )


if __name__ == "__main__":
    run(main)
