"""A pretended GPU: runs code that is written for CUDA on a machine without a GPU, and counts where it waits.

    pretended_install.install()  # before anything asks whether there is a GPU
    with waits.counted() as found:
        ...
    assert total(found) <= 8, table(found)

A tensor on "cuda:0" is a ``DeviceTensor``. PyTorch takes it for one of a GPU, so autocast, autograd and ``x.device``
behave as there; its values are in a tensor of the CPU, on which operators run. Every operator

- raises where CUDA raises: tensors of two devices, ``numpy()`` of a tensor on the device, use in a forked process;
- counts what makes the host wait, by kind and by line of the project (pretended_waits.py);
- keeps account of streams and asynchronous copies (pretended_streams.py), so that missing waits are found too.

It does not see: dtypes and sizes that CUDA's kernels refuse, differences of numbers, memory that is freed too early,
several GPUs, CUDA graphs, ``torch.compile``. It depends on private parts of PyTorch, and was made with torch 2.14.
"""

import os
import threading
from functools import cache
from typing import NamedTuple

import pretended_streams as streams
import torch
from pretended_waits import waits
from torch.utils._python_dispatch import TorchDispatchMode

# The kind and the number of waits in operators whose result's size, or whose check, depends on values.
DATA_DEPENDENT = {
    "_local_scalar_dense": ("item", 1),
    "nonzero": ("nonzero", 1),
    "masked_select": ("masked_select", 1),
    "_unique": ("unique", 1),
    "_unique2": ("unique", 1),
    "unique_dim": ("unique", 2),
    "unique_consecutive": ("unique", 1),
    "unique_dim_consecutive": ("unique", 1),
    "bincount": ("bincount", 2),
    "histc": ("histc", 2),
    "equal": ("equal", 1),
    "multinomial": ("multinomial", 2),
    "repeat_interleave": ("repeat_interleave", 1),
    "nms": ("nms", 1),
}
COPIES = {"copy_", "_to_copy", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# Operators that take 0-dimensional tensors of the CPU beside tensors of the device, besides pointwise ones.
TAKES_CPU_SCALARS = {"masked_fill", "masked_fill_", "fill", "fill_", "where", "clamp", "clamp_", "lerp", "lerp_"}
TAKES_CPU_SCALARS |= {f"_foreach_{name}{end}" for name in ("add", "sub", "mul", "div") for end in ("", "_")} | INDEXING

_process = os.getpid()
_local = threading.local()


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device.

    Attributes:
        values: The tensor of the CPU that has its values.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor):
        # A tensor belongs to inference mode if its values were made there.
        with torch.inference_mode(values.is_inference()):
            self = torch.Tensor._make_wrapper_subclass(
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                layout=values.layout,
                device=streams.DEVICE,
            )
        self.values = values.detach() if values.requires_grad else values
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run_operator(func, args, kwargs or {})

    def tolist(self):
        waits.add("tolist")
        streams.wait_for_stream()
        return self.values.tolist()

    def numpy(self, *, force=False):
        if force:
            return self.detach().cpu().numpy()
        waits.refuse("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first")

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("Only leaf tensors support the deepcopy protocol")
            memo[id(self)] = copied = DeviceTensor(self.values.clone()).requires_grad_(self.requires_grad)
            streams.write(copied.values)
            if hasattr(self, "_is_param"):
                copied._is_param = self._is_param
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        # Saving a tensor of a GPU waits for it. What is saved is a tensor of the CPU.
        waits.add("copy to the host")
        streams.wait_for_stream()
        return self.values.detach().__reduce_ex__(protocol)

    # Module.to changes the parameters of tensors with these two methods in place, as it does on a GPU.
    def __tensor_flatten__(self):
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner_tensors, context, outer_size, outer_stride):
        return DeviceTensor(inner_tensors["values"])

    def __repr__(self, **options):
        return f"{self.values!r} on {streams.DEVICE}"

    def __format__(self, specification):
        return format(self.item() if self.dim() == 0 else repr(self), specification)

    def data_ptr(self):
        return self.values.data_ptr()

    def pin_memory(self, device=None):
        waits.refuse("cannot pin 'torch.cuda.FloatTensor', only dense CPU tensors can be pinned")

    def is_pinned(self, device=None):
        return False

    def record_stream(self, stream):
        if not isinstance(stream, streams.Stream):
            raise TypeError(f"record_stream: {stream!r} is not a stream")


class DeviceMode(TorchDispatchMode):
    """Sees the operators that have no argument on the device, such as ``torch.zeros(3, device="cuda")``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run_operator(func, args, kwargs or {})


def thread_mode() -> DeviceMode:
    """Returns the mode of this thread."""
    if not hasattr(_local, "mode"):
        _local.mode = DeviceMode()
    return _local.mode


class Operator(NamedTuple):
    """What is known of an operator, without its namespace and overload in the ``name``."""

    name: str
    composite: bool
    pointwise: bool
    changes_shape: bool
    writes: tuple[tuple[int, str], ...]

    @staticmethod
    @cache
    def of(func) -> "Operator":
        arguments = enumerate(func._schema.arguments)
        return Operator(
            func._schema.name.partition("::")[2],
            torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
            torch.Tag.pointwise in func.tags,
            torch.Tag.inplace_view in func.tags,
            tuple((i, x.name) for i, x in arguments if x.alias_info is not None and x.alias_info.is_write),
        )


def run_operator(func, args, kwargs):
    """Runs an operator of ATen or torchvision as PyTorch would call it."""
    if func.namespace == "prim":  # prim.device, which the wrapper answers
        return func(*args, **kwargs)
    tensors = _tensors(args, kwargs)
    on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not on_device and (device is None or device.type != "cuda"):
        return _run_on_host(func, args, kwargs)
    if os.getpid() != _process:
        waits.refuse("Cannot re-initialize CUDA in forked subprocess. Use the 'spawn' start method")
    torch.cuda._lazy_init()
    operator = Operator.of(func)
    # In inference mode, operators arrive here before they are decomposed.
    if operator.composite:
        with thread_mode():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result

    _check_devices(func, operator, args, tensors)
    for tensor in on_device:
        streams.read(tensor.values)
    if operator.name in COPIES:
        return _copy(func, operator.name, args, kwargs, device)
    inner_args, inner_kwargs = _map(_values_of, args), {key: _map(_values_of, kwargs[key]) for key in kwargs}
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
    result = func(*inner_args, **inner_kwargs)
    result = _wrap(operator, args, kwargs, result, tensors)
    if operator.changes_shape:
        _change_shape(func, args, kwargs)
    _count_waits(operator.name, args, kwargs, on_device)
    return result


def _tensors(args, kwargs) -> list[torch.Tensor]:
    """Returns the tensors among arguments, which may be in lists."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value, {})
    return found


