"""Losses: tensors in, a scalar out; no network, no file."""
