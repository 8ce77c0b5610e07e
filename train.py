"""Train a network: python train.py --config configs/quickstart.yaml [section.key=value …]"""

import time

from src.config import load_config
from src.data.datasets import load_samples
from src.data.loading import eval_loader, train_loader
from src.engine.checkpoint import save_checkpoint
from src.engine.device import use_device
from src.engine.evaluate import evaluate
from src.engine.fit import Clock, Progress, train_epoch
from src.engine.optimizer import create_optimizer, learning_rates
from src.engine.run_folder import RunFolder
from src.engine.step import make_eval_step, make_train_step
from src.errors import ArgumentParser, UserError, run
from src.kernels import use_kernels
from src.models import create_model
from src.models.cost import count_macs, count_params
from src.pretrained.load import load_pretrained


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file of settings; src/config.py lists them all")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that run.dir already holds")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    args = parser.parse_intermixed_args()

    config = load_config(args.config, args.overrides)
    for override in args.overrides:
        print(f"override {override}")
    folder = RunFolder(config.run.dir, args.overwrite)
    use_device(config.runtime, config.train.seed)

    train_samples = load_samples(config.data, "train")
    test_samples = load_samples(config.data, "test", train_samples.classes)
    classes = class_names(config, train_samples.classes)
    train_batches, test_batches = train_loader(config, train_samples), eval_loader(config, test_samples)

    classifier = create_model(config.model, config.data, len(classes))
    params = count_params(classifier)
    macs = count_macs(classifier, config.data.image_size, config.data.channels)
    if config.model.pretrained:
        source, fresh_head = load_pretrained(classifier, config.model, config.model.pretrained)
        kept = "all but the classifier, which has another number of classes" if fresh_head else "all"
        print(f"pretrained: {kept} from {config.model.pretrained} ({source})")
    classifier.freeze(config.model.freeze)
    use_kernels(classifier, config.runtime)
    rates = learning_rates(config, len(train_batches)).reshape(config.train.epochs, -1)
    optimizer = create_optimizer(config, classifier)
    compiled = config.runtime.mode == "graph"
    train_step = make_train_step(classifier, optimizer, config.train.label_smoothing, compiled)
    eval_step = make_eval_step(classifier, compiled)

    folder.start(config)
    print(
        f"{config.model.name} {config.model.width}x: {params:,} parameters, {macs / 1e6:.1f} M MACs at "
        f"{config.data.image_size}x{config.data.image_size}; {config.data.name}: {len(train_samples):,} training and "
        f"{len(test_samples):,} test images of {len(train_samples.classes)} classes",
        flush=True,
    )
    if compiled:
        print("compiling the training step, which takes some seconds ...", flush=True)

    began = time.perf_counter()
    progress = Progress(config.train.epochs, len(train_batches))
    total, best, final = Clock(), None, None
    for epoch in range(1, config.train.epochs + 1):
        epoch_began = time.perf_counter()
        progress.start_epoch(epoch)
        own_rates = rates[epoch - 1]
        loss, top1, clock = train_epoch(
            classifier, train_step, train_batches, own_rates, epoch, progress, warm=epoch > 1
        )
        test = evaluate(classifier, eval_step, test_batches)
        total.add(clock)
        final = {"epoch": epoch, "top1": test.top1, "top5": test.top5, "loss": test.loss}
        improved = best is None or (test.top1, -test.loss) > (best["top1"], -best["loss"])
        best = final if improved else best
        for name in ("best", "last") if improved else ("last",):
            save_checkpoint(folder.path / f"{name}.ckpt", classifier, config, classes, epoch, best)
        row = {
            "epoch": epoch,
            "lr": float(own_rates[-1]),
            "train_loss": loss,
            "train_top1": top1,
            "test_loss": test.loss,
            "test_top1": test.top1,
            "test_top5": test.top5,
            "images_per_second": clock.images_per_second,
            "data_wait_fraction": clock.data_wait_fraction,
            "seconds": time.perf_counter() - epoch_began,
        }
        folder.log_epoch(row, best, own_rates, test.confusion)
        progress.end_epoch(row)
    progress.close()

    summary = {
        "best": best,
        "final": final,
        "params": params,
        "macs": macs,
        "images_per_second": total.images_per_second,
        "data_wait_fraction": total.data_wait_fraction,
        "seconds": time.perf_counter() - began,
    }
    folder.finish(summary, classes)
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
    print(
        f"\n{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s, "
        f"{summary['data_wait_fraction']:.1%} of it waiting for data\n"
        f"run folder: {path}\n"
        f"next: python eval.py --checkpoint {path / 'best.ckpt'}"
    )


if __name__ == "__main__":
    run(main)
