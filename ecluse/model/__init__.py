"""A model as an artefact: features, manifest, ONNX, store, and the topic that says which version scores."""
