"""Start the worker processes of a run, or join those that a cluster started: on GPUs with NCCL, on the CPU with gloo.

Detectron2 0.6 refuses several processes without CUDA; its main branch does not. Here both behave alike, and CPU
processes share the machine's cores instead of all using all of them. This module starts processes and nothing else:
devices and configs are :mod:`boxsup_d2.engine.defaults`' business.
"""

import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
    join: bool = True,
) -> None:
    """Run ``main_func(*args)`` in every process of a run.

    With CUDA this is Detectron2's own launch, one process per GPU. Without it, as many CPU processes talk through
    gloo, each with its share of the cores (``OMP_NUM_THREADS``, when set, wins). One process in all runs inside
    the calling one. To use several CPU processes on a machine that has GPUs, hide these: ``CUDA_VISIBLE_DEVICES=``.

    Where ``torchrun`` or SLURM's ``srun`` started several processes, each joins their group and runs ``main_func`` as
    its rank; none is started then.

    Args:
        main_func: picklable, i.e. defined at the top level of a module.
        num_processes_per_machine: ``--num-gpus``. 0 counts as one process (on the CPU: see ``setup``). In a group that
            was started already 0 or 1, or as many as it has per machine.
        num_machines: machines in the run; every one of them calls ``launch``.
        machine_rank: which of them this is, 0-based.
        dist_url: where the processes meet, e.g. ``tcp://10.0.0.1:29500``; "auto" takes a free port of one machine.
        args: arguments of ``main_func``.
        join: join the group that was started already, if any. The caller's own code runs in each of its processes.

    Raises:
        ValueError: if the numbers make no sense, contradict the group, or this machine has fewer GPUs than asked for.
        RuntimeError: if the processes cannot meet at ``dist_url``.
    """
    if num_processes_per_machine < 0:
        raise ValueError(f"--num-gpus must be 0 or more, not {num_processes_per_machine}.")
    if num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank {machine_rank} with --num-machines {num_machines}: ranks run from 0 to machines - 1."
        )
    per_machine = max(1, num_processes_per_machine)
    on_gpus = torch.cuda.is_available() and num_processes_per_machine > 0
    group = started_group(os.environ) if join else None
    if group is not None:
        if per_machine not in (1, group.per_machine):
            raise ValueError(
                f"--num-gpus {per_machine}, but {group.per_machine} processes were started on this machine already (by "
                "torchrun or srun): leave --num-gpus out."
            )
        url = group.url if dist_url == "auto" else dist_url
        place = (group.world_size, group.per_machine, group.rank // group.per_machine, url)
        _worker(group.rank % group.per_machine, main_func, *place, args, on_gpus)
        return
    world_size = per_machine * num_machines
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("--dist-url auto works on one machine only; name a tcp://<host>:<port> of machine 0.")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"

    # With --num-gpus 0 the config is put on the CPU, which NCCL cannot serve, whatever GPUs there are.
    if on_gpus:
        if per_machine > torch.cuda.device_count():
            raise ValueError(f"--num-gpus {per_machine}, but this machine has {torch.cuda.device_count()}.")
        detectron2_launch(_run_and_leave, per_machine, num_machines, machine_rank, dist_url, (main_func, args))
    else:
        mp.spawn(
            _worker,
            nprocs=per_machine,
            args=(main_func, world_size, per_machine, machine_rank, dist_url, args),
            daemon=False,  # data loaders start processes of their own
        )


class StartedGroup(NamedTuple):
    """Processes that something else started, of which this is one.

    Attributes:
        world_size: processes in all.
        per_machine: processes on each machine; ranks are numbered machine by machine.
        rank: of this process.
        url: where they meet.
    """

    world_size: int
    per_machine: int
    rank: int
    url: str


def started_group(environment: Mapping[str, str]) -> StartedGroup | None:
    """The group that ``torchrun`` or ``srun`` put this process into; None if neither did, or it is alone.

    A script of ``sbatch`` has a rank as well but runs once; a step of ``srun`` has a number, or its address is given.

    Raises:
        ValueError: the machines have different numbers of processes, or the ranks are not numbered machine by machine.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_ADDR" in environment:
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        per_machine = int(environment.get("LOCAL_WORLD_SIZE", world_size))
        local_rank = int(environment.get("LOCAL_RANK", rank % per_machine))
        url = "env://"
    elif "SLURM_PROCID" in environment and {"SLURM_STEP_ID", "MASTER_ADDR"} & environment.keys():
        rank = int(environment["SLURM_PROCID"])
        world_size = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
        # "4" or, of two machines, "4(x2)"; "4,3" for unequal ones.
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
        per_machine = int(re.split(r"\D", tasks)[0]) if tasks else world_size
        local_rank = int(environment.get("SLURM_LOCALID", rank % per_machine))
        # All tasks of a step find the same port; two steps of one job on one machine find two.
        number = 100 * int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0")) % 100
        port = environment.get("MASTER_PORT", str(20000 + number % 20000))
        url = f"tcp://{environment.get('MASTER_ADDR') or _first_host(environment)}:{port}"
    else:
        return None
    if world_size == 1:
        return None
    if world_size % per_machine or local_rank != rank % per_machine:
        raise ValueError(
            f"Process {rank} of {world_size} is number {local_rank} of {per_machine} on its machine: start as many on "
            "every machine, with ranks numbered machine by machine (srun --ntasks-per-node N --distribution block)."
        )
    return StartedGroup(world_size, per_machine, rank, url)


def _first_host(environment: Mapping[str, str]) -> str:
    """Of SLURM's list of machines, such as ``node[03-05,9],login``."""
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,]*))?", names)
    return "".join(part or "" for part in found.groups()) if found else names


def _worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    on_gpu: bool = False,
) -> None:
    """One process of a group: meets the others, takes its GPU or its share of the cores, runs ``main_func``."""
    if on_gpu:
        # SLURM may show each task its own GPU alone.
        if per_machine > torch.cuda.device_count() > 1:
            raise ValueError(
                f"{per_machine} processes were started on this machine, but it has {torch.cuda.device_count()} GPUs. "
                "CUDA_VISIBLE_DEVICES= before the command runs them on the CPU."
            )
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // per_machine))
    try:
        dist.init_process_group(
            backend="nccl" if on_gpu else "gloo",
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
