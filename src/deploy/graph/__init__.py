"""The graph of an exported network: read it from MindIR, rewrite it, and write it as MindIR or ONNX."""
