"""Kernels in C++ for decoding on a CPU, in `native.cpp`: few calls where torch takes many.

Nothing is built unasked: `build` does it, once per machine and version of torch, and keeps what it
made where torch keeps extensions. `select.kernels` finds them within `lent` alone, so that no other
model of the process computes otherwise than before. Each has a twin in plain torch that says what
it computes:

| function | twin |
|-|-|
| `linear(x, weight, scale, bias)` | `quant.linear_int8`; `F.linear` where `scale` is None |
| `experts(x, chosen, weights, matrices, scales, silu)` | `experts.by_loop` |
| `route(x, weight, bias, sigmoid, active, normalize, factor)` | those of `route`, one by one |
| `rms_norm(x, weight, eps)` | `norm.rms_norm_reference` |
| `rotate(x, cos, sin, width, half)` | `rope.rotate` |

All take float32 on a CPU and record no gradient.
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

LEFT = 600  # seconds after which nobody can still be building
SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = {  # what torch found the machine to have; anything else gets the compiler's default
    "AVX512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma".split(),
    "AVX2": "-mavx2 -mfma".split(),
}
_built: list[Any] = []  # the module, or None once building has failed


_lent = ContextVar("lent", default=False)


def built() -> Any:
    """The kernels, or None where they have not been built in this process."""
    return _built[0] if _built else None


def used() -> Any:
    """The kernels within `lent`, or None."""
    return built() if _lent.get() else None


@contextmanager
def lent(on: bool = True) -> Iterator[None]:
    """Let what runs within use the kernels that have been built."""
    before = _lent.set(on)
    try:
        yield
    finally:
        _lent.reset(before)


def build() -> bool:
    """Build the kernels, or load those that were built before; say so where it takes long.

    Returns:
        Whether they are there. Without a compiler one line on stderr tells it, once.
    """
    if _built:
        return _built[0] is not None
    _built.append(None)
    if platform.system() != "Linux" or not (shutil.which("c++") and shutil.which("ninja")):
        _tell("no kernels: they need Linux, a C++ compiler and ninja; plain torch runs instead")
        return False
    get_default_build_root, load = _extensions()
    level = torch.backends.cpu.get_cpu_capability()
    name = f"etude_native_{'_'.join(level.lower().split())}"
    places = list(Path(get_default_build_root()).glob(f"*/{name}"))
    for lock in (place / "lock" for place in places):
        # torch waits for it without end, also where its process was killed in the middle
        if lock.exists() and time.time() - lock.stat().st_mtime > LEFT:
            lock.unlink(missing_ok=True)
    if not any((place / f"{name}.so").exists() for place in places):
        _tell("building kernels for this CPU, once: about 20 seconds")
    flags = ["-O3", "-fopenmp", "-fno-math-errno", *FLAGS.get(level, ())]
    try:
        _built[0] = load(name, [str(SOURCE)], extra_cflags=flags, extra_ldflags=["-fopenmp"])
    except Exception as error:  # of the compiler, the linker or the disk
        last = (str(error).strip().splitlines() or ["no word"])[0]
        _tell(f"no kernels: building them failed ({last}); plain torch runs instead")
    return _built[0] is not None


def _extensions() -> tuple[Callable[[], str], Callable[..., Any]]:
    """Import torch's builder, also where other packages have been at Python's own distutils.

    setuptools, which it imports, puts its own in their place, and says by an assertion that it
    could not. Asked to leave them alone it needs not.
    """
    try:
        from torch.utils.cpp_extension import get_default_build_root, load
    except AssertionError:
        name = "SETUPTOOLS_USE_DISTUTILS"
        before = os.environ.get(name)
        os.environ[name] = "stdlib"
        try:
            from torch.utils.cpp_extension import get_default_build_root, load
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before
    return get_default_build_root, load


def _tell(line: str) -> None:
    print(f"etude: {line}", file=sys.stderr, flush=True)
