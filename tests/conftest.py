"""What all tests share."""

import math
import os

import pytest
import torch

from infra.storage import Checkpoint


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose when the machine is busy.

    It also makes sums the same to the last bit in this process and in those that a test starts with
    OMP_NUM_THREADS=1.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def save_always(monkeypatch):
    """A checkpoint at every update, and no waiting for the disk."""
    monkeypatch.setattr(Checkpoint, "EVERY", -1.0)
    monkeypatch.setattr(Checkpoint, "SHARE", math.inf)
    monkeypatch.setattr(os, "fsync", lambda number: None)
