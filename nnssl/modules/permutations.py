"""Permutations that differ at as many places as possible: the classes of a jigsaw puzzle."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

CANDIDATES = 20_000
ALL_UP_TO = 7  # elements, of which all permutations are candidates


def choose_permutations(count: int, length: int) -> Tensor:
    """Permutations of `length` elements, each as far as possible from those before it.

    Distance is the number of places at which two differ (Hamming). Candidates are drawn from a
    fixed seed, so that every call and every rank gives the same.

    Args:
        count: of permutations; fewer where there are no more.
        length: elements N.

    Returns:
        (min(count, N!), N) int64, all different.

    Reference:
        Noroozi, Favaro: Unsupervised learning of visual representations by solving jigsaw puzzles.
        ECCV 2016, arXiv:1603.09246, algorithm 1 (there all N! permutations are candidates).
    """
    if length <= ALL_UP_TO:
        candidates = np.array(list(permutations(range(length))))
    else:
        rows = np.tile(np.arange(length), (CANDIDATES, 1))
        candidates = np.random.default_rng(0).permuted(rows, axis=1)
    distance = np.full(len(candidates), length + 1)
    chosen = []
    for _ in range(min(count, math.factorial(length))):
        chosen.append(candidates[distance.argmax()])
        distance = np.minimum(distance, (candidates != chosen[-1]).sum(1))
    return torch.from_numpy(np.stack(chosen))


def least_distance(table: Tensor) -> int:
    """Smallest number of places at which two of these permutations (P, N) differ."""
    distance = (table[:, None] != table[None]).sum(2)
    return int(distance[~torch.eye(len(table), dtype=torch.bool)].min())
