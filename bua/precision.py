"""The precision of arithmetic: of float32 matrix products and convolutions, and of autocast."""

import warnings

import torch

from bua.errors import InputError

# Values of FLOAT32_PRECISION, which are those of ``torch.set_float32_matmul_precision`` and of Detectron2's key.
FLOAT32_PRECISIONS = ("highest", "high", "medium")
# Values of SOLVER.AMP.DTYPE, and "float32" for no autocast.
AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_float32_precision(precision: str, source: str = "FLOAT32_PRECISION") -> None:
    """Raises an InputError that names ``source`` if ``precision`` is not "" or one of ``FLOAT32_PRECISIONS``."""
    if precision and precision not in FLOAT32_PRECISIONS:
        raise InputError(f"{source} is {precision!r}; use one of {', '.join(FLOAT32_PRECISIONS)}")


def set_float32_precision(precision: str, source: str = "FLOAT32_PRECISION") -> None:
    """Sets the precision of this process's float32 matrix products and convolutions, on all devices.

    Torch's default differs between the two: on a GPU it multiplies matrices in float32, but lets cuDNN compute
    convolutions and recurrent layers in TF32, whose mantissa has 10 bits instead of 23.

    Args:
        precision: "highest" computes in float32. "high" and "medium" allow TF32 on a GPU, for matrix products and
            convolutions alike; they mean the same there. On a CPU, "high" and "medium" let oneDNN multiply matrices in
            TF32 and bfloat16, if the CPU can, and convolutions stay in float32. "" means "highest".
        source: The configuration key or option that the value is from, for the message.

    Raises:
        InputError: ``precision`` has another value.
    """
    check_float32_precision(precision, source)
    reduced = precision in ("high", "medium")
    with warnings.catch_warnings():
        # Some versions of torch warn that these two are the older interface. They are set nevertheless, because torch
        # raises an error when somebody reads a setting of the older interface that only the newer one has changed.
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision(precision or "highest")
        torch.backends.cudnn.allow_tf32 = reduced
    # The older interface leaves convolutions without a setting of their own when it disallows TF32, so that they would
    # follow ``torch.backends.fp32_precision``.
    for operators in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):  # type: ignore[attr-defined]
        operators.fp32_precision = "tf32" if reduced else "ieee"  # type: ignore[union-attr]


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Returns the dtype for ``torch.autocast``, or None for float32, which needs no autocast.

    Raises:
        InputError: The precision is unknown, or the device does not support it.
    """
    if precision not in AUTOCAST_DTYPES:
        raise InputError(f"SOLVER.AMP.DTYPE is {precision!r}; use one of {', '.join(AUTOCAST_DTYPES)}")
    if precision == "float16" and device.type == "cpu":
        raise InputError("SOLVER.AMP.DTYPE is 'float16', which needs a GPU; use 'bfloat16' or SOLVER.AMP.ENABLED False")
    return AUTOCAST_DTYPES[precision]
