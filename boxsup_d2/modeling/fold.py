"""Networks that will only predict, in the form that does so fastest: the same output, up to rounding."""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def fold_batch_norms(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """Fold every batch norm whose input is the output of a convolution; a quarter of a narrow network's time on a CPU.

    Which convolution feeds a batch norm is seen in one forward pass, not guessed from names or their order.

    Args:
        network: in evaluation mode; it is changed, and cannot be trained any more. The output of a folded convolution
            must go nowhere else than into its batch norm.
        inputs: an example of what it takes.

    Returns:
        ``network``, with the same output up to rounding.
    """
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    outputs: list[tuple[Tensor, nn.Conv2d]] = []  # kept, so that no later tensor is taken for one of them

    def convolved(conv: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> None:
        del args
        outputs.append((output, conv))

    def normalizes(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        conv = next((conv for output, conv in outputs if output is args[0]), None)
        if conv is not None:
            pairs[norm] = conv

    hooks = [m.register_forward_hook(convolved) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(normalizes) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and child in pairs:
                conv = pairs[child]
                fused = fuse_conv_bn_eval(conv, child)
                conv.weight, conv.bias = fused.weight, fused.bias
                setattr(parent, name, child.act if isinstance(child, BatchNormAct2d) else nn.Identity())
    return network


def pad_evenly(network: nn.Module) -> nn.Module:
    """Spare strided convolutions of TensorFlow's networks the copies that pad their inputs; 5 % of BoxMask's time.

    Args:
        network: on a CPU; it is changed, and can neither be trained nor given other weights any more.

    Returns:
        ``network``, with the same output.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame) and _EvenlyPadded.can_do(child):
                setattr(parent, name, _EvenlyPadded(child))
    return network


class _EvenlyPadded(nn.Module):
    """A convolution of stride 2 that pads as TensorFlow does.

    Maps of even sides get a pixel more at their ends than at their starts, which torch cannot do but in a copy. A
    kernel with a row and a column of zeros in front, padded by as much at either end, gives the same.
    """

    weight: Tensor

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv
        grown = F.pad(conv.weight.detach(), (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", grown, persistent=False)

    @staticmethod
    def can_do(conv: Conv2dSame) -> bool:
        height, width = conv.kernel_size
        return conv.stride == (2, 2) and conv.dilation == (1, 1) and height == width and height % 2 == 1 and height > 1

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            return self.conv(x)
        return F.conv2d(
            x, self.weight, self.conv.bias, stride=2, padding=self.conv.kernel_size[0] // 2, groups=self.conv.groups
        )
