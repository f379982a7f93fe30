"""Pools: one pre-training dataset out of several."""
