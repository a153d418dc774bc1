"""Everything that differs between Detectron2 0.6 and its main branch, and nothing else.

Both call themselves 0.6, so features are detected, not versions.
"""

from typing import TYPE_CHECKING

import torch.distributed as dist
from detectron2.utils import comm

if TYPE_CHECKING:  # it imports all of Detectron2's networks, and configs need this module
    from detectron2.engine import TrainerBase

#: Config keys that only the main branch has, with its defaults.
MAIN_BRANCH_KEYS = {
    "DATALOADER.REPEAT_SQRT": True,
    "FLOAT32_PRECISION": "",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.NUM_DECAYS": 3,
    "SOLVER.RESCALE_INTERVAL": False,
}


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


def after_backward(trainer: "TrainerBase") -> None:
    """Tell the hooks of a trainer that its gradients are there; 0.6 has no such hook."""
    if hasattr(trainer, "after_backward"):
        trainer.after_backward()


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
