import subprocess
import sys
import warnings

import pytest
import torch

from bua.errors import InputError
from bua.precision import set_float32_precision


@pytest.fixture(autouse=True)
def highest_afterwards():
    yield
    set_float32_precision("highest")


def settings() -> tuple:
    backends = torch.backends
    return (
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
    )


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("", ("highest", "ieee", "ieee", "ieee")),
        ("highest", ("highest", "ieee", "ieee", "ieee")),
        ("high", ("high", "tf32", "tf32", "tf32")),
        ("medium", ("medium", "tf32", "tf32", "tf32")),
    ],
)
def test_matrix_products_and_convolutions_get_the_same_precision(precision, expected):
    set_float32_precision("high" if precision in ("", "highest") else "highest")
    set_float32_precision(precision)
    assert settings() == expected


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_older_settings_of_torch_can_still_be_read(precision):
    """torch raises an error when one of these is read that contradicts the newer settings."""
    set_float32_precision(precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.backends.cudnn.allow_tf32 == (precision == "high")
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "high")
        with torch.backends.cudnn.flags(enabled=True):
            pass


def test_float32_stays_float32_whatever_the_setting_for_all_operators_is():
    code = (
        "import torch; torch.backends.fp32_precision = 'tf32'\n"
        "from bua.precision import set_float32_precision; set_float32_precision('')\n"
        "print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("ieee ieee\n", "")


def test_an_unknown_value_is_one_line_that_names_its_source():
    with pytest.raises(InputError, match=r"^--precision is 'low'; use one of highest, high, medium$"):
        set_float32_precision("low", "--precision")
