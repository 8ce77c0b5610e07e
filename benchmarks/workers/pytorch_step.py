"""The worker of train_step.py for PyTorch: torchvision's network in channels-last format, eager or compiled.

It runs in an environment of its own, and imports nothing of this project. Its classifier has no dropout, as ours.
"""

from answering import serve


def prepare(settings):
    """Return a function that runs one step on random images, and facts about the network."""
    import torch

    models = import_models(torch)
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    net = getattr(models, settings["network"])(num_classes=settings["classes"], **settings["arguments"])
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if settings["stem_stride"] == 1:
        next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d)).stride = (1, 1)
        if hasattr(net, "maxpool"):
            net.maxpool = torch.nn.Identity()
    net = net.to(memory_format=torch.channels_last).train(not settings["forward"])
    images = torch.randn(settings["batch"], 3, settings["size"], settings["size"])
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, settings["classes"], (settings["batch"],))
    optimizer = torch.optim.SGD(net.parameters(), settings["lr"], **settings["sgd"])
    criterion = torch.nn.CrossEntropyLoss()
    network = torch.compile(net) if settings["compile"] else net

    def infer():
        with torch.inference_mode():
            network(images)

    def train():
        optimizer.zero_grad()
        criterion(network(images), labels).backward()
        optimizer.step()

    facts = {"version": f"PyTorch {torch.__version__}", "parameters": sum(p.numel() for p in net.parameters())}
    return infer if settings["forward"] else train, facts


def import_models(torch):
    """Return torchvision.models, also if torchvision's compiled operators are built for another PyTorch.

    Its networks do not use the operators. But without them, importing it needs the names of two of them.
    """
    try:
        import torchvision
    except RuntimeError:
        names = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            names.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        import torchvision
    return torchvision.models


if __name__ == "__main__":
    serve(prepare)
