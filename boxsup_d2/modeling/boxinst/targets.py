"""What the mask head of BoxInst learns from: which locations, and boxes, masks and colours on the grid of the masks.

Nothing here has a gradient, loops over instances or waits for the device, but for :func:`sample_locations`.

Shape legend: N images, R locations of all maps, G objects of all images in a row, K sampled locations, H x W the sides
of the padded batch, h x w those of the grid of the masks. Cell i of this grid is sampled at pixel s * i + s // 2, s
being its stride.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances
from torch import Tensor

Size = tuple[int, int]


@torch.no_grad()
def sample_locations(
    objects: Tensor, quality: Tensor, image_of_object: Tensor, per_image: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best locations of every object.

    Args:
        objects: N x R, the object that a location belongs to, 0..G-1, or -1.
        quality: N x R, which of an object's locations are preferred.
        image_of_object: G positions in 0..N-1, ascending.
        per_image: number of locations that the objects of an image share equally, at least one each.

    Returns:
        Images, locations and objects of the samples, K each, ordered by object.
    """
    # The number of positive locations is not known before; FCOS's own losses wait for it as well.
    image, location = (objects >= 0).nonzero(as_tuple=True)
    owner = objects[image, location]
    order = quality[image, location].argsort(descending=True)
    order = order[owner[order].argsort(stable=True)]  # by object, the best first
    image, location, owner = image[order], location[order], owner[order]
    count = torch.zeros_like(image_of_object).index_add_(0, owner, torch.ones_like(owner))
    rank = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    found = count.new_zeros(len(objects)).index_add_(0, image_of_object, (count > 0).to(count.dtype))
    share = (per_image // found.clamp(min=1)).clamp(min=1)
    kept = rank < share[image]
    return image[kept], location[kept], owner[kept]


@torch.no_grad()
def rasterize_boxes(boxes: Tensor, size: Size, stride: int) -> Tensor:
    """Filled boxes on the grid of the masks.

    Args:
        boxes: G x 4, x0, y0, x1, y1 in pixels.
        size: h and w.
        stride: of the grid, pixels.

    Returns:
        G x 1 x h x w float32: 1 where the sampled pixel lies in rows floor(y0)..floor(y1) and columns
        floor(x0)..floor(x1), both inclusive. A box between two samples has the cell around its centre: without any, its
        projections would ask for an empty mask.
    """
    rows = _covered(boxes[:, 1], boxes[:, 3], size[0], stride)
    columns = _covered(boxes[:, 0], boxes[:, 2], size[1], stride)
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def _covered(low: Tensor, high: Tensor, cells: int, stride: int) -> Tensor:
    cell = torch.arange(cells, device=low.device)
    sample = cell * stride + stride // 2
    covered = (sample >= low.floor()[:, None]) & (sample <= high.floor()[:, None])
    nearest = ((low + high) / (2 * stride)).floor().clamp(0, cells - 1)
    return covered | (~covered.any(1, keepdim=True) & (cell == nearest[:, None]))


@torch.no_grad()
def sample_masks(instances: Sequence[Instances], field: str, size: Size, stride: int) -> Tensor:
    """Masks of a field on the grid of the masks.

    Args:
        instances: per image, on the device; images that lack the field have empty masks.
        field: of ``BitMasks``.
        size: h and w.
        stride: of the grid, pixels.

    Returns:
        G x 1 x h x w float32.

    Raises:
        ValueError: these are no bit masks.
    """
    sampled = []
    for x in instances:
        padded = x.gt_boxes.tensor.new_zeros(len(x), 1, *size, dtype=torch.float32)
        if x.has(field) and len(x):
            masks = x.get(field)
            if not isinstance(masks, BitMasks):
                raise ValueError(f"{field} are {type(masks).__name__}: set INPUT.MASK_FORMAT bitmask.")
            cells = masks.tensor[:, stride // 2 :: stride, stride // 2 :: stride]
            padded[:, 0, : cells.shape[1], : cells.shape[2]] = cells
        sampled.append(padded)
    return torch.cat(sampled)


@torch.no_grad()
def valid_cells(image_sizes: Sequence[Size], ignored_rows: Sequence[int], grid: Tensor, stride: int) -> Tensor:
    """Cells that are neither padding nor among the lowest rows.

    Args:
        image_sizes: height and width of each image, pixels.
        ignored_rows: of each image, pixels.
        grid: any tensor with N, h and w in its first and its last two dimensions, on the device.
        stride: of the grid, pixels.

    Returns:
        N x 1 x h x w float32, 0 or 1.
    """
    valid = grid.new_zeros(len(image_sizes), 1, *grid.shape[-2:], dtype=torch.float32)
    for i, ((height, width), ignored) in enumerate(zip(image_sizes, ignored_rows, strict=True)):
        rows, columns = (max(0, -((stride // 2 - side) // stride)) for side in (height - ignored, width))
        valid[i, :, :rows, :columns] = 1
    return valid


@torch.no_grad()
def mean_colors(images: Sequence[Tensor], padded: Size, stride: int) -> Tensor:
    """The colours of the cells.

    Args:
        images: per image 3 x height x width in 0..255, on the device.
        padded: H and W.
        stride: of the grid, pixels.

    Returns:
        N x 3 x (H // stride) x (W // stride) float32 whole numbers in 0..255: rounded down, as published. Padding is 0.
    """
    batch = images[0].new_zeros(len(images), 3, *padded, dtype=torch.float32)
    for image, place in zip(images, batch, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return F.avg_pool2d(batch, stride).floor()
