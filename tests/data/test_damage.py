"""Two hundred damaged files in one image folder: no process crashes, and every image is used or counted as bad."""

import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.data.datasets import load_samples
from src.data.loading import eval_loader, train_loader
from src.errors import UserError
from tests.data.test_formats import KINDS, damages

GOOD, DAMAGED = 30, 200


@pytest.fixture
def damaged_photos(tmp_path):
    """Return a folder of good and damaged JPEG and PNG files: bit flips, truncated, zeroed, empty, wrong extension."""
    kinds = [KINDS[name] for name in ("jpeg", "progressive jpeg", "png", "gray jpeg")]
    damaged = [damages(content, np.random.default_rng(i), DAMAGED) for i, content in enumerate(kinds)]
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
        for i in range(GOOD):
            Image.new("RGB", (40, 40), (8 * i, 0, 0)).save(tmp_path / split / "a" / f"good {i}.png")
        for i in range(DAMAGED):
            ending = ("png", "jpg", "jpeg", "png")[(i + (i % 7 == 0)) % 4]
            content = b"" if i % 20 == 19 else next(damaged[i % len(kinds)])
            (tmp_path / split / "b" / f"{i}.{ending}").write_bytes(content)
    return tmp_path


def test_every_image_is_used_or_counted_as_bad(damaged_photos, capfd):
    data = {"name": "image_folder", "root": str(damaged_photos), "image_size": 32, "on_bad_image": "skip"}
    config = make_config({"data": data, "train": {"batch_size": 16}})
    train = load_samples(config.data, "train")
    test = load_samples(config.data, "eval", train.classes)
    assert (len(train), len(test), train.notes) == (GOOD + DAMAGED, GOOD + DAMAGED, ())
    batches = eval_loader(config, test)
    for _ in range(2):
        seen = [label for _, labels in batches.epoch() for label in labels]
        assert len(seen) + len(batches.bad) == GOOD + DAMAGED
        assert seen.count(0) == GOOD
    # A file with flipped bits may still be an image, but most damaged files are not.
    assert DAMAGED / 3 < len(batches.bad) < DAMAGED
    batches = train_loader(config, train)
    for epoch in (1, 2):
        assert [images.shape for images, _ in batches.epoch(epoch)] == [(16, 32, 32, 3)] * ((GOOD + DAMAGED) // 16)
    config.data.on_bad_image = "error"
    with pytest.raises(UserError) as caught:
        load_samples(config.data, "train")
    assert str(caught.value).startswith(f"{damaged_photos}/train/b/")
    with pytest.raises(UserError, match=f"^{damaged_photos}/train/b/"):
        list(train_loader(config, train).epoch(1))
