"""A detector as one graph of tensors: ONNX and ``.pt2`` files that run without boxdet."""
