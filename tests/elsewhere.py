"""A device that is not there: its tensors are computed on the CPU,
and refused wherever a real accelerator would refuse them.

Inside `elsewhere()` torch knows a device of that name. A tensor on it cannot meet one on the CPU (numbers, copies and
index lists aside), cannot become a NumPy array, and cannot be float64, which Apple's devices do not know.
Autograd, optimisers and modules work as on any device.
"""
import contextlib

import torch, torch._dynamo
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME, aten = "elsewhere", torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Elsewhere(torch.Tensor):
    "A tensor that says it is on the device and holds its numbers, on the CPU, as `inner`."
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(),
            storage_offset=inner.storage_offset(), dtype=inner.dtype, device=torch.device(NAME, 0))

    def __init__(self, inner):
        if inner.dtype == torch.float64: raise TypeError("some devices have no float64")
        self.inner = inner

    def __repr__(self, **_): return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    "What the operation `func` gives; the result is where `device` asks for it, else where its tensors are."
    if func not in COPIES and func._can_decompose():
        with Dispatch(): found = func.decompose(*args, **kwargs)
        if found is not NotImplemented: return found
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim()]
    if away and here and not (func in COPIES or func in INDEXING and isinstance(args[0], Elsewhere)):
        raise RuntimeError(f"{func} got tensors on {NAME} and on the CPU")
    target = torch.device(kwargs.get("device") or (NAME if away else "cpu")).type
    changed = kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {}) | ({"pin_memory": False}
        if kwargs.get("pin_memory") else {})
    args_here, kwargs_here = tree_map_only(Elsewhere, lambda x: x.inner, (args, changed))
    result = func(*args_here, **kwargs_here)
    if func is aten.copy_.default: return args[0]
    if target == "cpu" or not isinstance(result, (torch.Tensor, tuple, list)): return result
    result = tree_map_only(torch.Tensor, Elsewhere, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if away else result


class Backend(backend_registration._DummyBackendModule):
    "What torch asks of a device's module; random numbers come from the CPU."
    def get_amp_supported_dtype(self): return [torch.bfloat16]
    def get_rng_state(self, device=None): return torch.zeros(1, dtype=torch.uint8)
    def set_rng_state(self, state, device=None): pass


def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def copy_(target, source, non_blocking=False):
    "Constants that torch makes inside of an operation come this way."
    compute(aten.copy_.default, (target, source), {})
    return target


backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
library = torch.library.Library("aten", "IMPL", "PrivateUse1")
library.impl("empty_strided", empty_strided)
library.impl("copy_", copy_)


@contextlib.contextmanager
def elsewhere():
    "Torch knows the device inside."
    with Dispatch(): yield torch.device(NAME, 0)
