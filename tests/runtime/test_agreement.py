"""Ranks that msrun starts with other settings or other data: no rank trains, and every rank says what differs."""

import json

import pytest
from PIL import Image

from tests.runtime.test_parallel import CONFIG, start_ranks

COMMON = ["--config", "c.yaml", "run.dir=run"]
PHOTOS = ["--config", "photos.yaml", "run.dir=run"]
# What the second rank is started with in place of the first rank's arguments, and what both ranks say.
CASES = [
    (COMMON, [*COMMON, "train.batch_size=64"], "train.batch_size: differs between the ranks 0 and 1"),
    (COMMON, ["--config", "d.yaml", "run.dir=run"], "optimizer.lr: differs"),
    (COMMON, [*COMMON, "augment.color_jitter=0.3"], "augment.color_jitter: differs"),
    (COMMON, [*COMMON, "--resume", "auto"], "--resume: differs"),
    ([*COMMON, "--overwrite"], COMMON, "--overwrite: differs"),
    (PHOTOS, [*PHOTOS, "data.root=named"], "classes of the training images: differs"),
    (PHOTOS, [*PHOTOS, "data.root=fewer"], "number of training images: differs"),
    (PHOTOS, [*PHOTOS, "data.root=moved"], "labels of the test images: differs"),
    (PHOTOS, [*PHOTOS, "data.root=equal", "data.workers=2", "run.dir=other"], "reached"),
]
COUNTS = {  # images by split and class
    "photos": {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}},
    "named": {"train": {"a": 5, "c": 5}, "val": {"a": 2, "c": 2}},
    "fewer": {"train": {"a": 5, "b": 4}, "val": {"a": 2, "b": 2}},
    "moved": {"train": {"a": 5, "b": 5}, "val": {"a": 3, "b": 1}},
    "equal": {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}},
}


@pytest.mark.slow
def test_ranks_with_other_settings_or_data_do_not_train(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "d.yaml").write_text(CONFIG.replace("lr: 0.1", "lr: 0.2"))
    (tmp_path / "photos.yaml").write_text(
        "data: {name: image_folder, root: photos, image_size: 32}\ntrain: {batch_size: 2}\n"
    )
    for root, splits in COUNTS.items():
        for split, classes in splits.items():
            for name, count in classes.items():
                folder = tmp_path / root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (40, 40), (i, 2 * i, 0)).save(folder / f"{i}.png")
    (tmp_path / "starts.json").write_text(json.dumps([case[:2] for case in CASES]))
    done = start_ranks(tmp_path, "tests/runtime/rank_with_other_settings.py", tmp_path)
    assert done.returncode == 0, done.log
    ended = [json.loads((tmp_path / f"ended-{rank}.json").read_text()) for rank in range(2)]
    for rank, ends in enumerate(ended):
        assert len(ends) == len(CASES)
        for (*_, part), end in zip(CASES, ends):
            assert end.startswith(part)
            assert part == "reached" or f"this is rank {rank}, found " in end
    assert "found 128)" in ended[0][0]
    assert "found 64)" in ended[1][0]
    assert not (tmp_path / "run").exists()
