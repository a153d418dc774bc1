"""Published checkpoints of semantic segmentation networks, and torchvision's ImageNet weights to start from.

Pure functions on state dicts, see :mod:`boxsup_d2.checkpoint.formats`. Set ``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN`` and
``MODEL.PIXEL_STD`` as the weights need it: the published networks take B, G, R images in 0..255 minus (104.008,
116.669, 122.675), without a division; torchvision's take R, G, B with ImageNet's mean and std.
"""

from torch import Tensor

from boxsup_d2.checkpoint.formats import CheckpointFormat, State, register_checkpoint_format

# Positions of the convolutions in torchvision's VGG16.
_VGG16_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# In the published LargeFOV network, the head continues the numbering.
_LARGEFOV_HEAD = {"features.32.": "fc6.", "features.35.": "fc7.", "features.38.": "fc8."}


def _convs_of(state: State) -> set[int]:
    return {int(name.split(".")[1]) for name in state if name.startswith("features.") and name.endswith(".weight")}


def is_published_largefov(state: State) -> bool:
    """Whether these are the parameters of a published DeepLab-LargeFOV VGG16, of any number of classes."""
    return _convs_of(state) == {*_VGG16_CONVS, 32, 35, 38}


def convert_published_largefov(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of ``DeepLabSegmenter`` with ``build_vgg16_largefov_backbone`` and ``LargeFOVHead``."""
    converted = {}
    for name, value in state.items():
        for theirs, ours in _LARGEFOV_HEAD.items():
            if name.startswith(theirs):
                converted["sem_seg_head." + ours + name.removeprefix(theirs)] = value
                break
        else:
            converted["backbone." + name] = value
    return converted


def is_published_deeplabv2(state: State) -> bool:
    """Whether these are the parameters of a published DeepLabV2 ResNet, multi-scale (``base.`` prefix) or not."""
    names = {name.removeprefix("base.") for name in state}
    return {"layer0.0.weight", "layer4.0.conv2.weight", "aspp.c0.weight"} <= names


def convert_published_deeplabv2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of ``DeepLabSegmenter`` with ``build_resnet_deeplab_backbone`` and ``ASPPSumHead``.

    Needs ``MODEL.RESNETS.STEM_MAX_POOL: False``; the multi-scale one ``MODEL.SEM_SEG_HEAD.MSC_SCALES: (0.5, 0.75)``.
    """
    renames = {"layer0.0.": "backbone.conv1.", "layer0.1.": "backbone.bn1.", "aspp.c": "sem_seg_head.convs."}
    converted = {}
    for name, value in state.items():
        bare = name.removeprefix("base.")
        for theirs, ours in renames.items():
            if bare.startswith(theirs):
                converted[ours + bare.removeprefix(theirs)] = value
                break
        else:
            converted["backbone." + bare] = value
    return converted


def is_torchvision_vgg16(state: State) -> bool:
    """Whether these are torchvision's VGG16 parameters (without batch norm), with or without the classifier."""
    return _convs_of(state) == set(_VGG16_CONVS) and "features.1.running_mean" not in state


def convert_torchvision_vgg16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG16 to the trunk, fc6 and fc7 of LargeFOV, without its classes.

    fc6 keeps every third row and column of the classifier's 7×7 positions, and every fourth of its 4096 outputs, as
    fc7 does of its inputs and outputs.
    """
    converted = {"backbone." + name: value for name, value in state.items() if name.startswith("features.")}
    if "classifier.0.weight" in state:
        fc6 = state["classifier.0.weight"].reshape(-1, 512, 7, 7)
        converted["sem_seg_head.fc6.weight"] = fc6[::4, :, ::3, ::3].clone()
        converted["sem_seg_head.fc6.bias"] = state["classifier.0.bias"][::4].clone()
        converted["sem_seg_head.fc7.weight"] = state["classifier.3.weight"][::4, ::4, None, None].clone()
        converted["sem_seg_head.fc7.bias"] = state["classifier.3.bias"][::4].clone()
    return converted


def is_torchvision_resnet(state: State) -> bool:
    """Whether these are the parameters of a bottleneck ResNet of torchvision."""
    return {"conv1.weight", "bn1.running_var", "layer4.0.conv3.weight", "fc.weight"} <= set(state)


def convert_torchvision_resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ResNet to ``build_resnet_deeplab_backbone``, without its classes."""
    return {"backbone." + name: value for name, value in state.items() if not name.startswith("fc.")}


for _format in (
    CheckpointFormat("published DeepLab-LargeFOV", is_published_largefov, convert_published_largefov),
    CheckpointFormat("published DeepLabV2", is_published_deeplabv2, convert_published_deeplabv2),
    CheckpointFormat("VGG16 (ImageNet) of torchvision", is_torchvision_vgg16, convert_torchvision_vgg16),
    CheckpointFormat("ResNet (ImageNet) of torchvision", is_torchvision_resnet, convert_torchvision_resnet),
):
    register_checkpoint_format(_format)
