# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of EA-BERT beside Transformers' BERT with eager and sdpa attention, in one run.

    python benchmarks/attention.py                    # beside sdpa, which is what Transformers takes by itself
    python benchmarks/attention.py --base eager       # the table of docs/speed_beside_eager.md, on one thread
    python benchmarks/attention.py --implementations "sdpa, compiled" "evolving, compiled" --base "sdpa, compiled"
    python benchmarks/attention.py --implementations evolving "evolving, learned" --base evolving
    python benchmarks/attention.py --device cuda --dtype bfloat16 --seconds 2 --cuda_graphs
    python benchmarks/attention.py --scaling          # how time and memory grow with length, heads and layers
    python benchmarks/speed_report.py                 # docs/speed.md, from the figures of the first

Time: of the clock, and of the process on the CPU, which a busy machine disturbs less. Runs are interleaved, so that a
change of the machine's speed meets all implementations; medians, and ratios to the base of the same round, with an interval
for their median. With --dtype bfloat16 weights are bfloat16 in inference, and training runs under autocast. Peak memory: of one inference or training step, beyond what the process held before it, in a fresh process.
Saved bytes: distinct storages that autograd keeps for the backward pass, without parameters. Weights are random.
"""

import argparse
import functools
import itertools
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertModel

from ea_hf import EABertConfig, EABertModel


MODELS = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
}
DEFAULT_IMPLEMENTATIONS = ("eager", "sdpa", "evolving", "evolving, memory-saving")
# Fields of the evolving ones. The gates of "learned" start where they may be after some steps: at 0 a model is vanilla.
EVOLVING = {
    "evolving": {},
    "evolving, memory-saving": {"ea_memory_efficient": True},
    "evolving, Triton": {"ea_kernels": "triton"},
    "evolving, learned": {"ea_mixing": "learned", "ea_residual_weight": 0.1, "ea_conv_weight": 0.1},
}
COMPILED = ", compiled"
UNCOMPILED = ("eager", "sdpa", *EVOLVING)
IMPLEMENTATIONS = (*UNCOMPILED, *(name + COMPILED for name in UNCOMPILED))
MODES = ("inference", "training")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build(implementation: str, fields: dict, mode: str, args: argparse.Namespace) -> torch.nn.Module:
    dropout = args.dropout
    is_compiled, implementation = implementation.endswith(COMPILED), implementation.removesuffix(COMPILED)
    fields = {
        **fields,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    }
    if implementation in EVOLVING:
        model = EABertModel(EABertConfig(**fields, **EVOLVING[implementation]), add_pooling_layer=False)
    else:
        model = BertModel(BertConfig(**fields, attn_implementation=implementation), add_pooling_layer=False)
    model = model.to(args.device).train(mode == "training")
    if mode == "inference":
        model = model.to(DTYPES[args.dtype])
    return torch.compile(model) if is_compiled else model


def make_inputs(batch: int, length: int, device: str, padding: bool) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(input_ids)
    if padding:
        mask[0, length // 2 :] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


def forward_in_training(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: str) -> torch.Tensor:
    with torch.autocast(next(iter(inputs.values())).device.type, DTYPES[dtype], enabled=dtype != "float32"):
        return model(**inputs).last_hidden_state


def step(model: torch.nn.Module, inputs: dict[str, torch.Tensor], mode: str, dtype: str) -> None:
    if mode == "inference":
        with torch.no_grad():
            model(**inputs)
    else:
        forward_in_training(model, inputs, dtype).sum().backward()
        model.zero_grad()


def time_step(run: Callable[[], None], device: str) -> float:
    """Seconds."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """The kernels of a step in one launch, which takes none of the time that Python needs to launch them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def compare_times(
    models: dict[str, torch.nn.Module], inputs: dict, mode: str, args: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each implementation by rounds, of the clock and of the process on the CPU.

    Short steps are repeated for `--seconds`, as they vary most.
    """
    times: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in models}
    runs = {name: functools.partial(step, model, inputs, mode, args.dtype) for name, model in models.items()}
    if args.cuda_graphs:
        runs = {name: captured(run) for name, run in runs.items()}
    measured, rounds = 0.0, 0
    while rounds <= args.repeats or measured < args.seconds:
        for name, run in runs.items():
            cpu_start = time.process_time()
            seconds = time_step(run, args.device)
            if rounds > 0:  # the first round warms up
                times[name]["seconds"].append(seconds)
                times[name]["cpu_seconds"].append(time.process_time() - cpu_start)
                measured += seconds
        rounds += 1
    return times


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median, from the order of the values alone; all of them where there are too few for one."""
    ordered, count, skipped = sorted(values), len(values), 0
    # The chance that the median is beyond the interval if one more value were left out at each end.
    while 2 * sum(math.comb(count, number) for number in range(skipped + 2)) / 2**count <= 1 - confidence:
        skipped += 1
    return ordered[skipped], ordered[-1 - skipped]


def summarize(times: dict[str, list[float]], base: dict[str, list[float]] | None) -> dict[str, Any]:
    """Medians, and how they compare with the base, round by round."""
    row: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    row["rounds"] = len(times["seconds"])
    for name, values in times.items() if base is not None else ():
        ratios = [own / other for own, other in zip(values, base[name], strict=True)]
        row[f"{name}_to_base"] = statistics.median(ratios)
        row[f"{name}_to_base_interval"] = median_interval(ratios)
    return row


def saved_bytes(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: str) -> int:
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward_in_training(model, inputs, dtype)
    return sum(storage.nbytes() for storage in storages.values())


def peak_bytes(model: torch.nn.Module, inputs: dict[str, torch.Tensor], mode: str, args: argparse.Namespace) -> int:
    """Of one step after a warm-up on a short input, beyond what was held before."""
    step(model, {name: tensor[:1, :8] for name, tensor in inputs.items()}, mode, args.dtype)
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, inputs, mode, args.dtype)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = memory_status("VmRSS")
    step(model, inputs, mode, args.dtype)
    return memory_status("VmHWM") - before


