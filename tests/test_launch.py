# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The launch files of configs/: Accelerate reads them, they start what they say, and bad launches are told at once."""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from models import CASES
from tiny_bert import SCRIPT, arguments, run_script, sentences, write_checkpoint, write_rows

from ea_hf.training.launch import check_launch, configure_engine
from ea_hf.training.sharding import layer_classes


CONFIGS = Path(__file__).parents[1] / "configs"
LAUNCHERS = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
TYPES = {
    "one_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
    "cpu_processes": DistributedType.MULTI_GPU,
    "two_nodes": DistributedType.MULTI_GPU,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nobody has launched this."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") or name in LAUNCHERS]:
        monkeypatch.delenv(name)
    return monkeypatch


def gpus(monkeypatch, count, bf16=True):
    """Lets torch see so many devices."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# The files


def test_every_file_is_known():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == TYPES.keys()


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_a_file(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig) and config.distributed_type == TYPES[name]
    assert config.num_processes == {"one_gpu": 1, "two_nodes": 16}.get(name, 2)
    assert config.mixed_precision == ("no" if name in ("one_gpu", "cpu_processes") else "bf16")


def test_fsdp2_leaves_the_layers_to_the_model():
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2 and "fsdp_transformer_layer_cls_to_wrap" not in config
    for case in CASES:
        model = case.model()
        assert {*layer_classes(model)} <= {*model._no_split_modules}


def start(config, *words, **environment):
    program = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    return subprocess.Popen(
        [*program, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(*processes):
    """Statuses, and all that was printed."""
    printed = []
    try:
        for process in processes:
            printed.append(process.communicate(timeout=300)[0])
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "".join(printed)


def training(tmp_path, name, **options):
    return arguments(
        model_name_or_path=write_checkpoint(tmp_path / "model"),
        train_file=write_rows(tmp_path / "train.csv", sentences()),
        per_device_train_batch_size=4,
        max_train_steps=3,
        logging_steps=1,
        output_dir=tmp_path / name,
        **options,
    )


@pytest.mark.slow
def test_cpu_processes_starts_several(tmp_path):
    words = training(tmp_path, "output")
    statuses, printed = output_of(start("cpu_processes", "--main_process_port", "0", str(SCRIPT), *words))
    assert statuses == [0], printed
    assert "8 examples a step (4 x 1 accumulation steps x 2 processes), cpu" in printed


def losses(directory):
    state = json.loads((directory / "checkpoint-3/trainer_state.json").read_text())
    return [report["loss"] for report in state["log_history"]]


@pytest.mark.slow
def test_two_nodes(tmp_path):
    """Two launchers, or two agents of torchrun, on one machine train as one of two processes does."""
    port = str(free_port())
    words = training(tmp_path, "accelerate", mixed_precision="no")
    nodes = [
        start(
            "two_nodes",
            *("--num_processes", "2", "--machine_rank", rank, "--main_process_port", port, str(SCRIPT), *words),
            ACCELERATE_USE_CPU="true",
        )
        for rank in "01"
    ]
    statuses, printed = output_of(*nodes)
    assert statuses == [0, 0], printed
    assert "x 2 processes), cpu" in printed

    words = training(tmp_path, "torchrun")
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    agent += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    agents = [
        subprocess.Popen(
            [*agent, "--node_rank", rank, str(SCRIPT), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    statuses, printed = output_of(*agents)
    assert statuses == [0, 0], printed

    words = training(tmp_path, "one_node")
    status, printed = run_script(words, processes=2)
    assert status == 0, printed
    assert losses(tmp_path / "accelerate") == losses(tmp_path / "torchrun") == losses(tmp_path / "one_node")


def test_slurm_starts_a_launcher_on_each_node(tmp_path):
    """With stand-ins for SLURM's commands, and one for `accelerate` that prints its arguments."""
    for name, text in {
        # More names than a pipe holds, as a reader that closes it early ends the writer.
        "scontrol": "for node in $(seq 20000); do echo node$node; done",
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'echo "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    result = subprocess.run(
        [CONFIGS / "slurm.sh", "glue/run_glue.py", "--output_dir", "a b"],
        env={**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = (
        "launch --machine_rank {} --config_file configs/two_nodes.yaml --num_machines 2 --num_processes 8 "
        "--main_process_ip node1 --main_process_port 20007 glue/run_glue.py --output_dir a b"
    )
    assert result.stdout.splitlines() == [expected.format(0), expected.format(1)]


# Bad launches


@pytest.mark.slow
def test_several_processes_of_which_accelerate_starts_one(tmp_path):
    words = training(tmp_path, "output")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        str(SCRIPT),
        *words,
    ]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode != 0
    assert "has started only one" in result.stderr and "configs/cpu_processes.yaml" in result.stderr
    assert not (tmp_path / "output").exists()


ARGUMENTS = SimpleNamespace(mixed_precision=None)


@pytest.mark.parametrize("engine", ["FSDP", "DeepSpeed"])
def test_an_engine_without_a_device(engine, environment):
    environment.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    with pytest.raises(ValueError, match=f"asks for {engine}.*configs/cpu_processes.yaml"):
        check_launch(ARGUMENTS)


def test_gpus_that_are_not_there(environment):
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "RANK": "0", "LOCAL_RANK": "0"}.items():
        environment.setenv(name, value)
    environment.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="asks for 2 GPUs on this machine, which has none"):
        check_launch(ARGUMENTS)
    environment.setenv("CUDA_VISIBLE_DEVICES", "-1,-1")  # as configs/cpu_processes.yaml
    check_launch(ARGUMENTS)


