import pytest
import torch

from bua.upload import upload


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_tensor_that_is_on_the_cpu_stays_as_it_is(device):
    tensor = torch.arange(3)
    assert upload(tensor, device) is tensor


def test_numbers_become_float32():
    assert torch.equal(upload([(1, 2.5), (3, 4)], "cpu"), torch.tensor([[1.0, 2.5], [3, 4]]))