def memory_status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; peak memory on the CPU can be measured on Linux only.")


def peak_in_fresh_process(args: argparse.Namespace, implementation: str, fields: dict, mode: str, shape: str) -> int:
    request = {"implementation": implementation, "fields": fields, "mode": mode, "shape": shape}
    command = [sys.executable, __file__, "--peak_of", json.dumps(request), "--threads", str(args.threads)]
    command += [
        "--device",
        args.device,
        "--dtype",
        args.dtype,
        "--dropout",
        str(args.dropout),
        *(["--padding"] if args.padding else []),
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(args: argparse.Namespace, name: str, fields: dict, shape: str, mode: str, with_memory: bool) -> list[dict]:
    """A row per implementation."""
    batch, length = parse_shape(shape)
    inputs = make_inputs(batch, length, args.device, args.padding)
    if args.cuda_graphs:
        del inputs["attention_mask"]  # Transformers and `ea_hf` look into it, which no graph can
    names = [n for n in args.implementations if mode == "training" or n != "evolving, memory-saving"]
    models = {n: build(n, fields, mode, args) for n in names}
    times = compare_times(models, inputs, mode, args)
    rows = []
    for implementation, model in models.items():
        row = {"model": name, "shape": shape, "mode": mode, "implementation": implementation, "base": args.base}
        row |= summarize(times[implementation], times.get(args.base))
        if with_memory and not implementation.endswith(COMPILED):
            if args.device == "cpu":
                row["peak_bytes"] = peak_in_fresh_process(args, implementation, fields, mode, shape)
            else:  # PyTorch's allocator counts itself
                row["peak_bytes"] = peak_bytes(model, inputs, mode, args)
            if mode == "training":
                row["saved_bytes"] = saved_bytes(model, inputs, args.dtype)
        rows.append(row)
    base = next((row for row in rows if row["implementation"] == args.base), {})
    for row in rows:
        for figure in ("peak_bytes", "saved_bytes"):
            if figure in row and figure in base:
                row[f"{figure}_to_base"] = row[figure] / base[figure]
    return rows


def parse_shape(shape: str) -> tuple[int, int]:
    batch, _, length = shape.partition("x")
    if not (batch.isdigit() and length.isdigit()):
        raise argparse.ArgumentTypeError(f"{shape!r} is not BATCHxLENGTH, such as 8x128")
    return int(batch), int(length)


def environment(args: argparse.Namespace) -> dict[str, str | int]:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    device = cpu if args.device == "cpu" else torch.cuda.get_device_name()
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    return {
        "device": device,
        "kind of device": args.device,
        "threads": args.threads,
        "dtype": args.dtype,
        "versions": versions,
        "dropout": args.dropout,
        "load of the machine": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs",
        "command": shlex.join(["python", *sys.argv]),
    }


def format_table(rows: list[dict], device: str) -> str:
    base = rows[0]["base"]
    clock = "seconds" if device != "cpu" else "cpu_seconds"  # the kernels of an accelerator take no time of the CPU
    headers = ["", "implementation", "ms", "CPU ms", f"{'CPU ' if device == 'cpu' else ''}to {base}", "interval"]
    headers += ["peak MB", f"to {base}", "saved MB", f"to {base}"]
    lines = []
    for row in rows:
        cells = [f"{row['model']} {row['shape']} {row['mode']}", row["implementation"]]
        cells += [f"{row[name] * 1000:.{0 if row[name] > 0.1 else 2}f}" for name in ("seconds", "cpu_seconds")]
        cells.append(f"{row[f'{clock}_to_base']:.2f}" if f"{clock}_to_base" in row else "")
        interval = row.get(f"{clock}_to_base_interval")
        cells.append("" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}")
        for figure in ("peak_bytes", "saved_bytes"):
            cells.append(f"{row[figure] / 2**20:.0f}" if figure in row else "")
            cells.append(f"{row[f'{figure}_to_base']:.2f}" if f"{figure}_to_base" in row else "")
        lines.append(cells)
    measured = [any(cells) for cells in zip(*lines, strict=True)]
    lines = [headers, ["---"] * 2 + ["---:"] * 8, *lines]
    return "\n".join(f"| {' | '.join(itertools.compress(cells, measured))} |" for cells in lines)


def flop_ratio(fields: dict, length: int) -> float:
    """Multiply-adds of a layer with evolving attention, to those of a plain one: the limit for an implementation whose
    time is that of its multiply-adds. Eager attention spends more on memory traffic, so its ratio can be beaten."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    plain = length * (4 * width**2 + 2 * width * fields["intermediate_size"]) + 2 * length**2 * width
    layers = fields["num_hidden_layers"]
    return 1 + 9 * heads**2 * length**2 * (layers - 1) / layers / plain


def draw_comparison(rows: list[dict], path: Path, args: argparse.Namespace) -> None:
    """Bars of every figure as a ratio to the base."""
    plt = pyplot()
    panels = {"seconds_to_base": "time", "peak_bytes_to_base": "peak memory", "saved_bytes_to_base": "saved bytes"}
    groups = list(dict.fromkeys((row["model"], row["shape"], row["mode"]) for row in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 1 + 0.6 * len(groups)), sharey=True)
    height = 0.8 / len(args.implementations)
    for axis, (figure_name, label) in zip(axes, panels.items(), strict=True):
        for index, implementation in enumerate(args.implementations):
            bars = [
                (groups.index((row["model"], row["shape"], row["mode"])) + index * height, row[figure_name])
                for row in rows
                if row["implementation"] == implementation and figure_name in row
            ]
            if bars:  # a compiled step's memory is not measured
                axis.barh(*zip(*bars, strict=True), height=height, label=implementation)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel(f"{label}, ratio to {args.base}")
    axes[0].set_yticks([group + 0.3 for group in range(len(groups))], [" ".join(group) for group in groups])
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8)
    figure.suptitle(f"Whole models, batch x tokens: {describe(args)}")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def describe(args: argparse.Namespace) -> str:
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    return f"{environment(args)['device']}, {threads}, {args.dtype}, torch {torch.__version__}"


# Rows of the picture: mode, figure, label, its factor to the unit.
PANELS = (
    ("inference", "seconds_to_base", "inference: time, ratio to the base", 1),
    ("training", "seconds_to_base", "training step: time, ratio to the base", 1),
    ("inference", "peak_bytes", "inference: peak memory (MB)", 2**-20),
    ("training", "peak_bytes", "training step: peak memory (MB)", 2**-20),
)


def draw_scaling(rows: list[dict], sweeps: dict[str, list], path: Path, args: argparse.Namespace) -> None:
    """A column for each sweep; below each tick the time of the base, to which the ratios refer."""
    plt = pyplot()
    panels = [panel for panel in PANELS if panel[0] in args.modes]
    size = (5 * len(sweeps), 3.4 * len(panels))
    figure, axes = plt.subplots(len(panels), len(sweeps), figsize=size, sharey="row", squeeze=False)
    for column, (sweep, points) in enumerate(sweeps.items()):
        for axis, (mode, figure_name, label, factor) in zip(axes[:, column], panels, strict=True):
            selected = [row for row in rows if row["sweep"] == sweep and row["mode"] == mode]
            for implementation in args.implementations:
                values = [
                    (row["at"], row[figure_name] * factor)
                    for row in selected
                    if row["implementation"] == implementation and figure_name in row
                ]
                if values:
                    axis.plot(*zip(*values, strict=True), marker="o", label=implementation)
            ticks = {at: str(at) for at, _, _ in points}
            if figure_name == "seconds_to_base":
                limits = [(at, flop_ratio(fields, length)) for at, fields, length in points]
                axis.plot(*zip(*limits, strict=True), "k--", label="multiply-adds of evolving attention to eager's")
                for row in selected:
                    if row["implementation"] == args.base:
                        ticks[row["at"]] += f"\n{row['seconds'] * 1000:.0f} ms"
            else:
                axis.set_yscale("log")
            axis.set_xscale("log", base=2)
            axis.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
            axis.minorticks_off()
            axis.set_xlabel({"length": "sequence length (tokens)"}.get(sweep, f"number of {sweep}"))
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
    axes[min(1, len(panels) - 1), 0].legend(fontsize=8)
    description = "batch 1, 4 layers, 12 heads, 768 wide, 256 tokens, but for what the axis says"
    figure.suptitle(f"BERT: {description}\n{describe(args)}; below the ticks: {args.base}")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def scaling(args: argparse.Namespace) -> list[dict]:
    base = {**MODELS["base"], "num_hidden_layers": 4}
    sweeps = {
        "length": [(length, base, length) for length in (64, 128, 256, 512, 1024, 2048)],
        "heads": [(heads, {**base, "num_attention_heads": heads}, 256) for heads in (1, 2, 4, 8, 12, 24)],
        "layers": [(layers, {**base, "num_hidden_layers": layers}, 256) for layers in (2, 4, 8, 12)],
    }
    rows = []
    for sweep, points in sweeps.items():
        for at, fields, length in points:
            new = [
                {**row, "sweep": sweep, "at": at}
                for mode in args.modes
                for row in measure(args, sweep, fields, f"1x{length}", mode, with_memory=True)
            ]
            print(f"\n{sweep} {at}\n{format_table(new, args.device)}", flush=True)
            rows += new
    draw_scaling(rows, sweeps, args.output.with_suffix(".png"), args)
    return rows


def write_figures(path: Path, measured_on: dict[str, Any], rows: list[dict]) -> None:
    path.write_text(json.dumps({"environment": measured_on, "rows": rows}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", default=["8x128", "2x512"], help="BATCHxLENGTH.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=list(DEFAULT_IMPLEMENTATIONS))
    parser.add_argument("--base", choices=IMPLEMENTATIONS, default="sdpa", help="What ratios are to.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="Rounds at least.")
    parser.add_argument("--seconds", type=float, default=15.0, help="Rounds go on until they took as long together.")
    parser.add_argument("--dropout", type=float, default=0.1, help="In training.")
    parser.add_argument("--padding", action="store_true", help="Half of the first sequence is padding.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--cuda_graphs", action="store_true", help="Time replays of captured steps, without masks.")
    parser.add_argument("--scaling", action="store_true", help="Sweep length, heads and layers, and draw a picture.")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/attention.json"))
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu" and any("Triton" in name for name in args.implementations):
        parser.error("Triton's kernels run on GPUs; choose `--device cuda` or other `--implementations`.")
    if args.cuda_graphs and (args.device == "cpu" or args.padding):
        parser.error("`--cuda_graphs` is for `--device cuda`, and without `--padding`.")
    torch.set_num_threads(args.threads)
    if args.peak_of:
        request = json.loads(args.peak_of)
        model = build(request["implementation"], request["fields"], request["mode"], args)
        inputs = make_inputs(*parse_shape(request["shape"]), args.device, args.padding)
        print(peak_bytes(model, inputs, request["mode"], args))
        return
    measured_on = environment(args)
    print(", ".join(f"{name}: {value}" for name, value in measured_on.items()), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.scaling:
        rows = scaling(args)
    else:
        rows = []
        for name in args.models:
            for shape in args.shapes:
                for mode in args.modes:
                    rows += measure(args, name, MODELS[name], shape, mode, with_memory=True)
                    write_figures(args.output, measured_on, rows)  # what is measured is kept, whatever comes
        print(format_table(rows, args.device))
    write_figures(args.output, measured_on, rows)
    if not args.scaling and args.base in args.implementations:
        draw_comparison(rows, args.output.with_suffix(".png"), args)
    print(f"\nAll figures: {args.output}; picture: {args.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
