"""boxsup_d2 in a few lines of Python: load a box-to-mask method, ask it for masks, label a data set, register a json.

``boxsup_d2.load``, ``boxsup_d2.label`` and ``boxsup_d2.register`` are these functions. There is nothing here that the
command line and the engine do not do as well; docs/python_api.md shows each of them at work.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from boxsup_d2.data.datasets import register_coco_masks
from boxsup_d2.data.formats.inspection import inspect_coco
from boxsup_d2.data.images import read_image
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.masks.confidence import box_iou_exact, mask_confidence
from boxsup_d2.masks.rle import encode_window
from boxsup_d2.methods import DEFAULT_METHOD, file_config, load_model, method_config, methods
from boxsup_d2.modeling.box_to_mask import predicted_quality
from boxsup_d2.prediction import dataset_path, image_list, predict_images, trained_network

__all__ = ["BoxToMask", "Prediction", "label", "load", "predict", "register"]

# First examples that an error shows.
_MAX_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Prediction:
    """The masks of the N boxes of one image of H×W, in the order of the boxes.

    Attributes:
        masks: N×H×W bool. Not merged: masks of boxes that overlap may share pixels.
        scores: N, 0..1, how sure the method is; 1 for those that know no probabilities.
        confidence: N, 0..1, the IoU of the smallest box around the mask and the given box; 0 for an empty mask.
        quality: N, 0..1, the IoU with the true mask to be expected of the mask; 0 for an empty one.
        boxes: N×4, x0, y0, x1, y1 in pixels, as they were given.
    """

    masks: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    quality: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    def to_coco(
        self, image_id: int = 1, category_ids: Sequence[int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """The masks as annotations of a COCO json.

        Args:
            image_id: of the image.
            category_ids: N ids; None: 1 for all.
            first_id: id of the first annotation; the others count on.

        Returns:
            Annotations with ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``iscrowd`` 0,
            ``segmentation`` (compressed RLE with str counts), ``area``, ``score``, and ``confidence``,
            ``confidence_exact`` and ``quality`` with the meaning that they have in the files of :func:`label`. All are
            plain Python values, ready for ``json.dump``.

        Raises:
            ValueError: there are not as many categories as masks.
        """
        if category_ids is not None and len(category_ids) != len(self):
            raise ValueError(f"{len(category_ids)} category_ids for {len(self)} masks: give one per mask, or None.")
        height, width = self.masks.shape[1:]
        boxes = _to_xywh(self.boxes)
        published = mask_confidence(torch.from_numpy(self.masks), boxes).tolist()
        return [
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": 1 if category_ids is None else int(category_ids[index]),
                "bbox": boxes[index],
                "iscrowd": 0,
                "segmentation": encode_window(mask.T, 0, 0, height, width),
                "area": int(mask.sum()),
                "score": float(self.scores[index]),
                "confidence": published[index],
                "confidence_exact": float(self.confidence[index]),
                "quality": float(self.quality[index]),
            }
            for index, mask in enumerate(self.masks)
        ]


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
        self, image: str | os.PathLike | np.ndarray, boxes: Any, classes: Sequence[int] | Sequence[str] | None = None
    ) -> Prediction:
        """Masks of the boxes of one image.

        Args:
            image: a file, or H×W×3 uint8, channels R, G, B.
            boxes: N×4 numbers, x0, y0, x1, y1 in pixels, x1 and y1 exclusive; N may be 0. They may reach beyond the
                image, but not lie outside it.
            classes: N class numbers, from 0, or N class names; None: all boxes are of one class. Only methods that see
                all boxes of a class together ask for them (``lpg``, which takes one class for one thing; with a
                segmenter it needs names).

        Raises:
            FileNotFoundError: there is no such image file.
            TypeError: the image is neither a path nor an array.
            ValueError: image, boxes or classes are none; says which, and what to do.
        """
        pixels, name = _check_image(image)
        height, width = pixels.shape[:2]
        corners = _check_boxes(boxes, height, width)
        numbers, names = _check_classes(classes, len(corners))
        if self.cfg.INPUT.FORMAT == "BGR":
            pixels = pixels[:, :, ::-1]
        prompt = Instances((height, width))
        prompt.gt_boxes = Boxes(torch.from_numpy(corners).float())
        prompt.gt_classes = torch.tensor(numbers, dtype=torch.int64)
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
        return Prediction(
            masks=output.pred_masks.numpy(),
            scores=output.scores.double().numpy(),
            confidence=box_iou_exact(output.pred_masks, _to_xywh(corners)).numpy(),
            quality=np.array(predicted_quality(output)) * output.pred_masks.flatten(1).any(dim=1).numpy(),
            boxes=corners,
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


def label(
    model: BoxToMask | CfgNode,
    dataset: str,
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    crf: bool = False,
) -> str:
    """Give every box of a data set a mask, and write them as a COCO json.

    The labelling of the training engine: masks of an image are merged, images are noted one by one, and the same call
    again goes on where a former one was stopped, or finds that nothing is left to do.

    Args:
        model: of :func:`load`, or a complete config.
        dataset: a registered data set with boxes, see :func:`register`.
        output_dir: folder for the json and for what is half done.
        overwrite: also label annotations that have a mask; else they keep it, with a confidence of 1.
        crf: refine every mask by a dense CRF, which needs pydensecrf2.

    Returns:
        Path of the json, ``<output_dir>/pseudo_masks/<dataset>_pseudo.json``. See docs/architecture.md for what is in
        it.

    Raises:
        ValueError, FileNotFoundError: the data set is not registered, missing or damaged.
        OSError: the disk is full; what was labelled is kept.
        ImportError: ``crf`` without pydensecrf2.
    """
    if dataset not in DatasetCatalog:
        raise ValueError(f"There is no data set '{dataset}': register it first, e.g. by boxsup_d2.register().")
    loaded = model if isinstance(model, BoxToMask) else load(model)
    cfg = loaded.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.abspath(os.path.expanduser(output_dir))
    cfg.PSEUDO_MASKS.DATASETS, cfg.PSEUDO_MASKS.FORMAT = (dataset,), "instances"
    cfg.PSEUDO_MASKS.OVERWRITE, cfg.PSEUDO_MASKS.CRF = overwrite, crf
    # Worker processes would run the caller's script again, up to its `if __name__ == "__main__"`, if it has one.
    cfg.PSEUDO_MASKS.CRF_WORKERS = 1
    cfg.freeze()
    label_datasets(cfg, loaded.model)
    return pseudo_mask_path(cfg.OUTPUT_DIR, dataset)


def predict(
    model: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike = "predictions.json",
    *,
    weights: str | os.PathLike | None = None,
    device: str | None = None,
    names: str | os.PathLike | None = None,
    image_root: str | None = None,
    min_score: float = 0.5,
    classes: Sequence[str] = (),
    batch_size: int = 1,
    opts: Sequence[Any] = (),
    keep_going: bool = False,
) -> str:
    """Find objects in images without boxes by a trained network, as ``boxsup predict`` does; interrupted, it resumes.

    Args:
        model, weights, device, names, opts: see :func:`boxsup_d2.prediction.trained_network`.
        images: folder, file, pattern or json, or several; see :func:`boxsup_d2.prediction.image_list`.
        out: json to write, a bare list of COCO's results.
        image_root: folder that the file names of a json are relative to; None: the json's.
        min_score, classes, batch_size: see :func:`boxsup_d2.prediction.predict_images`.
        keep_going: leave images out that cannot be read.

    Returns:
        Path of a COCO json beside ``out`` that has the images and classes as well.

    Raises:
        FileNotFoundError: model, weights or images are missing.
        ValueError: the model needs boxes, a class is none of its, or images cannot be used.
    """
    inputs = [images] if isinstance(images, str | os.PathLike) else list(images)
    name, root, data = image_list(inputs, image_root)
    inspection = inspect_coco(data, root, path=name)
    if not keep_going:
        inspection.raise_if_any()
    network = trained_network(model, weights, names=names, opts=opts, device=device)
    results = os.path.abspath(os.path.expanduser(os.fspath(out)))
    predict_images(
        network,
        inspection.usable,
        root,
        results,
        min_score=min_score,
        classes=classes,
        batch_size=batch_size,
        keep_going=keep_going,
    )
    return dataset_path(results)


def register(json: str | os.PathLike, images: str | os.PathLike, name: str | None = None) -> str:
    """Register a COCO json as a data set, with the masks that it has; its content is read when it is used.

    Args:
        json: the file. Its annotations need ids and boxes; crowd regions and unknown fields go through a labelling
            unchanged.
        images: folder that the json's file names are relative to.
        name: to register it under, a former data set of that name is replaced; None: the file's stem.

    Returns:
        The name, for :func:`label` and for ``DatasetCatalog`` and ``MetadataCatalog`` of Detectron2.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the stem is the name of another data set.
    """
    path, folder = Path(json).expanduser().absolute(), Path(images).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"There is no json '{path}'.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of images '{folder}'.")
    if name is None:
        name = path.stem
        if name in DatasetCatalog and MetadataCatalog.get(name).get("json_file") != str(path):
            raise ValueError(f"There is a data set '{name}' already: register '{path}' with a name of its own.")
    register_coco_masks(name, str(path), str(folder))
    return name


def _check_image(image: Any) -> tuple[np.ndarray, str]:
    """The pixels (H×W×3 uint8, R, G, B) and what to call them in messages."""
    if isinstance(image, str | os.PathLike):
        path = os.path.expanduser(os.fspath(image))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no image '{path}'.")
        return read_image(path, "RGB"), path
    if not isinstance(image, np.ndarray):
        raise TypeError(f"The image is a {type(image).__name__}: give a path or a NumPy array (np.asarray(image)).")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        hint = ""
        if image.ndim == 2:
            hint = " A grey image becomes one by np.stack([image] * 3, axis=-1)."
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = " Leave the alpha channel out: image[:, :, :3]."
        elif image.ndim == 3 and image.shape[0] == 3:
            hint = " Channels come last: image.transpose(1, 2, 0)."
        raise ValueError(f"The image has the shape {image.shape}, not height × width × 3.{hint}")
    if image.dtype != np.uint8:
        hint = "(255 * image).round().astype(np.uint8)" if image.dtype.kind == "f" else "image.astype(np.uint8)"
        raise ValueError(f"The image is {image.dtype}, not uint8 in 0..255: {hint} makes it one, if its range fits.")
    return image, "image"


def _check_boxes(boxes: Any, height: int, width: int) -> np.ndarray:
    """Boxes as N×4 float64."""
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    try:
        corners = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The boxes are not N×4 numbers: {error}.") from error
    if corners.size == 0:
        return corners.reshape(0, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        hint = " A single box is a list of one: [box]." if corners.shape == (4,) else ""
        raise ValueError(f"The boxes have the shape {corners.shape}, not N×4.{hint}")
    x0, y0, x1, y1 = corners.T
    problems = {
        "are not finite": ~np.isfinite(corners).all(axis=1),
        "are inverted or empty; boxes are x0, y0, x1, y1, and not x, y, width, height": (x1 <= x0) | (y1 <= y0),
        f"lie outside the image of {width}×{height} pixels": (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height),
    }
    for problem, bad in problems.items():
        if bad.any():
            first = ", ".join(f"{index}: {corners[index].tolist()}" for index in np.flatnonzero(bad)[:_MAX_EXAMPLES])
            raise ValueError(f"{bad.sum()} of {len(corners)} boxes {problem} (first {first}).")
    return corners


def _check_classes(classes: Sequence[int] | Sequence[str] | None, count: int) -> tuple[list[int], list[str]]:
    """Class numbers, and the names that they count where names were given."""
    if classes is None:
        return [0] * count, []
    values: list[Any] = list(classes)
    if len(values) != count:
        raise ValueError(f"{len(values)} classes for {count} boxes: give one per box, or None.")
    if values and all(isinstance(value, str) for value in values):
        names = list(dict.fromkeys(values))
        return [names.index(value) for value in values], names
    if not all(isinstance(value, int | np.integer) and value >= 0 for value in values):
        raise ValueError(f"Classes are {values[:_MAX_EXAMPLES]}: give numbers from 0, or names.")
    return [int(value) for value in values], []


def _to_xywh(boxes: np.ndarray) -> list[list[float]]:
    """N×4 corners as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
