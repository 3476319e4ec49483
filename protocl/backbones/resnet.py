"""ResNet-18 for small images, in full and in slim width."""

from __future__ import annotations

from torch import Tensor, nn

from protocl.backbones.base import Backbone
from protocl.backbones.build import BackboneConfig, refuse, require_images

FULL_WIDTH, SLIM_WIDTH = 64, 20


class SmallImageResNet18(nn.Module):
    """ResNet-18 whose stem suits 32x32 images: 3x3 convolution, stride 1, no max-pooling.

    Blocks and the names of all layers are torchvision's, so that its weights fit where the shapes
    do. Features are the global average ``(N, 8 * width)``.

    Args:
        channels: channels of the input.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, 8 * width)`` of images ``(N, C, H, W)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two basic blocks; a 1x1 convolution adapts the shortcut where the shape changes."""
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs)
    )


def build_resnet18(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """ResNet-18 with the CIFAR stem: 512 features at width 64.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, table 1; the stem is
    that of section 4.2.
    """
    return _build(config, input_shape, config.width or FULL_WIDTH)


def build_resnet18_slim(config: BackboneConfig, input_shape: tuple[int, ...]) -> Backbone:
    """The reduced ResNet-18 of GEM, a tenth of the weights: 160 features at width 20.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, 2017, section 5.2 ("three times less
    feature maps across all layers"); their code uses 20 maps in the first stage.
    """
    return _build(config, input_shape, config.width or SLIM_WIDTH)


def _build(config: BackboneConfig, input_shape: tuple[int, ...], width: int) -> Backbone:
    refuse(config, "pretrained")
    channels, _, _ = require_images(config, input_shape)
    return Backbone(
        SmallImageResNet18(channels, width),
        8 * width,
        architecture=f"resnet18(width={width}, stem=3x3)",
        image_size=config.image_size,
    )
