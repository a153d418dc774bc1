"""Any timm ``features_only`` network as a Detectron2 backbone, alone or under an FPN.

HRNetV2-W48 is BoxCaseg's published backbone; EfficientNet-lite0 serves small machines. The parameters keep timm's
names below ``net.``, which for HRNet are also the published ones.
"""

import difflib
from typing import Any

import timm
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from boxsup_d2.checkpoint.formats import grow_input_channels

_LEVEL_OF_STRIDE = {2: "res1", 4: "res2", 8: "res3", 16: "res4", 32: "res5"}


class TimmBackbone(Backbone):
    """Feature maps of a timm network.

    Output: dict of N x C x ceil(H / stride) x ceil(W / stride) maps, ``res2`` for stride 4 to ``res5`` for stride 32.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        out_features: list[str] | None = None,
        bn_momentum: float | None = None,
        freeze_bn: bool = False,
        in_channels: int = 3,
    ) -> None:
        """
        Args:
            name: timm model name, e.g. ``hrnet_w48`` or ``tf_efficientnet_lite0``.
            pretrained: let timm download its ImageNet weights.
            out_features: levels to return, of ``res1`` (stride 2) to ``res5`` (stride 32); None or empty for all of
                stride 4 and more.
            bn_momentum: of every batch norm; None keeps timm's.
            freeze_bn: replace batch norms by frozen ones.
            in_channels: channels of the input, the image's three last; with ``pretrained`` the others start with zero
                weights.

        Raises:
            ValueError: timm does not know the network, or it lacks one of ``out_features``, or pretrained weights take
                more channels.
            OSError: there are no such weights, or they cannot be downloaded.
        """
        super().__init__()
        if not timm.is_model(name):
            similar = ", ".join(difflib.get_close_matches(name, timm.list_models())) or "see timm.list_models()"
            raise ValueError(f"MODEL.TIMM.NAME '{name}' is not a timm model; similar ones: {similar}")
        # By default, the features of timm's HRNet are those of the classification head's convolutions.
        kwargs: dict[str, Any] = {"feature_location": ""} if name.startswith("hrnet") else {}
        kwargs["features_only"] = True
        if pretrained and in_channels < 3:
            raise ValueError(
                f"MODEL.TIMM.PRETRAINED: ImageNet's weights take 3 channels, and MODEL.PIXEL_MEAN has {in_channels}."
            )
        if pretrained and in_channels == 3:
            self.net = _pretrained(name, **kwargs)
        else:
            self.net = timm.create_model(name, in_chans=in_channels, **kwargs)
            if pretrained:
                _load_grown(self.net, _pretrained(name, **kwargs))
        if name.startswith("hrnet"):
            _use_bilinear_fusion(self.net)
        net_info: Any = self.net.feature_info
        strides, channels = net_info.reduction(), net_info.channels()
        positions = {_LEVEL_OF_STRIDE[s]: i for i, s in enumerate(strides) if s in _LEVEL_OF_STRIDE}
        wanted = list(out_features or [level for level in positions if level != "res1"])
        missing = [level for level in wanted if level not in positions]
        if missing:
            raise ValueError(
                f"timm model '{name}' has {sorted(positions)}, but MODEL.TIMM.OUT_FEATURES wants {missing}"
            )
        self._index = {level: positions[level] for level in wanted}
        self._out_features = wanted
        self._out_feature_channels = {level: channels[i] for level, i in self._index.items()}
        self._out_feature_strides = {level: strides[i] for level, i in self._index.items()}
        if bn_momentum is not None:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.momentum = bn_momentum
        if freeze_bn:
            self.net = freeze_batch_norm_2d(self.net)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.TIMM
        return {
            "name": node.NAME,
            "pretrained": node.PRETRAINED and not cfg.MODEL.WEIGHTS,
            "out_features": list(node.OUT_FEATURES),
            "bn_momentum": node.BN_MOMENTUM if node.BN_MOMENTUM >= 0 else None,
            "freeze_bn": node.FREEZE_BN,
            "in_channels": input_shape.channels,
        }

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Feature maps by level of N x C x H x W images (normalised, sides multiples of ``size_divisibility``)."""
        maps = self.net(image)
        return {level: maps[i] for level, i in self._index.items()}


def _pretrained(name: str, **kwargs: Any) -> nn.Module:
    """The network with its ImageNet weights."""
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except (OSError, RuntimeError) as error:  # nothing is reached, or timm knows of no weights
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise OSError(
            f"MODEL.TIMM.PRETRAINED: timm cannot load the weights of '{name}' ({reason}). Name a file of them by "
            "MODEL.WEIGHTS, or set MODEL.TIMM.PRETRAINED False to begin at random."
        ) from error


def _load_grown(net: nn.Module, pretrained: nn.Module) -> None:
    """Give ``net``, which takes more channels, the weights of an image network.

    timm would repeat the image's weights for the other channels and scale all of them.
    """
    ours, state = net.state_dict(), pretrained.state_dict()
    for name, value in state.items():
        if value.shape != ours[name].shape:
            state[name] = grow_input_channels(value, ours[name].shape[1])
    net.load_state_dict(state)


def _use_bilinear_fusion(net: nn.Module) -> None:
    """Make HRNet's fusion upsample bilinearly as the published segmentation HRNet does; timm's uses nearest."""
    for module in net.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """``MODEL.BACKBONE.NAME: build_timm_backbone``: the network of ``MODEL.TIMM``, ``res2`` ... ``res5``."""
    return TimmBackbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``MODEL.BACKBONE.NAME: build_timm_fpn_backbone``: the same under a feature pyramid, ``p2`` ... ``p6``."""
    return FPN(
        bottom_up=TimmBackbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
