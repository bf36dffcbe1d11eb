# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step does on a GPU: time by kernels, launches, and how often it waits for the device, beside sdpa.

    python benchmarks/gpu_profile.py --dtype bfloat16 --models base --shapes 8x128 8x512

PyTorch's profiler, one step after three. The time of the device is the sum of its kernels' times, which is what a step takes
once launching them is no limit; the time of the clock is a median of ten steps that are not profiled.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from attention import DTYPES, IMPLEMENTATIONS, MODELS, MODES, build, environment, make_inputs, parse_shape, step
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def milliseconds(run: Callable[[], None], repeats: int = 10) -> float:
    """Of the clock, with the wait for the device."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def profiled(run: Callable[[], None]) -> tuple[Counter[str], Counter[str], int, int]:
    """Microseconds and calls of each kernel, launches, and waits for the device."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        run()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    launches, waits = 0, -1  # the last one is that above
    for event in recorded.events():
        if event.device_type == DeviceType.CUDA:
            if not event.name.startswith(("aten::", "ea_hf::")):  # ranges that contain kernels
                times[event.name] += event.time_range.elapsed_us()
                calls[event.name] += 1
        elif "ynchronize" in event.name:
            waits += 1
        elif "Launch" in event.name:
            launches += 1
    return times, calls, launches, waits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", default=["8x128", "8x512"], help="BATCHxLENGTH.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, default=["sdpa", "evolving", "evolving, Triton"]
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--kernels", type=int, default=16, help="How many to list, from the longest.")
    parser.set_defaults(device="cuda", dropout=0.1, threads=1)
    args = parser.parse_args()
    print(", ".join(f"{name}: {value}" for name, value in environment(args).items()), flush=True)
    for name in args.models:
        for shape in args.shapes:
            inputs = make_inputs(*parse_shape(shape), args.device, padding=False)
            for mode in args.modes:
                for implementation in args.implementations:
                    model = build(implementation, MODELS[name], mode, args)

                    def run(model: torch.nn.Module = model, mode: str = mode, inputs: dict = inputs) -> None:
                        step(model, inputs, mode, args.dtype)

                    for _ in range(3):
                        run()
                    clock = milliseconds(run)
                    times, calls, launches, waits = profiled(run)
                    print(
                        f"== {name} {shape} {mode} {implementation}: clock {clock:.2f} ms, device {times.total() / 1000:.2f} ms, "
                        f"{launches} launches, {waits} waits",
                        flush=True,
                    )
                    for kernel, time_of_kernel in times.most_common(args.kernels):
                        print(f"   {time_of_kernel / 1000:8.3f} ms {calls[kernel]:5d}  {kernel[:110]}")


if __name__ == "__main__":
    main()
