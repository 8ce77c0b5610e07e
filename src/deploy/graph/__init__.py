"""The graph of an exported network: reading, rewriting and writing it as MindIR or ONNX."""
