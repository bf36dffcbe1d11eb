# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `ea-hf plan` prints for reading: its tables, and a verdict."""

from typing import Any


# Of a device's memory: what the allocator, the kernels' workspaces and the context take.
RESERVED_SHARE = 0.1
GB, MB = 2**30, 2**20
# The launch file of each way to share the work, the simplest first, and what a mode and a precision are called there.
LAUNCH_FILES = {"one device": "configs/one_gpu.yaml", "ddp": "configs/ddp.yaml", "fsdp2": "configs/fsdp2.yaml"}
MODE_ARGUMENTS = {
    "default": "",
    "memory-efficient": " --ea_memory_efficient",
    "gradient checkpointing": " --gradient_checkpointing",
}
PRECISION_ARGUMENTS = {"fp32": " --mixed_precision no", "bf16": " --mixed_precision bf16"}


def verdict(figures: dict[str, Any], memories: list[float]) -> list[str]:
    """Whether the batch fits, on how little, and how to launch it: a line for each memory, in GB, and each length.

    Of what fits, the fewest devices are named, then the simplest way to share, then the mode and precision planned first.
    """
    rows, lines = figures["devices"], []
    order = list(LAUNCH_FILES)
    for length in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in rows if row["length"] == length]
        what = f"{figures['batch_size']} examples of length {length} a device"
        least = min(own, key=lambda row: row["bytes_per_device"])
        needed = least["bytes_per_device"] / (1 - RESERVED_SHARE) / GB
        if not memories:
            lines.append(
                f"Verdict: {what} need {needed:.1f} GB of memory at least, with {_way(least)}. --memory GB tells if they fit."
            )
        for memory in memories:
            room = memory * GB * (1 - RESERVED_SHARE)
            fitting = [row for row in own if row["bytes_per_device"] <= room]
            if fitting:
                best = min(fitting, key=lambda row: (row["devices"], order.index(row["sharding"])))
                lines.append(f"Verdict: {what} fit into {memory:g} GB, with {_way(best)}.")
            else:
                lines.append(
                    f"Verdict: {what} do not fit into {memory:g} GB; {needed:.1f} GB are needed at least, with {_way(least)}. "
                    "Lower --batch_size or --length, or plan more --devices."
                )
    return lines


def _way(row: dict[str, Any]) -> str:
    devices = row["devices"]
    arguments = PRECISION_ARGUMENTS[row["precision"]], MODE_ARGUMENTS[row["mode"]]
    return (
        f"{devices} device{'s' * (devices > 1)}, {LAUNCH_FILES[row['sharding']]}"
        f"{f' (--num_processes {devices})' * (devices > 1)} and{''.join(arguments)}"
    )


def format_plan(figures: dict[str, Any]) -> str:
    """The tables for reading."""
    model, batch_size = figures["model"], figures["batch_size"]
    lines = [
        f"{model['name']}: {model['parameters']:,} parameters, {model['evolution_parameters']:,} of them in the "
        "convolutions over maps",
        f"weights {_mb(model['weight_bytes'])} MB, gradients {_mb(model['weight_bytes'])} MB, {model['optim']} "
        f"{_mb(model['optimizer_bytes'])} MB",
        "",
        f"A step of {batch_size} examples on one device; total: with weights, gradients and optimizer states",
    ]
    header = ("length", "precision", "mode", "forward GFLOP", "training GFLOP", "maps MB", "saved MB", "peak MB")
    rows = [
        (
            *(str(row[name]) for name in ("length", "precision", "mode")),
            *(f"{row[name] / 1e9:,.1f}" for name in ("forward_flops", "training_flops")),
            *(_mb(row[name]) for name in ("map_bytes", "saved_bytes", "peak_bytes", "total_bytes")),
        )
        for row in figures["steps"]
    ]
    lines += [_format_table((*header, "total MB"), rows), "", f"Devices, each with {batch_size} examples"]
    memories = [name for name in figures["devices"][0] if name.startswith("largest_batch_of_")]
    speeds = [
        name for name in ("seconds_per_step", "examples_per_second", "efficiency") if name in figures["devices"][0]
    ]
    header = ("length", "precision", "mode", "devices", "sharding", "MB each", "sent MB each")
    labels = (f"largest batch in {name.removeprefix('largest_batch_of_').replace('_', ' ')}" for name in memories)
    rows = [
        (
            *(str(row[name]) for name in ("length", "precision", "mode", "devices", "sharding")),
            *(_mb(row[name]) for name in ("bytes_per_device", "sent_bytes_per_step")),
            *(f"{row[name]:.3g}" for name in speeds),
            *(str(row[name]) for name in memories),
        )
        for row in figures["devices"]
    ]
    lines += [_format_table((*header, *(name.replace("_", " ") for name in speeds), *labels), rows), ""]
    return "\n".join(lines)


def _mb(value: int) -> str:
    return f"{value / MB:,.0f}"


def _format_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(cells[column]) for cells in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in (header, *rows)
    )
