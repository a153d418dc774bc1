"""Start the worker processes of a run: on GPUs as Detectron2 does, on the CPU with gloo where there are none.

Detectron2 0.6 refuses several processes without CUDA; its main branch does not. Here both behave alike, and CPU
processes share the machine's cores instead of all using all of them. This module starts processes and nothing else:
devices and configs are :mod:`boxsup_d2.engine.defaults`' business.
"""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from boxsup_d2.compat import create_local_process_group, destroy_process_groups
from boxsup_d2.utils.processes import hear_interrupts, usable_cores

__all__ = ["launch"]


def launch(
    main_func: Callable[..., Any],
    num_processes_per_machine: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Run ``main_func(*args)`` in every process of a run.

    With CUDA this is Detectron2's own launch, one process per GPU. Without it, as many CPU processes talk through
    gloo, each with its share of the cores (``OMP_NUM_THREADS``, when set, wins). One process in all runs inside
    the calling one. To use several CPU processes on a machine that has GPUs, hide these: ``CUDA_VISIBLE_DEVICES=``.

    Args:
        main_func: picklable, i.e. defined at the top level of a module.
        num_processes_per_machine: ``--num-gpus``. 0 counts as one process (on the CPU: see ``setup``).
        num_machines: machines in the run; every one of them calls ``launch``.
        machine_rank: which of them this is, 0-based.
        dist_url: where the processes meet, e.g. ``tcp://10.0.0.1:29500``; "auto" takes a free port of one machine.
        args: arguments of ``main_func``.

    Raises:
        ValueError: if the numbers make no sense, or this machine has fewer GPUs than asked for.
        RuntimeError: if the processes cannot meet at ``dist_url``.
    """
    if num_processes_per_machine < 0:
        raise ValueError(f"--num-gpus must be 0 or more, not {num_processes_per_machine}.")
    if num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank {machine_rank} with --num-machines {num_machines}: ranks run from 0 to machines - 1."
        )
    per_machine = max(1, num_processes_per_machine)
    world_size = per_machine * num_machines
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("--dist-url auto works on one machine only; name a tcp://<host>:<port> of machine 0.")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"

    # With --num-gpus 0 the config is put on the CPU, which NCCL cannot serve, whatever GPUs there are.
    if torch.cuda.is_available() and num_processes_per_machine > 0:
        if per_machine > torch.cuda.device_count():
            raise ValueError(f"--num-gpus {per_machine}, but this machine has {torch.cuda.device_count()}.")
        detectron2_launch(_run_and_leave, per_machine, num_machines, machine_rank, dist_url, (main_func, args))
    else:
        mp.spawn(
            _cpu_worker,
            nprocs=per_machine,
            args=(main_func, world_size, per_machine, machine_rank, dist_url, args),
            daemon=False,  # data loaders start processes of their own
        )


def _cpu_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
) -> None:
    """One CPU process: joins the gloo group, takes its share of the cores, runs ``main_func``."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // per_machine))
    try:
        dist.init_process_group(
            backend="gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * per_machine + local_rank,
            timeout=DEFAULT_TIMEOUT,
        )
    except Exception as error:
        raise RuntimeError(
            f"The processes cannot meet at {dist_url}: {error}. If another run holds the port, end it or pass "
            "--dist-url auto (one machine) or another port."
        ) from error
    create_local_process_group(per_machine)
    comm.synchronize()
    _run_and_leave(main_func, args)


def _run_and_leave(main_func: Callable[..., Any], args: tuple) -> None:
    """What every process of a run does once it has met the others.

    After an error the groups are left to the end of the process. Ranks that wait for this one fail when its connections
    close; were that here, theirs would often be the error that is reported, not the one that is the cause. NCCL in turn
    may wait for ranks that still compute.
    """
    hear_interrupts()
    main_func(*args)
    destroy_process_groups()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
