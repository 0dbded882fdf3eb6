"""Open Inference Protocol messages; proto/generate.py writes the data this package loads."""
