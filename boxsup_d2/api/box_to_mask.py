"""Box-to-mask methods in Python: load one, and ask it for the masks of boxes."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from boxsup_d2.api.inputs import check_boxes, check_classes, check_image
from boxsup_d2.api.prediction import Prediction, to_xywh
from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.confidence import box_iou_exact, rotated_box_iou
from boxsup_d2.methods import DEFAULT_METHOD, file_config, load_model, method_config, methods
from boxsup_d2.modeling.box_to_mask import predicted_quality

__all__ = ["BoxToMask", "load"]


class BoxToMask:
    """A box-to-mask method, loaded; :func:`load` makes it.

    Attributes:
        cfg: its complete config.
        model: the meta-architecture, in evaluation mode.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """
        Args:
            cfg: of :func:`boxsup_d2.methods.method_config` or alike.
            model: of :func:`boxsup_d2.methods.load_model`.

        Raises:
            ValueError: the config reads images in another order than RGB or BGR.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}': only RGB and BGR can be predicted on.")
        self.cfg = cfg
        self.model = model.eval()

    def __repr__(self) -> str:
        return f"BoxToMask({self.cfg.MODEL.META_ARCHITECTURE} on {self.cfg.MODEL.DEVICE})"

    def predict(
        self,
        image: str | os.PathLike | np.ndarray | torch.Tensor | Image.Image,
        boxes: Any,
        classes: Sequence[int] | Sequence[str] | None = None,
    ) -> Prediction:
        """Masks of the boxes of one image.

        Args:
            image: a file; a PIL image; or H×W×3 uint8, channels R, G, B, of a tensor also 3×H×W.
            boxes: N×4 numbers, x0, y0, x1, y1 in pixels, x1 and y1 exclusive; N may be 0. They may reach beyond the
                image, but not lie outside it. Or N×5, rotated boxes: cx, cy, w, h in pixels and degrees
                counter-clockwise, as Detectron2's ``RotatedBoxes`` has them. The method sees the upright boxes around
                them; masks are cut to the rotated ones.
            classes: N class numbers, from 0, or N class names; None: all boxes are of one class. Only methods that see
                all boxes of a class together ask for them (``lpg``, which takes one class for one thing; with a
                segmenter it needs names).

        Raises:
            FileNotFoundError: there is no such image file.
            TypeError: the image is nothing of these.
            ValueError: image, boxes or classes are none; says which, and what to do.
        """
        given, name = check_image(image)
        pixels, (height, width) = given, given.shape[:2]
        corners, rotated = check_boxes(boxes, height, width)
        numbers, names = check_classes(classes, len(corners))
        if self.cfg.INPUT.FORMAT == "BGR":
            pixels = pixels[:, :, ::-1]
        prompt = Instances((height, width))
        prompt.gt_boxes = Boxes(torch.from_numpy(corners).float())
        prompt.gt_classes = torch.tensor(numbers, dtype=torch.int64)
        if rotated is not None:
            prompt.gt_rotated_boxes = torch.from_numpy(rotated).float()
        item = {
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "height": height,
            "width": width,
            "instances": prompt,
            "file_name": name,
            "image_id": 0,
            **({"class_names": names, "num_classes": len(names)} if names else {}),
        }
        with torch.no_grad():
            output = self.model([item])[0]["instances"].to("cpu")
        masks = BoxMasks.of(output.pred_masks)
        filled = box_iou_exact(masks, to_xywh(corners)) if rotated is None else rotated_box_iou(masks, rotated.tolist())
        return Prediction(
            box_masks=masks,
            scores=output.scores.double().numpy(),
            confidence=filled.numpy(),
            quality=np.array(predicted_quality(output)) * (np.array(masks.areas()) > 0),
            boxes=corners,
            image=given,
            rotated_boxes=rotated,
        )


def load(
    method: str | os.PathLike | CfgNode = DEFAULT_METHOD,
    weights: str | os.PathLike | None = None,
    device: str | None = None,
    *,
    config_file: str | os.PathLike | None = None,
    opts: Sequence[Any] = (),
) -> BoxToMask:
    """Load a box-to-mask method.

    Args:
        method: its name (``boxsup models`` lists them), the yaml file of a config, or a
            complete config, with which all other arguments must be left out.
        weights: see :func:`boxsup_d2.methods.method_config`.
        device: "cpu", "cuda", "cuda:1"; None: the GPU if there is one.
        config_file: config of a named method, where its weights have none beside them.
        opts: config overrides, ``[KEY, VALUE, ...]``.

    Raises:
        ValueError: no such method; weights are needed, or given to a method that has none, or of another network.
        FileNotFoundError: weights or config are missing.
        RuntimeError: the weights are damaged or not complete.
        ImportError: the method needs a package that is not installed.
    """
    if isinstance(method, CfgNode):
        if weights is not None or device is not None or config_file is not None or opts:
            raise ValueError("A complete config leaves nothing to set: change it, and give nothing else to load().")
        return BoxToMask(method, load_model(method))
    name, weights, config_file = (None if path is None else os.fspath(path) for path in (method, weights, config_file))
    assert name is not None
    if name not in methods() and name.endswith((".yaml", ".yml")):
        if config_file is not None:
            raise ValueError(f"Two configs are given, '{name}' and '{config_file}': give one.")
        cfg = file_config(name, weights, opts, device)
    else:
        cfg = method_config(name, weights, config_file, opts, device)
    return BoxToMask(cfg, load_model(cfg))
