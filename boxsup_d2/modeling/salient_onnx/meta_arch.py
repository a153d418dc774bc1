"""Salient-object networks in ONNX's format as a box-to-mask method: U²-Net and its like, run by onnxruntime.

Such a network finds the object that stands out in a picture. Here the picture is a box with a little context, and what
stands out in it, inside the box, is the box's mask. The network is used as it is; nothing is trained.

Shape legend: N crops, S×S the network's input, h×w its output, B the boxes of one image.
"""

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
from torch import Tensor
from torch.nn import functional as F

from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.paste import min_max_normalize, paste_masks
from boxsup_d2.modeling.box_to_mask import (
    MethodInfo,
    UntrainedBoxToMask,
    mean_foreground,
    truncate_boxes,
)

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork:
    """A graph from N×3×S×S images to N×1×h×w maps, with what it says about its input."""

    def __init__(self, path: str, device: torch.device, default_size: int) -> None:
        """
        Args:
            path: of the ``.onnx`` file.
            device: where it should run; the CPU where onnxruntime has no build for it.
            default_size: side of the input where the graph leaves it open.

        Raises:
            ImportError: onnxruntime is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file is no graph, or none from images to one map each.
        """
        runtime = _import_onnxruntime()
        if not path:
            raise ValueError("MODEL.SALIENT_ONNX.NETWORK is empty: name the .onnx file of a salient-object network.")
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"MODEL.SALIENT_ONNX.NETWORK '{path}' does not exist: name an .onnx file.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only: exported graphs carry harmless oddities
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))  # type: ignore[arg-type]
        try:
            self._session = runtime.InferenceSession(PathManager.get_local_path(path), options, providers=providers)
        except Exception as error:  # its exceptions derive from nothing but Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"'{path}' cannot be read as an ONNX network: {reason}. Download it again.") from error
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or (shape[1] not in (3, None) and not isinstance(shape[1], str)):
            shapes = ", ".join(f"{node.name} {node.shape}" for node in inputs)
            raise ValueError(f"'{path}' is no network of N×3×height×width images; its inputs are {shapes}.")
        if inputs[0].type not in _DTYPES:
            raise ValueError(f"'{path}' takes {inputs[0].type}, not floating-point images: export it with such.")
        self._path = path
        self._input, self._dtype = inputs[0].name, _DTYPES[inputs[0].type]
        self._output = self._session.get_outputs()[0].name
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        """Images that it takes at once; None: any number."""
        self.size = tuple(side if isinstance(side, int) else default_size for side in shape[2:])
        """Height and width of its input."""

    def __call__(self, images: Tensor) -> Tensor:
        """N×3×S×S normalised images to N×h×w maps, float32, on the CPU; N is at most :attr:`batch`.

        Raises:
            ValueError: the graph gives no single map per image.
        """
        array = images.cpu().numpy().astype(self._dtype)
        padding = 0 if self.batch is None else self.batch - len(array)
        if padding:  # a graph with a fixed batch takes no less
            array = np.concatenate([array, np.zeros((padding, *array.shape[1:]), self._dtype)])
        maps = self._session.run([self._output], {self._input: array})[0]
        if maps.ndim == 4 and maps.shape[1] == 1:
            maps = maps[:, 0]
        if maps.ndim != 3 or len(maps) != len(array):
            raise ValueError(
                f"'{self._path}' gives {list(maps.shape)} for {len(array)} images: its first output must be one map "
                "of foreground per image (N×1×h×w)."
            )
        return torch.from_numpy(maps[: len(images)].astype(np.float32))