def test_more_processes_than_devices(environment):
    gpus(environment, 2)
    environment.setenv("LOCAL_WORLD_SIZE", "2")
    check_launch(ARGUMENTS)
    environment.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes were started on this machine, but it has 2 devices"):
        check_launch(ARGUMENTS)


@pytest.mark.parametrize("by_argument", [True, False])
def test_precision_that_the_device_lacks(by_argument, environment):
    def check(precision):
        environment.setenv("ACCELERATE_MIXED_PRECISION", "no" if by_argument else precision)
        check_launch(SimpleNamespace(mixed_precision=precision if by_argument else None))

    check("bf16")
    with pytest.raises(ValueError, match="bf16 or no"):
        check("fp16")
    with pytest.raises(ValueError, match="'fp8'; choose one of no, fp16, bf16"):
        check("fp8")
    gpus(environment, 1, bf16=False)
    check("fp16")
    with pytest.raises(ValueError, match="bf16, which this cuda device lacks"):
        check("bf16")


def options(**values):
    return argparse.Namespace(
        **{
            "optim": "adamw_torch",
            "eval_only": False,
            "max_grad_norm": 0.5,
            "per_device_train_batch_size": 3,
            **values,
        }
    )


def deepspeed(stage=3, **values):
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True, **values.pop("zero", {})}
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero, **values})
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin))


def test_deepspeed_gets_what_the_arguments_say():
    accelerator = deepspeed(gradient_clipping="auto")
    configure_engine(accelerator, options())
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    assert config["gradient_clipping"] == 0.5 and config["train_micro_batch_size_per_gpu"] == 3


@pytest.mark.parametrize(
    ("accelerator", "arguments", "message"),
    [
        (deepspeed(2), {"optim": "adafactor"}, "ZeRO-2 cuts all parameters into vectors"),
        (deepspeed(3), {"optim": "adafactor"}, "ZeRO-3 cuts all parameters into vectors"),
        (deepspeed(3), {"eval_only": True}, "--eval_only starts no engine"),
        (deepspeed(3, zero={"stage3_gather_16bit_weights_on_model_save": False}), {}, "zero3_save_16bit_model"),
        (deepspeed(2, scheduler={}), {}, "section 'scheduler'"),
    ],
)
def test_what_deepspeed_cannot_do(accelerator, arguments, message):
    with pytest.raises(ValueError, match=message):
        configure_engine(accelerator, options(**arguments))


@pytest.mark.parametrize(
    ("plugin", "arguments", "message"),
    [
        ({"fsdp_version": 1}, {}, "fsdp_version is 1"),
        ({"activation_checkpointing": True}, {}, "pass --gradient_checkpointing"),
        ({}, {"optim": "adafactor"}, "needs whole matrices"),
    ],
)
def test_what_fsdp_cannot_do(plugin, arguments, message):
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **plugin})
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(ValueError, match=message):
        configure_engine(accelerator, options(**arguments))
