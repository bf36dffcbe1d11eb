# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of `evolution_triton` for GPUs, without one, and says what each of them takes.

    python tests/compile_triton_kernels.py

Instead of running, the kernels are compiled for what they are called with. Fails where one does not compile, where it takes
more shared memory than a program may have, or where more than a few bytes of a thread's registers go to memory.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ea_hf.models import evolution_triton, triton_launches
from ea_hf.models.evolution_blocks import Layer


KERNELS = ("mix", "convolve", "sum_kernel_gradient", "attend", "attend_backward", "sum_value_gradient")
# A100 and H100, with the shared memory that a program may have there, in bytes.
GPUS = {80: 163 * 1024, 90: 227 * 1024}
MOST_SPILLED_BYTES = 256


class GPU:
    """What Triton's launcher asks a driver."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def is_active(self) -> bool:
        return True


class Compiler:
    """Stands for a kernel, and compiles it for what it is called with, as a launch would, but does not run it."""

    def __init__(self, kernel: Any, compiled: dict[str, tuple]):
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple) -> Any:
        def call(*args: Any, **constants: Any) -> None:
            result = self.kernel.run(*args, grid=grid, warmup=True, **constants)
            self.compiled[result.hash] = (self.kernel.__name__, args[0].dtype, constants, result)

        return call


def run_a_layer(
    dtype: torch.dtype,
    heads: int,
    head_dim: int,
    kernel: tuple[int, int] = (3, 3),
    mixing: str = "convex",
    groups: int = 1,
    length: int = 70,
    is_masked: bool = True,
    dropout: float = 0.1,
) -> None:
    """Training and inference."""

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    maps = zeros(2, heads, length, length)
    mask = torch.ones(2, 1, length, length, dtype=torch.bool) if is_masked else None
    masks = (mask, None if mask is None else ~mask)
    gates = [zeros(heads, 1, 1) if mixing == "learned" else None for _ in range(2)]
    weight = zeros(heads, heads // groups, *kernel, dtype=torch.float32)
    layer = Layer(0.1, 0.1, 0.1, *kernel, False, mixing, groups)
    states = [zeros(2, heads, length, head_dim) for _ in range(3)]
    parameters = (weight, zeros(heads, dtype=torch.float32), *gates)
    output, evolved, *_ = evolution_triton.attention(*states, maps, None, *masks, *parameters, *layer, dropout, False)
    output.sum().backward(retain_graph=True)
    evolved.sum().backward()
    with torch.no_grad():
        evolution_triton.attention_(*states, maps.detach(), None, *masks, *parameters, *layer)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes that it puts into memory for want of them."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [program, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="more heads, features and types than the tests compile")
    args = parser.parse_args()
    compiled: dict[str, tuple] = {}
    for name in KERNELS:
        setattr(triton_launches, name, Compiler(getattr(triton_launches, name), compiled))
    shapes = [(12, 64), (32, 128)] + [(8, 32), (64, 64), (16, 256)] * args.all
    faults = 0
    print("sm  kernel                type      registers  spilled  shared  constants")
    for capability, most_shared in GPUS.items():
        driver.set_active(GPU(capability))
        compiled.clear()
        for dtype in (torch.bfloat16, torch.float32, *[torch.float16] * args.all):
            for heads, head_dim in shapes:
                run_a_layer(dtype, heads, head_dim)
        run_a_layer(torch.bfloat16, 12, 64, is_masked=False, dropout=0.0)
        run_a_layer(torch.bfloat16, 1, 8, length=1)
        run_a_layer(torch.bfloat16, 64, 64)
        run_a_layer(torch.bfloat16, 12, 64, length=1024)
        run_a_layer(torch.bfloat16, 12, 64, (5, 11), "learned")
        run_a_layer(torch.bfloat16, 12, 64, mixing="additive", groups=12)
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        run_a_layer(torch.float32, 12, 64)
        torch.backends.cuda.matmul.fp32_precision = "none"
        for name, dtype, constants, result in compiled.values():
            registers, spilled = resources(result.asm["cubin"])
            is_fault = spilled > MOST_SPILLED_BYTES or result.metadata.shared > most_shared
            faults += is_fault
            names = (
                "PURPOSE",
                "IS_GROUPED",
                "HEADS",
                "HEAD_DIM",
                "ROWS",
                "COLUMNS",
                "ROWS_AT_ONCE",
                "COLUMNS_AT_ONCE",
                "KEEPS_WEIGHTS",
                "PRECISION",
                "num_warps",
            )
            values = " ".join(f"{name}={constants[name]}" for name in names if name in constants)
            print(
                f"{capability}  {name:20}  {str(dtype)[6:]:8}  {registers:9}  {spilled:7}  {result.metadata.shared:6}  "
                f"{values}{'  <- too much' if is_fault else ''}"
            )
        print(f"{len(compiled)} kernels compiled for compute capability {capability / 10}.")
    if faults:
        raise SystemExit(f"{faults} of them take too much.")


if __name__ == "__main__":
    main()
