"""The format "web": one HTML page that runs the network in a browser with the wasm backend of onnxruntime-web."""