def _map(function, value):
    """Applies a function to the values in lists and tuples."""
    return type(value)([_map(function, item) for item in value]) if type(value) in (list, tuple) else function(value)


def _values_of(leaf):
    return leaf.values if isinstance(leaf, DeviceTensor) else leaf


def _run_on_host(func, args, kwargs):
    """Runs an operator of the CPU; the driver, which pins memory, is pretended."""
    name = func._schema.name
    if name == "aten::is_pinned":
        return streams.is_pinned(args[0])
    if name == "aten::_pin_memory":
        return streams.pin(args[0].clone())
    if kwargs.get("pin_memory"):
        return streams.pin(func(*args, **{**kwargs, "pin_memory": False}))
    return func(*args, **kwargs)


def _wrap(operator: Operator, args, kwargs, result, tensors):
    """Puts the tensors of a result onto the device. What an operator writes in place stays the same object."""
    same = {id(_values_of(tensor)): tensor for tensor in tensors}
    inputs = {streams.address(_values_of(tensor)) for tensor in tensors}
    for place, name in operator.writes:
        for tensor in _tensors([args[place] if place < len(args) else kwargs.get(name)], {}):
            streams.write(_values_of(tensor))

    def wrap(value):
        if not isinstance(value, torch.Tensor):
            return value
        if streams.address(value) not in inputs:  # otherwise it is a view, which no kernel writes
            streams.write(value)
        return same[id(value)] if id(value) in same else DeviceTensor(value)

    return _map(wrap, result)


def _copy(func, name: str, args, kwargs, device: torch.device | None):
    """Runs an operator that may copy between the host and the device."""
    if name == "_foreach_copy_":
        for target, source in zip(args[0], args[1]):
            target.copy_(source, *args[2:], **kwargs)
        return None if not func._schema.returns else args[0]
    non_blocking = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
    if name == "copy_":
        target, source = args[0], args[1]
        if isinstance(target, DeviceTensor):
            if not isinstance(source, DeviceTensor):
                streams.copied_to_device(source, non_blocking)
            target.values.copy_(_values_of(source))
            streams.write(target.values)
        else:
            # A copy that also converts is made on the device first, then copied.
            streams.copy_to_host(target, source.values, non_blocking)
        return target
    source = args[0]
    to_host = device is not None and device.type == "cpu"
    result = func(_values_of(source), *args[1:], **{**kwargs, "device": torch.device("cpu"), "non_blocking": False})
    if to_host:
        target = torch.empty_like(result)
        if non_blocking:
            streams.pin(target)  # as PyTorch does
        streams.copy_to_host(target, result, non_blocking)
        return target
    if not isinstance(source, DeviceTensor):
        streams.copied_to_device(source, non_blocking)
    streams.write(result)
    return DeviceTensor(result)


def _check_devices(func, operator: Operator, args, tensors) -> None:
    """Raises where CUDA does because an operator is given tensors of two devices."""
    host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.device.type == "cpu"]
    if not host or len(host) == len(tensors) or operator.name in COPIES:
        return
    if operator.name in INDEXING:
        if not isinstance(args[0], DeviceTensor):
            waits.refuse("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        indices = [tensor for tensor in host if any(tensor is index for index in args[1])]
        if indices:
            waits.add("index from the host", len(indices))
        host = [tensor for tensor in host if not any(tensor is index for index in indices)]
    scalars = operator.pointwise or operator.name in TAKES_CPU_SCALARS
    wrong = [tuple(tensor.shape) for tensor in host if tensor.dim() > 0 or not scalars]
    if wrong:
        waits.refuse(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func}: on the CPU are tensors of the shapes {wrong})"
        )


def _count_waits(name: str, args, kwargs, on_device) -> None:
    if name in DATA_DEPENDENT:
        known = name == "repeat_interleave" and kwargs.get("output_size") is not None
        if not known and any(tensor.numel() for tensor in on_device):
            waits.add(*DATA_DEPENDENT[name])
            streams.wait_for_stream()
    elif name in INDEXING:
        masks = [x for x in args[1] if isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)]
        if masks and not _fills_mask(name, args):
            waits.add("mask index", len(masks))
            streams.wait_for_stream()


def _fills_mask(name: str, args) -> bool:
    """Returns whether it is ``x[mask] = number``, which PyTorch computes as masked_fill."""
    accumulate = len(args) > 3 and args[3]
    return "put" in name and not accumulate and args[2].numel() == 1 and not isinstance(args[2], DeviceTensor)


def _change_shape(func, args, kwargs) -> None:
    """Gives a wrapper the shape that its values were given in place, as by ``unsqueeze_``."""
    included = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(included)