@META_ARCH_REGISTRY.register()
class SalientONNX(UntrainedBoxToMask):
    """The salient object of every box, as a network in ONNX's format sees it."""

    info = MethodInfo(
        name="salient-onnx",
        summary="the salient object of each box, by a network in ONNX's format",
        # ImageNet's mean and std, for images in 0..255.
        config={
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530],
            "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
        },
        weights_key="MODEL.SALIENT_ONNX.NETWORK",
        weights_help="the .onnx file of a salient-object network",
        extra="onnx",
        inference_keys=("MODEL.SALIENT_ONNX.",),
        neutral_keys=("MODEL.SALIENT_ONNX.CROPS_PER_FORWARD",),
    )

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        network: OnnxNetwork,
        pixel_mean: list[float],
        pixel_std: list[float],
        context: float = 0.1,
        threshold: float = 0.5,
        crops_per_forward: int = 8,
    ) -> None:
        """
        Args:
            network: from normalised crops to maps whose larger values are the foreground.
            pixel_mean, pixel_std: per channel, for images in 0..255.
            context: what is seen around the box, as a share of its sides on each side; >= 0.
            threshold: foreground lies above it, after every map is stretched to 0..1.
            crops_per_forward: crops at once, where the network takes any number.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__()
        if context < 0:
            raise ValueError(f"MODEL.SALIENT_ONNX.CONTEXT is {context}: it must not be negative.")
        if crops_per_forward < 1:
            raise ValueError(f"MODEL.SALIENT_ONNX.CROPS_PER_FORWARD is {crops_per_forward}: it must be at least 1.")
        self.network = network
        self.context = context
        self.threshold = threshold
        self.crops_per_forward = network.batch or crops_per_forward
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.SALIENT_ONNX`` and load the network."""
        node = cfg.MODEL.SALIENT_ONNX
        path = os.path.expanduser(node.NETWORK)
        return {
            "network": OnnxNetwork(path, torch.device(cfg.MODEL.DEVICE), node.SIZE),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "context": node.CONTEXT,
            "threshold": node.THRESHOLD,
            "crops_per_forward": node.CROPS_PER_FORWARD,
        }

    def predict(self, image: Tensor, boxes: Tensor) -> tuple[BoxMasks, Tensor]:
        """Masks and scores of the boxes of one image.

        A score is the mean of the network's own values, which end in a sigmoid and so are probabilities, over the mask
        at the resolution of its output; values beyond 0..1, of a network without a sigmoid, count as 0 or 1.
        """
        size = (int(image.shape[1]), int(image.shape[2]))
        corners = truncate_boxes(boxes, size)
        windows = self.windows(corners, size)
        masks, scores = [BoxMasks([], [], size)], [torch.zeros(0)]
        for part in torch.arange(len(boxes)).split(self.crops_per_forward) if len(boxes) else ():
            probs = self.network(self.crops(image, windows[part]))
            values = min_max_normalize(probs)
            scores.append(mean_foreground(probs.clamp(0, 1), values > self.threshold))
            masks.append(paste_masks(values, windows[part], *size, self.threshold).crop(corners[part].tolist()))
        return BoxMasks.cat(masks), torch.cat(scores)

    def windows(self, corners: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Boxes (B×4 whole pixels, exclusive ends) with their context, as far as the image goes: B×4 int64."""
        height, width = image_size
        band = (self.context * (corners[:, 2:] - corners[:, :2])).round().to(torch.int64)
        low = (corners[:, :2] - band).clamp(min=0)
        high = (corners[:, 2:] + band).minimum(corners.new_tensor([width, height]))
        return torch.cat([low, high], dim=1)

    def crops(self, image: Tensor, windows: Tensor) -> Tensor:
        """Windows of an image (3×H×W uint8), resized to the network's input and normalised: N×3×S×S float32.

        The sides are resized each by its own factor, as these networks were trained; antialiased, since a crop of a
        photograph mostly shrinks.
        """
        pixels = image.to(self.device, torch.float32)[None]
        resized = [
            F.interpolate(pixels[..., y0:y1, x0:x1], self.network.size, mode="bilinear", antialias=True)
            for x0, y0, x1, y1 in windows.tolist()
        ]
        return (torch.cat(resized) - self.pixel_mean) / self.pixel_std


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "SalientONNX needs onnxruntime, which is not installed: pip install 'boxsup_d2[onnx]' (or onnxruntime-gpu)."
        ) from error
    return onnxruntime
