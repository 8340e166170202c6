"""Installs the pretended device: PyTorch then finds one GPU, in this process and in all threads that it starts."""

import ctypes
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pretended_streams as streams
import torch
from pretended_device import DeviceTensor, thread_mode
from pretended_waits import waits
from torch.optim import optimizer
from torch.utils import _foreach_utils

_kept: list = []  # Memory that C code refers to.


def install() -> None:
    """Makes this process believe in a GPU. It cannot be undone.

    Raises:
        RuntimeError: PyTorch was built without CUDA, or is of a version whose internals differ.
    """
    if not torch.backends.cuda.is_built():
        raise RuntimeError("the pretended device needs a PyTorch that was built with CUDA, as PyPI has it for Linux")
    if not _kept:
        torch._C._ensureCUDADeviceGuardSet()  # a guard that needs no driver
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor([...], device="cuda") is made on the CPU, then copied
        _replace_driver_query()
        _replace_driver_functions()
        _replace_pinned_memory()
        # Without cuDNN, operators are those that the CPU has too. Only recurrent networks have other ones.
        torch.backends.cudnn.enabled = False
        torch._VF.gru = _gru
        for module in (optimizer, _foreach_utils):
            module._foreach_supported_types.append(DeviceTensor)
        _enter_mode_in_threads()
        thread_mode().__enter__()


def _replace_driver_query() -> None:
    """Lets autograd believe that the driver has nothing to do with this device.

    Autograd's engine asks a virtual function of a C++ object, hasPrimaryContext, which asks the driver. The object gets
    a copy of its table of functions in which another function answers. The function's place in the table is read from
    the header file that comes with PyTorch.
    """
    package = Path(torch.__file__).parent
    header = (package / "include" / "ATen" / "detail" / "AcceleratorHooksInterface.h").read_text()
    functions = re.findall(r"^  virtual [^~;{=]*?(\w+)\(", header, flags=re.MULTILINE)
    if "hasPrimaryContext" not in functions:
        raise RuntimeError(f"the pretended device does not know torch {torch.__version__}")
    place = 2 + functions.index("hasPrimaryContext")  # after the two entries of the destructor
    find_hooks = ctypes.CDLL(str(package / "lib" / "libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    find_hooks.restype = ctypes.c_void_p
    hooks = ctypes.cast(find_hooks(), ctypes.POINTER(ctypes.c_void_p))
    # Before its first function, a table has two entries about its type.
    length, before = 2 + place + len(functions) + 100, 2
    word = ctypes.sizeof(ctypes.c_void_p)
    table = (ctypes.c_void_p * length).from_buffer_copy(ctypes.string_at(hooks[0] - before * word, length * word))
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: False)
    table[before + place] = ctypes.cast(answer, ctypes.c_void_p).value
    hooks[0] = ctypes.addressof(table) + before * word
    _kept.extend((table, answer))


def _replace_driver_functions() -> None:
    """Replaces the functions in C under torch.cuda. Those in Python stay, with their checks of arguments."""

    def set_device(index: int) -> None:
        if index > 0:
            waits.refuse(f"CUDA error: invalid device ordinal ({index})")

    process, cuda = os.getpid(), torch.cuda
    for name, function in {
        "_cuda_init": lambda: None,
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": set_device,
        "_cuda_exchangeDevice": lambda index: 0,
        "_cuda_maybeExchangeDevice": lambda index: 0,
        "_cuda_synchronize": streams.synchronize,
        "_cuda_getArchFlags": lambda: "sm_90",
        "_cuda_memoryStats": lambda index: {},
        "_cuda_resetPeakMemoryStats": lambda index: None,
        "_cuda_resetAccumulatedMemoryStats": lambda index: None,
        "_cuda_emptyCache": lambda *arguments: None,
        "_cuda_setMemoryFraction": lambda fraction, index: None,
    }.items():
        setattr(torch._C, name, function)
    cuda._is_in_bad_fork = lambda: os.getpid() != process
    cuda._device_count_nvml = lambda: -1
    cuda._exchange_device = cuda._maybe_exchange_device = lambda index: 0
    cuda.default_generators = (torch._C.Generator("cpu"),)
    cuda.mem_get_info = lambda device=None: (130 << 30, 140 << 30)
    properties = SimpleNamespace(
        name="pretended GPU", major=9, minor=0, total_memory=140 << 30, multi_processor_count=132, warp_size=32
    )
    cuda._get_device_properties = lambda index: properties
    cuda.Stream, cuda.Event = streams.Stream, streams.Event
    cuda.current_stream, cuda.default_stream = streams.current_stream, streams.default_stream
    cuda.set_stream = streams.set_stream
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.accelerator.device_count = lambda: 1


def _replace_pinned_memory() -> None:
    torch.Tensor.is_pinned = lambda self, device=None: streams.is_pinned(self)
    torch.Tensor.pin_memory = lambda self, device=None: (
        self if streams.is_pinned(self) else streams.pin(self.detach().clone())
    )


def _enter_mode_in_threads() -> None:
    run = threading.Thread.run

    def run_in_mode(self):
        with thread_mode():
            run(self)

    threading.Thread.run = run_in_mode


class _Recurrent(torch.autograd.Function):
    """A GRU on the values of its tensors, with the gradients that autograd finds there."""

    @staticmethod
    def forward(ctx, options, *tensors):
        ctx.options = options
        ctx.save_for_backward(*tensors)
        outputs = _run_gru(options, [tensor.values for tensor in tensors])
        for output in outputs:
            streams.write(output)
        return tuple(DeviceTensor(output) for output in outputs)

    @staticmethod
    def backward(ctx, *gradients):
        inputs = [tensor.values.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = _run_gru(ctx.options, inputs)
        known = [(output, gradient.values) for output, gradient in zip(outputs, gradients) if gradient is not None]
        roots, seeds = zip(*known)
        found = torch.autograd.grad(roots, inputs, seeds, allow_unused=True)
        for gradient in found:
            if gradient is not None:
                streams.write(gradient)
        return None, *(None if gradient is None else DeviceTensor(gradient) for gradient in found)


_gru_of_torch = torch._VF.gru


def _run_gru(options: tuple, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return _gru_of_torch(tensors[0], tensors[1], tensors[2:], *options)


def _gru(inputs, *rest):
    """In the place of torch._VF.gru, as torch.nn.GRU calls it for a batch that is not packed."""
    if not isinstance(inputs, DeviceTensor):
        return _gru_of_torch(inputs, *rest)
    state, weights, *options = rest
    if not isinstance(weights, (list, tuple)):
        raise NotImplementedError("the pretended device has no recurrent networks on packed sequences")
    tensors = [inputs, state, *weights]
    if not all(isinstance(tensor, DeviceTensor) for tensor in tensors):
        waits.refuse("Input and hidden tensors are not at the same device, found at least one on the CPU")
    if torch.is_autocast_enabled("cuda"):
        tensors = [tensor.to(torch.get_autocast_dtype("cuda")) for tensor in tensors]
    if len({tensor.dtype for tensor in tensors}) > 1:
        waits.refuse(f"gru: tensors of several dtypes: {sorted({str(tensor.dtype) for tensor in tensors})}")
    for tensor in tensors:
        streams.read(tensor.values)
    with torch.autocast("cuda", enabled=False):
        return _Recurrent.apply(tuple(options), *tensors)
