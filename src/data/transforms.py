"""Image operations of MindSpore's C++ pipeline: from a file or an array to uint8 of the network's input size."""

from mindspore.dataset import vision


def train_transforms(data, augment, are_files):
    """Return the operations on one training image; `data` and `augment` are the config's sections.

    A file's bytes (uint8, 1-D) or an array (H, W, C) becomes (image_size, image_size, C), or without the last
    dimension where a file is turned gray.
    """
    size = data.image_size
    if augment.crop == "resized":
        # From a file in one operation, which decodes no more of a JPEG than the crop needs.
        crop = vision.RandomCropDecodeResize if are_files else vision.RandomResizedCrop
        operations = [crop(size, augment.scale, augment.ratio), *to_gray(data, are_files)]
    else:
        operations = eval_transforms(data, are_files)
    if augment.crop == "pad":
        operations.append(vision.RandomCrop(size, augment.padding))
    if augment.flip:
        operations.append(vision.RandomHorizontalFlip(augment.flip))
    return operations


def eval_transforms(data, are_files):
    """Return the operations on one evaluated image: short side to image_size / crop_fraction, then the centre."""
    short_side = round(data.image_size / data.crop_fraction)
    decode = [vision.Decode()] if are_files else []
    return [*decode, vision.Resize(short_side), vision.CenterCrop(data.image_size), *to_gray(data, are_files)]


def to_gray(data, are_files):
    """Files are decoded to RGB; a network of one channel sees their luminance."""
    return [vision.ConvertColor(vision.ConvertMode.COLOR_RGB2GRAY)] if are_files and data.channels == 1 else []
