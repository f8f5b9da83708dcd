"""What the tests share that compile for real GPUs in a process of their own: launches recorded, and what each compiles
to, printed."""

import importlib
import json
import re

from test_compile import compile_launch


class Launches(list):
    """(label, kernel, plan, arguments) of every launch from now on, as the operations of these names make it on `arch`;
    they take tensors of the CPU.

    Attributes:
        label: of those to come.
    """

    def __init__(self, arch, *names):
        super().__init__()
        from radar_kernels import _launch

        self.label = ""
        _launch.interpreting = lambda: True  # lets CPU tensors through
        for name in names:
            importlib.import_module(f"radar_kernels.{name}").architecture = lambda device: arch
        _launch.Plan.launch = lambda plan, kernel, *arguments: self.append((self.label, kernel, plan, arguments))


def print_compiled(launches, arch, more=lambda ptx: {}):
    """A line of JSON for each: `compile_launch`'s result; `pdl`, whether it waits for the launch in front; `early
    loads` from memory before that; and what `more` says of the PTX."""
    for label, kernel, plan, arguments in launches:
        result = compile_launch(kernel, plan, arguments, arch)
        ptx = result.pop("ptx")
        before, waits, _ = ptx.partition("griddepcontrol.wait")
        result |= {"pdl": bool(waits), "early loads": len(re.findall(r"\bld\.global", before)) if waits else 0}
        case = {"case": label, "kernel": kernel.fn.__name__, **plan.constants, **plan.options}
        print(json.dumps({**case, **result, **more(ptx)}), flush=True)
