import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """As many as a study uses by default; with more, the last bits depend on the size of the stack."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
