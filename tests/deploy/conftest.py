import mindspore as ms
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from src.config.load import make_config
from src.models import create_model
from src.weights.checkpoint import Checkpoint, OpenCheckpoint

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
