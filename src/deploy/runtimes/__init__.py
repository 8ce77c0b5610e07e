"""The runtimes that execute exported files: MindSpore, ONNX Runtime and MindSpore Lite."""
