"""What all tests share."""

import pytest
import torch


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
