"""A process that is bound to few cores starts few threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from nnssl.training.interruptible import limit_threads

BOUND = """
import os, torch
from nnssl.training.interruptible import limit_threads
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(4)
limit_threads(torch.device("cuda"))
assert torch.get_num_threads() == 4
limit_threads(torch.device("cpu"))
assert torch.get_num_threads() == 1
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound here")
def test_no_more_threads_than_cores():
    subprocess.run([sys.executable, "-c", BOUND], check=True)


def test_threads_are_never_added():
    before = torch.get_num_threads()
    limit_threads(torch.device("cpu"))
    assert torch.get_num_threads() <= before
