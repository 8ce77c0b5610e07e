import dataclasses
import importlib.util
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from src.config.load import make_config
from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.description import EXTENSIONS, format_of
from src.deploy.export import export
from src.deploy.options import Options
from src.deploy.quantize import full_batches
from src.deploy.runtimes.lite import find_lite
from src.models import create_model
from src.weights.checkpoint import Checkpoint, OpenCheckpoint, adapt_config, load_checkpoint, restore

LITE = find_lite()
# The formats that can be verified here.
KINDS = ["mindir", "onnx", *(["ms"] if LITE else []), *(["ncnn"] if importlib.util.find_spec("ncnn") else [])]

PHOTO_CLASSES = ['a [x] "b" café', "flower"]
PHOTO_SIZE = 72
ORIENTATION = 0x0112  # EXIF tag


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """Return a function that writes the photograph with an EXIF orientation, as JPEG or PNG, and returns its path."""
    folder = tmp_path_factory.mktemp("photo")
    image = Image.fromarray(load_sample_images().images[0]).resize((1600, 1067), Image.Resampling.BICUBIC)

    def write(orientation, suffix=".jpg"):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        path = folder / f"{orientation}{suffix}"
        if not path.exists():
            image.save(path, exif=exif, quality=92, compress_level=1)
        return path

    return write


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """A small network with random weights, for RGB images of PHOTO_SIZE pixels, and its folder of images."""
    root = tmp_path_factory.mktemp("images")
    for name, image in zip(PHOTO_CLASSES, load_sample_images().images):
        (root / "val" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(image[100 * i : 100 * i + 150, :150]).save(root / "val" / name / f"{i}.jpg")
    settings = {
        "model": {"name": "mobilenet_v1", "width": 0.25},
        "data": {"name": "image_folder", "root": str(root), "image_size": PHOTO_SIZE},
        "runtime": {"mode": "pynative", "kernels": "stock"},
    }
    config = make_config(settings, source="test")
    ms.set_seed(1)
    classifier = create_model(config.model, config.data, len(PHOTO_CLASSES)).set_train(False)
    # Random weights give nearly equal probabilities; larger weights in the last layer make them differ by about 0.4.
    pixels = load_sample_images().images[0][None, :PHOTO_SIZE, :PHOTO_SIZE]
    logits = classifier(ms.Tensor(pixels)).asnumpy()[0]
    weight = classifier.head.weight
    weight.set_data(weight * (0.8 / abs(float(logits[0] - logits[1]))))
    path = root / "net.ckpt"
    path.write_bytes(b"random weights")
    return OpenCheckpoint(Checkpoint(path, config, PHOTO_CLASSES, 1, None, {}, {}, {}, {}, None), config, classifier)


@dataclasses.dataclass
class Case:
    """The quickstart's checkpoint with 20 of its test images."""

    source: Path
    checkpoint: object
    classifier: object
    samples: object
    images: np.ndarray  # uint8 (20, 16, 16, 1), the input of the network
    logits: np.ndarray  # the checkpoint's outputs for these images

    def loader(self, batch=1):
        return eval_loader(self.checkpoint.config, self.samples, batch_size=batch)

    def export(self, output, **options):
        options = Options(format=format_of(output), **options)
        calibration = ()
        if options.precision == "int8":
            calibration = full_batches(self.loader(options.batch), self.classifier, options.input)
        loader = self.loader(options.batch)
        opened = OpenCheckpoint(self.checkpoint, self.checkpoint.config, self.classifier)
        return export(opened, loader, "test", output, options, calibration)

    def batches(self, batch=1):
        """Yield (images, the checkpoint's logits); a smaller last batch is left out."""
        for i in range(0, len(self.images) - batch + 1, batch):
            yield self.images[i : i + batch], self.logits[i : i + batch]


@pytest.fixture(scope="session")
def case(quickstart):
    _, folder, _ = quickstart
    source = folder / "best.ckpt"
    checkpoint = load_checkpoint(source)
    # PyNative mode, because compiling takes longer than running 20 images.
    config = adapt_config(checkpoint.config, ["runtime.mode=pynative"])
    samples = load_samples(config.data, "test", checkpoint.classes).take(np.arange(0, 360, 18))
    classifier = restore(checkpoint)
    ((images, _),) = eval_loader(config, samples, batch_size=len(samples)).epoch()
    logits = classifier(ms.Tensor(images)).asnumpy()
    return Case(source, dataclasses.replace(checkpoint, config=config), classifier, samples, images, logits)


@pytest.fixture(scope="session")
def exported(case, tmp_path_factory):
    """Export to each format with default options: {format: path}."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {kind: folder / f"net{EXTENSIONS[kind]}" for kind in KINDS}
    for path in paths.values():
        case.export(path)
    return paths
