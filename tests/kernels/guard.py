"""In Triton's interpreter, a kernel that touches what lies behind one of its arguments dies.

The arguments' memory is copied to where it ends in front of a page that may not be touched, and back after the launch:
what compute-sanitizer finds on a card, a test run without one finds too. (What lies in front of them is not guarded.)
"""

import ctypes
import mmap

import torch

from radar_kernels._launch import Plan

PAGE = mmap.PAGESIZE
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_launch = Plan.launch


class Guarded:
    """A copy of a tensor's whole storage, for every tensor that shares it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.source, self.size = storage.data_ptr(), storage.nbytes()
        pages = -(-self.size // PAGE)
        self.area = mmap.mmap(-1, (pages + 1) * PAGE)
        self.start = pages * PAGE - self.size
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        if _protect(ctypes.c_void_p(base + pages * PAGE), PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
        self.address = base + self.start
        ctypes.memmove(self.address, self.source, self.size)

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        flat = torch.frombuffer(
            self.area, dtype=tensor.dtype, count=self.size // tensor.element_size(), offset=self.start
        )
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def copy_back(self) -> None:
        ctypes.memmove(self.source, self.address, self.size)


def guarded_launch(plan: Plan, kernel, *arguments) -> None:
    copies: dict[int, Guarded] = {}

    def guard(argument):
        if not isinstance(argument, torch.Tensor) or argument.is_cuda or not argument.untyped_storage().nbytes():
            return argument
        place = argument.untyped_storage().data_ptr()
        if place not in copies:
            copies[place] = Guarded(argument)
        return copies[place].view(argument)

    _launch(plan, kernel, *map(guard, arguments))
    for copy in copies.values():
        copy.copy_back()
