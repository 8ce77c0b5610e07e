"""Train a network: python train.py --config configs/quickstart.yaml [section.key=value …]"""

import contextlib

import numpy as np

from src.data.datasets import load_samples
from src.data.loading import count_bad, eval_loader, train_loader
from src.engine.device import use_device
from src.engine.fit import DivergedError, Progress, stage_of, train_epoch
from src.engine.interrupts import Interrupts
from src.engine.judge import Judge
from src.engine.optimizer import create_optimizer
from src.engine.parallel import join_ranks, synchronise_norms
from src.engine.precision import set_precision
from src.engine.resume import open_run, state_to_resume
from src.engine.schedule import learning_rates
from src.engine.step import TrainStep
from src.engine.teacher import create_teacher
from src.engine.training import Training
from src.errors import ArgumentParser, UserError, run
from src.kernels import use_kernels
from src.models import create_model
from src.models.cost import count_macs, count_params
from src.pretrained.load import load_pretrained


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="YAML file of settings; src/config.py lists them all")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that run.dir already holds")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on with the run in this folder; auto: with the one in run.dir, or begin it",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    args = parser.parse_intermixed_args()

    config, folder, resuming = open_run(args)
    use_device(config.runtime, config.train.seed)
    ranks = join_ranks()
    with ranks.output():
        for override in args.overrides:
            print(f"override {override}")
        train(config, folder, resuming, ranks)
    ranks.leave()


def train(config, folder, resuming, ranks):
    if resuming and ranks.is_first:
        folder.open()
    found = state_to_resume(folder, config) if resuming else None

    train_samples = load_samples(config.data, "train")
    test_samples = load_samples(config.data, "eval", train_samples.classes)
    classes = class_names(config, train_samples.classes)
    sizes = config.train.image_sizes or [config.data.image_size]
    loaders = [train_loader(config, train_samples, ranks.rank, ranks.count, size) for size in sizes]
    test_batches = eval_loader(config, test_samples, rank=ranks.rank, ranks=ranks.count)

    classifier = create_model(config.model, config.data, len(classes))
    params = count_params(classifier)
    macs = count_macs(classifier, config.data.image_size, config.data.channels)
    if config.model.pretrained and not found:
        source, fresh_head = load_pretrained(classifier, config.model, config.model.pretrained)
        kept = "all but the classifier, which has another number of classes" if fresh_head else "all"
        print(f"pretrained: {kept} from {config.model.pretrained} ({source})")
    classifier.freeze(config.model.freeze)
    scaler = set_precision(classifier, config.runtime)
    if config.runtime.sync_norm and ranks.count > 1:
        synchronise_norms(classifier, ranks.count)
    judge = Judge(config, classifier, train_samples, test_batches, ranks)
    use_kernels(classifier, config.runtime)
    teacher = create_teacher(config, classifier, classes)
    optimizer = create_optimizer(config, classifier)
    step = TrainStep(classifier, optimizer, config, ranks, teacher, scaler)
    rates = learning_rates(config, step.updates(len(loaders[0])), ranks.count).reshape(config.train.epochs, -1)
    ranks.broadcast(classifier.get_parameters())

    interrupts = Interrupts()
    training = Training(config, folder, ranks, interrupts, classes, classifier, optimizer, judge.average, scaler)
    if found:
        training.load(*found)
    elif ranks.is_first:
        folder.start(config)
    if config.log.tensorboard and ranks.is_first:
        folder.open_events(training.state.epoch * rates.shape[1])
    if config.train.on_nonfinite == "rollback" and not found:
        training.save()
    for note in (*train_samples.notes, *test_samples.notes):
        print(f"note: {note}")
    print(
        f"{config.model.name} {config.model.width}x: {params:,} parameters, {macs / 1e6:.1f} M MACs at "
        f"{config.data.image_size}x{config.data.image_size}; {config.data.name}: {len(train_samples):,} training and "
        f"{len(test_samples):,} test images of {len(train_samples.classes)} classes",
        flush=True,
    )
    if step.compiled and not training.is_over():
        print("compiling the training step, which takes some seconds ...", flush=True)

    with contextlib.closing(Progress(config.train.epochs, len(loaders[0]))) as progress:
        try:
            while not training.is_over():
                state = training.state
                progress.start_epoch(state.epoch + 1, state.batch)
                own_rates = rates[state.epoch] * np.float32(state.rate_factor)
                loader = stage_of(state.epoch, config.train.epochs, loaders)
                try:
                    clock = train_epoch(training, step, loader, own_rates, progress)
                    progress.end_epoch(training.end_epoch(judge, own_rates, clock))
                except DivergedError as problem:
                    training.roll_back(problem)
        except KeyboardInterrupt:
            training.leave()

    bad = {"train": count_bad(loaders, ranks), "test": count_bad([test_batches], ranks)}
    summary = {**training.summary(params, macs), "bad_images": bad}
    if ranks.is_first:
        folder.finish(training.state, summary, classes)
    print_summary(summary, folder.path)


def class_names(config, names):
    """Return the names of the network's outputs: the data's, and numbers for outputs that model.classes adds."""
    count = config.model.classes or len(names)
    if count < len(names):
        raise UserError(f"model.classes: {count} is fewer than the {len(names)} classes of {config.data.name}")
    return names + [f"unused {i}" for i in range(len(names), count)]


def print_summary(summary, path):
    print(f"\n{'':8}{'epoch':>6}{'top-1':>9}{'top-5':>9}{'loss':>9}")
    for name in ("best", "final"):
        row = summary[name]
        print(f"{name:8}{row['epoch']:>6}{row['top1']:>9.2%}{row['top5']:>9.2%}{row['loss']:>9.4f}")
    for split, count in summary["bad_images"].items():
        if count:
            print(f"\nbad {split} images skipped (data.on_bad_image): {count:,}")
    print(
        f"\n{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s, "
        f"{summary['data_wait_fraction']:.1%} of it waiting for data\n"
        f"run folder: {path}\n"
        f"next: python eval.py --checkpoint {path / 'best.ckpt'}"
    )


if __name__ == "__main__":
    run(main)
