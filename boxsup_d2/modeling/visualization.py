"""Pictures of training samples for TensorBoard, put into Detectron2's event storage every ``VIS_PERIOD`` iterations.

Shape legend: H×W a sample; images are 3×H×W uint8.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

from boxsup_d2.data.images import voc_palette

_COLOR = (255.0, 140.0, 0.0)
_OPACITY = 0.55


def is_picture_due(period: int) -> bool:
    """Whether a picture is due in this iteration.

    Args:
        period: ``VIS_PERIOD``, in iterations; 0: never.
    """
    # Only rank 0 has writers, which empty the storage: on others, pictures would fill the memory.
    return period > 0 and comm.is_main_process() and get_event_storage().iter % period == 0


def put_picture(name: str, rows: Sequence[Sequence[Tensor]]) -> None:
    """Put samples below each other into the storage.

    Args:
        name: of the picture; should say what the columns are.
        rows: of each sample the 3×H×W uint8 panels, RGB; all of one size.
    """
    if rows:
        picture = torch.cat([torch.cat([panel.cpu() for panel in row], dim=2) for row in rows], dim=1)
        get_event_storage().put_image(name, picture.numpy())


def to_rgb(image: Tensor, image_format: str) -> Tensor:
    """A 3×H×W uint8 image of a batch, on the CPU, as RGB.

    Args:
        image: in the order of ``image_format``.
        image_format: ``INPUT.FORMAT``.
    """
    image = image.detach().cpu()
    return image.flip(0) if image_format == "BGR" else image


def overlay_mask(image: Tensor, mask: Tensor) -> Tensor:
    """Lay a mask over an RGB image.

    Args:
        image: 3×H×W uint8.
        mask: h×w, 0..1; resized to the image.

    Returns:
        3×H×W uint8.
    """
    mask = mask.detach().float().cpu()[None, None]
    if mask.shape[-2:] != image.shape[-2:]:
        mask = F.interpolate(mask, size=image.shape[-2:], mode="bilinear", align_corners=False)
    weight = _OPACITY * mask[0].clamp(0, 1)
    color = torch.tensor(_COLOR)[:, None, None]
    return (image * (1 - weight) + color * weight).round().to(torch.uint8)


def overlay_labels(image: Tensor, labels: Tensor) -> Tensor:
    """Lay a label map over an RGB image in VOC's colours; class 0 stays as it is.

    Args:
        image: 3×H×W uint8.
        labels: h×w integers in 0..255; resized to the image by nearest.

    Returns:
        3×H×W uint8.
    """
    labels = labels.detach().cpu()
    if labels.shape != image.shape[-2:]:
        labels = F.interpolate(labels[None, None].float(), size=image.shape[-2:], mode="nearest")[0, 0]
    labels = labels.long()
    palette = torch.tensor(voc_palette(), dtype=torch.float32).view(256, 3)
    weight = _OPACITY * (labels > 0)
    return (image * (1 - weight) + palette[labels].permute(2, 0, 1) * weight).round().to(torch.uint8)
