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
from triton.compiler import ASTSource

from ea_hf.models import evolution_triton
from ea_hf.models.evolution_blocks import Layer


KERNELS = ("convolve", "sum_kernel_gradient", "attend", "attend_backward", "sum_value_gradient")
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int64: "i64",
}
# A100 and H100, with the shared memory that a program may have there, in bytes.
GPUS = {80: 163 * 1024, 90: 227 * 1024}
MOST_SPILLED_BYTES = 256


class Recorder:
    """Stands for a kernel, and notes what it is called with."""

    def __init__(self, kernel: Any, calls: dict):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: tuple) -> Any:
        def call(*args: Any, num_warps: int, **constants: Any) -> None:
            signature, constexprs = {}, {}
            for name, value in {**dict(zip(self.kernel.arg_names, args, strict=False)), **constants}.items():
                if isinstance(value, torch.Tensor):
                    signature[name] = f"*{TYPES[value.dtype]}"
                elif name.isupper() or value is None:
                    signature[name], constexprs[name] = "constexpr", value
                else:
                    signature[name] = "i32"
            key = (self.kernel.__name__, *signature.items(), *constexprs.items(), num_warps)
            self.calls[key] = (self.kernel, signature, constexprs, num_warps)

        return call


def run_a_layer(
    dtype: torch.dtype, heads: int, head_dim: int, kernel: tuple[int, int], mixing: str, groups: int
) -> None:
    def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    queries = 70
    maps = random(2, heads, queries, queries)
    mask = torch.ones(2, 1, queries, queries, dtype=torch.bool)
    gates = [random(heads, 1, 1) if mixing == "learned" else None for _ in range(2)]
    weight = random(heads, heads // groups, *kernel, dtype=torch.float32)
    layer = Layer(0.1, 0.1, 0.1, *kernel, False, mixing, groups)
    states = [random(2, heads, queries, head_dim) for _ in range(3)]
    bias = random(heads, dtype=torch.float32)
    output, evolved, *_ = evolution_triton.attention(
        *states, maps, None, mask, ~mask, weight, bias, *gates, *layer, 0.1, False
    )
    (output.sum() + evolved.sum()).backward()


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
    calls: dict[tuple, tuple] = {}
    for name in KERNELS:
        setattr(evolution_triton, name, Recorder(getattr(evolution_triton, name), calls))
    shapes = [(12, 64), (32, 128)] + [(8, 32), (64, 64), (16, 256)] * args.all
    for dtype in (torch.bfloat16, torch.float32, *[torch.float16] * args.all):
        for heads, head_dim in shapes:
            run_a_layer(dtype, heads, head_dim, (3, 3), "convex", 1)
    run_a_layer(torch.bfloat16, 128, 64, (3, 3), "convex", 1)
    run_a_layer(torch.bfloat16, 12, 64, (5, 11), "learned", 1)
    run_a_layer(torch.bfloat16, 12, 64, (3, 3), "additive", 12)
    faults = 0
    print("sm  kernel                type  registers  spilled  shared  constants")
    for kernel, signature, constexprs, warps in calls.values():
        constants = {(kernel.arg_names.index(name),): value for name, value in constexprs.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        for gpu, most_shared in GPUS.items():
            compiled = triton.compile(source, target=GPUTarget("cuda", gpu, 32), options={"num_warps": warps})
            registers, spilled = resources(compiled.asm["cubin"])
            is_fault = spilled > MOST_SPILLED_BYTES or compiled.metadata.shared > most_shared
            faults += is_fault
            names = ("PURPOSE", "IS_GROUPED", "HEADS", "HEAD_DIM", "ROWS", "COLUMNS", "CELLS")
            told = " ".join(f"{name}={constexprs[name]}" for name in names if name in constexprs)
            print(
                f"{gpu}  {kernel.__name__:20}  {next(iter(signature.values()))[1:]:4}  {registers:9}  {spilled:7}  "
                f"{compiled.metadata.shared:6}  {told} warps={warps}{'  <- too much' if is_fault else ''}"
            )
    print(f"{len(calls)} kernels compiled for {len(GPUS)} GPUs.")
    if faults:
        raise SystemExit(f"{faults} of them take too much.")


if __name__ == "__main__":
    main()
