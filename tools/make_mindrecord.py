"""Pack a data set into a few large files: python tools/make_mindrecord.py photos packed

This helps on file systems that are slow with many small files. SOURCE is a config file, an image folder, or the name of
a data set. The settings `data.name: mindrecord` and `data.root: OUT` read the packed folder OUT.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
import io
from pathlib import Path

from src.arguments import whole
from src.config.load import load_config, make_config
from src.errors import ArgumentParser, UserError, run
from src.files import making_folder, write_json
from src.outputs import Output, check_outputs

QUALITY = 95  # of the JPEGs that --short-side writes


def main():
    args = parse()
    data = config_of(args).data
    if data.name == "mindrecord":
        raise UserError(f"{args.source}: is packed already")

    from src.data.datasets import inputs_of, load_samples, splits_of
    from src.data.mindrecord import DESCRIPTION, FORMAT

    out = Path(args.out)
    check_outputs([Output("OUT", out, is_folder=True)], inputs_of(data))
    with making_folder(out) as partial:
        description = {"format": FORMAT, "classes": None, "splits": {}}
        for split in splits_of(data):
            samples = load_samples(data, split, description["classes"])
            description["classes"] = samples.classes
            shards = args.shards if split == "train" else 1
            description["splits"][split] = pack(partial, split, samples, args.short_side, shards, data)
        if "train" not in description["splits"]:
            raise UserError(f"{args.source}: has no training images")
        write_json(description, partial / DESCRIPTION)
    print(f"written: {out}; use it with data.name=mindrecord data.root={out}")


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a .yaml file, an image folder, or a data set's name")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--short-side", type=whole(8, 65_500), metavar="PIXELS", help="shrink larger images to this short side, as JPEG"
    )
    parser.add_argument("--shards", type=whole(1, 1000), default=8, help="files of the training split (default: 8)")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="such as data.val_fraction=0.2")
    args = parser.parse_intermixed_args()
    return args


def config_of(args):
    """Return the config that SOURCE and the overrides describe."""
    if Path(args.source).suffix in (".yaml", ".yml"):
        return load_config(args.source, args.overrides)

    from src.data.datasets import DATASETS

    named = args.source in DATASETS
    if not named and not Path(args.source).is_dir():
        raise UserError(f"{args.source}: is not a .yaml file, a folder, or one of {', '.join(DATASETS)}")
    data = {"name": args.source} if named else {"name": "image_folder", "root": args.source}
    return make_config({"data": data}, args.overrides, source="command line")


def pack(folder, split, samples, short_side, shards, data):
    """Write the files of one split; return the part of the description that concerns it."""
    from tqdm import tqdm

    from src.data.formats import UPRIGHT
    from src.data.loading import workers_of
    from src.data.mindrecord import write_split
    from src.data.reading import prefetch

    if not samples.are_files and short_side:
        raise UserError(f"--short-side {short_side}: cannot be used with {data.name}, which has no image files")
    good, bad, turned = [], 0, False
    bar = tqdm(total=len(samples), desc=split, unit=" images", leave=False, disable=not sys.stderr.isatty())

    def contents():
        nonlocal bad, turned
        packed = prefetch(lambda image: content_of(image, short_side), samples.images, workers_of(data))
        for number, (content, orientation, problem) in enumerate(packed):
            bar.update()
            if problem and data.on_bad_image == "error":
                raise UserError(problem)
            bad += problem is not None
            if content is not None:
                good.append(number)
                turned = turned or orientation != UPRIGHT
                yield content, orientation

    with bar:
        files = write_split(folder, split, contents(), -(-len(samples) // shards))
    if bad:
        print(f"{split}: bad images left out (data.on_bad_image): {bad:,}")
    print(f"{split}: {len(good):,} images in {len(files)} files")
    shape = None if samples.are_files else list(samples.images.shape[1:])
    return {"files": files, "labels": samples.labels[good].tolist(), "shape": shape, "turned": turned}


def content_of(image, short_side):
    """Return (bytes to write, EXIF orientation, what is wrong); `image` is an array or the path of a file.

    The bytes are None if something is wrong. An image file that MindSpore's decoder reads stays as it is.
    """
    from PIL import Image

    from src.data.formats import UPRIGHT, ImageError, decodable, decode, decoder_takes, read_file

    if not isinstance(image, str):
        return image.tobytes(), UPRIGHT, None
    try:
        content = read_file(image)
        usable, orientation = decodable(content)
        unchanged = usable is content and decoder_takes(usable)
        if unchanged and short_side is None:
            return content, orientation, None
        picture = decode(content)
    except (OSError, ImageError) as problem:
        return None, UPRIGHT, f"{image}: {getattr(problem, 'strerror', None) or problem}"
    written, scale = io.BytesIO(), (short_side or 0) / min(picture.size)
    if short_side and scale < 1:
        size = [max(short_side, round(side * scale)) for side in picture.size]
        picture.resize(size, Image.Resampling.LANCZOS).save(written, "JPEG", quality=QUALITY)
    elif unchanged:
        return content, orientation, None
    else:
        picture.save(written, "PNG")
    return written.getvalue(), UPRIGHT, None


if __name__ == "__main__":
    run(main)
