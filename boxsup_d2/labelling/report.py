"""The page that a labelling leaves beside its file, so that somebody looks at the masks before they are trained on."""

import logging
import os
from typing import Any

from boxsup_d2.report import MaskSet, write_report

logger = logging.getLogger(__name__)


def label_report_path(labels: str) -> str:
    """Path of the page of a pseudo-mask file or a manifest of label maps."""
    return f"{os.path.splitext(labels)[0]}.html"


def write_label_report(images: int, labels: str, provenance: dict[str, Any], *, anew: bool) -> str | None:
    """Write the page of a finished labelling. It never fails: the labels are there, and hours may be in them.

    Args:
        images: to be shown at most, ``PSEUDO_MASKS.REPORT_IMAGES``; 0 or less writes no page.
        labels: pseudo-mask file or manifest of label maps.
        provenance: of it, see :mod:`boxsup_d2.data.formats.pseudo_masks`.
        anew: replace a page that is there; else it is left alone.

    Returns:
        Path of the page; None where there is none.
    """
    path = label_report_path(labels)
    if images <= 0:
        return None
    if not anew and os.path.exists(path):
        return path
    try:
        return write_report(
            [MaskSet(provenance["method"], labels)],
            provenance["image_root"],
            path,
            title=f"{provenance['source_dataset']}, labelled by {provenance['method']}",
            max_images=images,
            progress=False,
            outside_images=True,  # the labelling has read them
        )
    except Exception as error:
        logger.warning(
            "The page '%s' could not be written (%s: %s). The labels are complete; PSEUDO_MASKS.REPORT_IMAGES 0 does "
            "without a page.",
            path,
            type(error).__name__,
            error,
        )
        return None
