"""Losses: tensors in, a scalar out. They never see a network, a file or a configuration."""
