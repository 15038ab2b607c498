"""What lies between a step's large products on CPUs that multiply bf16, compiled from cpu_kernels.c where a job runs.

PyTorch's own operations pass over memory one by one, and between the products of a small model such passes take as long
as the products. All that happens here is computed in fp32 and rounded once. Without gcc, or on another processor, the
callers go on with PyTorch's operations; `suits` says which way a tensor goes.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cpu_kernels.c")
NEEDED = "avx512_bf16"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
LANES = 16  # numbers that the processor computes at once: what a width must be a multiple of
# Of each function: pointers, longs and floats as they come; the number of threads ends each.
SIGNATURES = {
    "rms_norm": "pppp ll f",
    "rms_norm_backward": "ppppp ll",
    "rotate": "pll ppp lll f",
    "attend": "pll pll pll ppp llllll f",
    "attend_backward": "pll pll pll ppp pppp llllll f",
    "swiglu": "pppppp lll",
    "swiglu_backward": "pppppppppp lll",
    "exponentiate": "ppp ll",
}
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float}


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: bf16 on a CPU that multiplies it, of a width that fills its lanes."""
    return (
        all(
            tensor.dtype == torch.bfloat16
            and tensor.device.type == "cpu"
            and tensor.shape[-1] % LANES == 0
            and tensor.stride(-1) == 1
            for tensor in tensors
        )
        and _library() is not None
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels, made at the first call; None where they cannot be, which a job's log says."""
    processor = _processor()
    if NEEDED not in processor.split():
        return None
    compiler = shutil.which("gcc")
    if compiler is None:
        print("no gcc on this machine: what lies between matrix products takes PyTorch's slower way", flush=True)
        return None
    try:
        return _loaded(_compiled(compiler, processor))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        print(f"{SOURCE.name} cannot be compiled, PyTorch's slower way is taken: {reason}", flush=True)
        return None


def _processor() -> str:
    """What this processor can do, in the system's words; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


def _compiled(compiler: str, processor: str) -> Path:
    """The shared library, from this user's cache where it is known for this source, compiler and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    known = hashlib.sha256("\n".join([SOURCE.read_text(), *FLAGS, version, processor]).encode()).hexdigest()
    path = _folder() / f"{known[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(path)  # another job may make the same
    return path


def _folder() -> Path:
    """Where compiled kernels are kept: only this user may write there, for what lies there is run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmtuner" / "kernels"
    with contextlib.suppress(OSError):  # a home that is full, missing or only read
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = cache.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(cache, os.W_OK):
            return cache
    own = tempfile.mkdtemp(prefix="llmtuner-kernels-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _loaded(path: Path) -> ctypes.CDLL:
    # OpenMP's functions are those of PyTorch's own copy, which its import made known to all: one pool of threads.
    library = ctypes.CDLL(str(path))
    for name, signature in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [*(TYPES[kind] for kind in signature.replace(" ", "")), ctypes.c_int]
        function.restype = None
    return library


def _call(name: str, *values: Tensor | float) -> None:
    function = getattr(_library(), name)
    function(*[value.data_ptr() if isinstance(value, Tensor) else value for value in values], torch.get_num_threads())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x / sqrt(mean(x^2) + eps) * weight over the last axis, what each row was multiplied by)."""
    x = x.contiguous()
    y, factors = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
    _call("rms_norm", x, weight, y, factors, factors.numel(), x.shape[-1], eps)
    return y, factors


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """The gradient of x."""
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    _call("rms_norm_backward", dy, x, weight, factors, dx, factors.numel(), x.shape[-1])
    return dx


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, direction: float) -> Tensor:
    """Numbers i and i + size / 2 of each head turned by their place's angle.

    x is (1, heads, tokens, size), cosines and sines (tokens, size). The result lies in memory token by token.
    """
    _, heads, tokens, size = x.shape
    y = x.new_empty(1, tokens, heads, size)
    sizes = (tokens, heads, size, direction)
    _call("rotate", x, x.stride(2), x.stride(1), cosines.contiguous(), sines.contiguous(), y, *sizes)
    return y.transpose(1, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, ends: Sequence[int], shared: int
) -> tuple[Tensor, Tensor]:
    """(what the queries find, tokens first; the logarithm of what their weights were divided by).

    As cpu_attention.attend; `ends` are those of the documents, the first of which is the shared prefix if there is one.
    """
    _, heads, tokens, size = query.shape
    output, logs = query.new_empty(1, tokens, heads, size), torch.empty(heads, tokens)
    _call("attend", *_strided(query, key, value), output, logs, *_sizes(query, key, ends, shared), scale)
    return output, logs


def attend_backward(
    d_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logs: Tensor,
    scale: float,
    ends: Sequence[int],
    shared: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value; they lie in memory token by token."""
    made = [each.new_empty(each.transpose(1, 2).shape) for each in (query, key, value)]
    known = (output, logs, d_output.contiguous())
    _call("attend_backward", *_strided(query, key, value), *known, *made, *_sizes(query, key, ends, shared), scale)
    d_query, d_key, d_value = (each.transpose(1, 2) for each in made)
    return d_query, d_key, d_value


def _strided(*tensors: Tensor) -> list[Tensor | int]:
    return [part for each in tensors for part in (each, each.stride(2), each.stride(1))]


def _sizes(query: Tensor, key: Tensor, ends: Sequence[int], shared: int) -> list[Tensor | int]:
    _, heads, tokens, size = query.shape
    return [torch.tensor(ends), len(ends), shared, heads, key.shape[1], size, tokens]


def swiglu(g: Tensor, u: Tensor, lows: Tensor, b_gate: Tensor, b_up: Tensor) -> Tensor:
    """As swiglu_kernels.swiglu."""
    inner = torch.empty_like(g)
    _call("swiglu", g, u, lows, b_gate, b_up, inner, *g.shape, b_gate.shape[1])
    return inner


def swiglu_backward(
    d_inner: Tensor, g: Tensor, u: Tensor, lows: Tensor, b_gate: Tensor, b_up: Tensor, d_low: Tensor, a_down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As swiglu_kernels.swiglu_backward."""
    dg, du = torch.empty_like(g), torch.empty_like(u)
    _call("swiglu_backward", g, u, lows, b_gate, b_up, d_low, a_down, d_inner, dg, du, *g.shape, b_gate.shape[1])
    return d_inner, dg, du


def exponentiate(tile: Tensor, largest: Tensor, sums: Tensor) -> None:
    """exp(tile) over tile (tokens, labels), its sums over the tokens added to `sums`, what is larger put in `largest`."""
    _call("exponentiate", tile, largest, sums, *tile.shape)
