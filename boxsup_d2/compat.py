"""Everything that differs between Detectron2 0.6 and its main branch, and nothing else.

Both call themselves 0.6, so features are detected, not versions.
"""

import torch.distributed as dist
from detectron2.utils import comm


def create_local_process_group(processes_per_machine: int) -> None:
    """Tell Detectron2 which ranks share this machine, as its launchers do.

    Called once by every rank after ``init_process_group``. The main branch has a function for it; 0.6 sets the
    variable inside its own launcher, which only starts GPU processes.

    Args:
        processes_per_machine: ranks are numbered machine by machine, so many each.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(processes_per_machine)
        return
    machine = dist.get_rank() // processes_per_machine
    for first in range(0, dist.get_world_size(), processes_per_machine):
        # every rank has to take part in making every group
        group = dist.new_group(list(range(first, first + processes_per_machine)))
        if first == machine * processes_per_machine:
            comm._LOCAL_PROCESS_GROUP = group


def destroy_process_groups() -> None:
    """Leave every process group; the last thing that a worker does.

    ``destroy_process_group`` gives up torch's references, but Detectron2 keeps two of its own: to the ranks of this
    machine and to the group of ``comm.all_gather``. While one is left, gloo's threads run on; one that is still
    releasing the tensors of the last collective when the interpreter ends aborts the process (SIGABRT, "terminate
    called without an active exception"), and a run that had finished counts as failed.
    """
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()
