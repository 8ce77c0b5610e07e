"""Write the small training checkpoints of PyTorch in tests/reference, as torchvision's references and timm write them.

Needs PyTorch, which PocketSpore itself does not; in an environment of its own:
    pip install torch==2.13.0 numpy
    python tests/reference/write_training_checkpoints.py
"""

import argparse
from pathlib import Path

import torch
from torch import nn

FOLDER = Path(__file__).parent


def network(value):
    """Return a convolution and a BatchNorm whose weights all have the value `value`."""
    layers = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2))
    for tensor in layers.state_dict().values():
        tensor.fill_(value)
    return layers


def trained(value):
    """Return a network and its optimizer after one step at learning rate 0, so the optimizer has a state."""
    model = network(value)
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model, optimizer


def main():
    args = argparse.Namespace(model="mnasnet1_3", lr=0.5, device=torch.device("cpu"), output_dir=Path("."))

    # references/classification/train.py of torchvision; its moving average is an AveragedModel.
    model, optimizer = trained(1.0)
    average = torch.optim.swa_utils.AveragedModel(network(2.0), use_buffers=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": args,
        "model_ema": average.state_dict(),
    }
    torch.save(content, FOLDER / "torchvision_training.pth")

    # timm/utils/checkpoint_saver.py of timm, with weights in bfloat16 inside DataParallel.
    model, optimizer = trained(1.0)
    content = {
        "epoch": 3,
        "arch": "mobilenetv3_large_100",
        "state_dict": nn.DataParallel(model.bfloat16()).state_dict(),
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": args,
        "state_dict_ema": network(1.5).bfloat16().state_dict(),
        "metric": torch.tensor(75.5, dtype=torch.float64),
    }
    torch.save(content, FOLDER / "timm_training.pth")

    # A network inside DataParallel, in bfloat16, without a moving average.
    torch.save({"state_dict": nn.DataParallel(network(-3.14159).bfloat16()).state_dict()}, FOLDER / "parallel.pth")


if __name__ == "__main__":
    main()
