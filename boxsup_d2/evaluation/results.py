"""What the evaluators share: gathering over the ranks, and writing results."""

import logging
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from boxsup_d2.utils.files import strict_json

logger = logging.getLogger(__name__)

T = TypeVar("T")


def gather_on_main(part: T, distributed: bool) -> list[T] | None:
    """The parts of all ranks (``[part]`` unless ``distributed``) on the main process, None on the others."""
    if not distributed:
        return [part]
    comm.synchronize()
    parts = comm.gather(part, dst=0)
    return parts if comm.is_main_process() else None


def warn_if_partial(scored: int, expected: int, what: str, dataset_name: str) -> None:
    """Log that only a part of a data set was scored; ``what`` is counted."""
    if scored < expected:
        logger.warning(
            "Only %d of the %d %s of %s were scored: the results are those of a part of it.",
            scored,
            expected,
            what,
            dataset_name,
        )


def write_results(folder: str, base: str, content: Mapping[str, Any]) -> str:
    """Write a json into a folder, which is made; returns its path. What is not finite becomes null."""
    PathManager.mkdirs(folder)
    path = os.path.join(folder, base)
    with PathManager.open(path, "w") as f:
        f.write(strict_json(dict(content)))
    return path
