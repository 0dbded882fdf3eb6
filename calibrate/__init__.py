"""Offline half of Trigger Guard: from an ONNX model and clean samples to a bundle."""
