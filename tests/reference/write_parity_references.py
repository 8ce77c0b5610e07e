"""Write tests/reference/parity.json: logits of torchvision's and timm's networks with weights that tests make again.

Needs PyTorch, which PocketSpore itself does not; in an environment of its own:
    pip install torch==2.13.0 numpy safetensors huggingface_hub pyyaml
    pip install --no-deps torchvision==0.28.0 timm
    python tests/reference/write_parity_references.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

# In place of this folder, whose profile.py would hide the standard library's from other modules.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# torchvision's compiled operators are built for another torch; its models need only their names.
LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    LIBRARY.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")

# Only now, as torchvision looks for its operators when it is imported.
import timm  # noqa: E402
import torchvision  # noqa: E402

from tests.reference.random_weights import random_images, random_tensor  # noqa: E402

CLASSES = 10
NETWORKS = [  # our network, width, source, how the source makes it
    ("mobilenet_v2", 0.5, "torchvision", lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES, width_mult=0.5)),
    ("shufflenet_v2", 0.5, "torchvision", lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)),
    ("shufflenet_v2", 1.0, "torchvision", lambda: torchvision.models.shufflenet_v2_x1_0(num_classes=CLASSES)),
    ("mnasnet", 0.5, "torchvision", lambda: torchvision.models.mnasnet0_5(num_classes=CLASSES)),
    ("mobilenet_v3_small", 1.0, "torchvision", lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES)),
    ("mobilenet_v3_large", 1.0, "torchvision", lambda: torchvision.models.mobilenet_v3_large(num_classes=CLASSES)),
    ("ghostnet", 0.5, "timm", lambda: timm.create_model("ghostnet_050", num_classes=CLASSES)),
    ("mobilenet_v2", 0.5, "timm", lambda: timm.create_model("mobilenetv2_050", num_classes=CLASSES)),
    ("mnasnet", 0.5, "timm", lambda: timm.create_model("mnasnet_050", num_classes=CLASSES)),
    ("mobilenet_v3_small", 0.75, "timm", lambda: timm.create_model("mobilenetv3_small_075", num_classes=CLASSES)),
    ("mobilenet_v3_large", 0.75, "timm", lambda: timm.create_model("mobilenetv3_large_075", num_classes=CLASSES)),
]


def main():
    images = torch.tensor((random_images() / 255).transpose(0, 3, 1, 2).astype(np.float32))
    references = []
    for name, width, source, make in NETWORKS:
        network = make().eval()
        tensors = {}
        with torch.no_grad():
            for key, tensor in network.state_dict().items():
                tensors[key] = list(tensor.shape)
                if tensor.is_floating_point():
                    tensor.copy_(torch.tensor(random_tensor(key, tensor.shape)))
            logits = network(images).numpy()
        references.append(
            {"network": name, "width": width, "source": source, "tensors": tensors, "logits": logits.tolist()}
        )
        print(f"{source} {name} {width}: largest logit {abs(logits).max():.1f}")
    packages = {module.__name__: module.__version__ for module in (torch, torchvision, timm, np)}
    content = {"made_by": "tests/reference/write_parity_references.py", "versions": packages, "references": references}
    (Path(sys.path[0]) / "tests" / "reference" / "parity.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
