"""Segment Anything as a box-to-mask method: SAM and SAM 2 of the transformers library, prompted with boxes.

The network, and the resizing of images, boxes and masks around it, are transformers' own. What is ours is the contract
of box-to-mask methods: the best of the masks that the network proposes for a box, in the image's frame. Nothing is
trained.
"""

import os
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from boxsup_d2.masks.box_masks import BoxMasks, frames_at_once
from boxsup_d2.modeling.box_to_mask import MethodInfo, UntrainedBoxToMask, truncate_boxes

# By the model_type of a checkpoint's config: the class of the network and that of its pre- and post-processing.
# Published SAM 2 checkpoints hold a tracker of videos, whose image network is a part of it.
_CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
}


@META_ARCH_REGISTRY.register()
class SAM(UntrainedBoxToMask):
    """The best mask that a Segment Anything network proposes for every box."""

    info = MethodInfo(
        name="sam",
        summary="Segment Anything (SAM or SAM 2), prompted with each box",
        config={"INPUT.FORMAT": "RGB"},
        weights_key="MODEL.SAM.NETWORK",
        weights_help="a folder or hub name of a SAM",
        weights_on_hub=True,
        extra="sam",
        inference_keys=("MODEL.SAM.",),
        neutral_keys=("MODEL.SAM.BOXES_PER_FORWARD",),
    )

    @configurable
    def __init__(
        self,
        *,
        network: nn.Module,
        processor: Any,
        image_format: str = "RGB",
        boxes_per_forward: int = 16,
        cut_to_box: bool = True,
    ) -> None:
        """
        Args:
            network: ``SamModel`` or ``Sam2Model``.
            processor: its ``SamProcessor`` or ``Sam2Processor``.
            image_format: channel order of the images, "RGB" or "BGR".
            boxes_per_forward: boxes that are decoded at once, >= 1.
            cut_to_box: remove what a mask has outside its box.

        Raises:
            ValueError: a setting is out of its range.
        """
        super().__init__()
        if boxes_per_forward < 1:
            raise ValueError(f"MODEL.SAM.BOXES_PER_FORWARD is {boxes_per_forward}: it must be at least 1.")
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is '{image_format}': MODEL.META_ARCHITECTURE SAM takes RGB or BGR.")
        self.network = network.eval().requires_grad_(False)
        self.processor = processor
        self.image_format = image_format
        self.boxes_per_forward = boxes_per_forward
        self.cut_to_box = cut_to_box

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.SAM`` and load the network."""
        node = cfg.MODEL.SAM
        network, processor = load_network(node.NETWORK)
        return {
            "network": network,
            "processor": processor,
            "image_format": cfg.INPUT.FORMAT,
            "boxes_per_forward": node.BOXES_PER_FORWARD,
            "cut_to_box": node.CUT_TO_BOX,
        }

    def predict(self, image: Tensor, boxes: Tensor) -> tuple[BoxMasks, Tensor]:
        """Masks and scores of the boxes of one image; a score is the IoU that the network expects of its mask.

        The image is encoded once; its boxes share that.
        """
        size = (int(image.shape[1]), int(image.shape[2]))
        masks, scores = BoxMasks([], [], size), torch.zeros(len(boxes))
        if not len(boxes):
            return masks, scores
        corners = truncate_boxes(boxes, size).tolist()
        pixels = image if self.image_format == "RGB" else image.flip(0)
        inputs = self.processor(
            images=pixels.permute(1, 2, 0).cpu().numpy(), input_boxes=[boxes.tolist()], return_tensors="pt"
        )
        network: Any = self.network
        embeddings = network.get_image_embeddings(inputs["pixel_values"].to(self.device, torch.float32))
        frame = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
        prompts = inputs["input_boxes"].to(self.device, torch.float32)
        for start in range(0, len(boxes), self.boxes_per_forward):
            part = slice(start, start + self.boxes_per_forward)
            output = network(image_embeddings=embeddings, input_boxes=prompts[:, part], multimask_output=True)
            quality, best = output.iou_scores[0].float().max(dim=1)
            proposals = output.pred_masks[0].float()
            chosen = proposals[torch.arange(len(best), device=best.device), best][None, :, None]
            for some in chosen.split(frames_at_once(size), dim=1):
                found = BoxMasks.of(self.processor.post_process_masks(some, **frame)[0][:, 0].cpu())
                if self.cut_to_box:
                    found = found.crop(corners[len(masks) : len(masks) + len(found)])
                masks = BoxMasks.cat([masks, found.tight()])
            scores[part] = quality.clamp(0, 1).cpu()
        return masks, scores


def load_network(name: str) -> tuple[nn.Module, Any]:
    """Load a SAM or SAM 2 network and its processor.

    Args:
        name: folder that ``save_pretrained`` wrote, or a name on the Hugging Face hub; what was
            downloaded once is in transformers' cache afterwards.

    Raises:
        ImportError: transformers is not installed, or too old for the network.
        FileNotFoundError: there is no such folder, nor a network of this name that can be reached.
        ValueError: it is another network, or a part of its weights is missing.
    """
    transformers = _import_transformers()
    if not name:
        raise ValueError(
            "MODEL.SAM.NETWORK is empty: name a folder with a SAM network, or one on the Hugging Face hub."
        )
    path = os.path.expanduser(name)
    local = os.path.isdir(path)
    if not local and (os.path.isabs(path) or path.startswith(".") or path.count("/") > 1):
        raise FileNotFoundError(f"MODEL.SAM.NETWORK '{name}': there is no such folder.")
    try:
        try:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
        except ValueError as error:  # a folder without a config.json, or with one of something unknown
            raise OSError(error) from error
        network_class, processor_class = _classes(transformers, name, config.model_type)
        network, info = network_class.from_pretrained(path, local_files_only=local, output_loading_info=True)
        processor = processor_class.from_pretrained(path, local_files_only=local)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        where = "is not complete" if local else "is no folder here, and cannot be got from the Hugging Face hub"
        raise FileNotFoundError(
            f"MODEL.SAM.NETWORK '{name}' {where}: {reason} Download all files of the network "
            "(config.json, the processor's json, model.safetensors) into one folder, and name that."
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"MODEL.SAM.NETWORK '{name}' lacks {len(missing)} parameters, first {', '.join(missing[:3])}: download it "
            "again."
        )
    return network, processor


def _classes(transformers: Any, name: str, model_type: str) -> tuple[Any, Any]:
    """The classes of a network of this type and of its processor."""
    if model_type not in _CLASSES:
        raise ValueError(
            f"MODEL.SAM.NETWORK '{name}' is a '{model_type}' network: only {', '.join(_CLASSES)} take boxes here."
        )
    network_class, processor_class = (getattr(transformers, part, None) for part in _CLASSES[model_type])
    if network_class is None or processor_class is None:
        raise ImportError(
            f"transformers {transformers.__version__} does not know the '{model_type}' network '{name}': "
            "pip install --upgrade transformers."
        )
    return network_class, processor_class


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "MODEL.META_ARCHITECTURE SAM needs transformers, which is not installed: pip install 'boxsup_d2[sam]'."
        ) from error
    return transformers
