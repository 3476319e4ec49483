"""Graphs of adapted backbones: the numbers of torch, folded and not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from protocl.backbones import Backbone
from protocl.backbones.adaptation import adapt, find_adaptation, fold
from protocl.backbones.branches import two_branches
from protocl.backbones.build import BackboneConfig, build_backbone
from protocl.heads import NearestMean
from protocl.model import Network, export_onnx, export_program
from protocl.model.export import largest_difference

pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("timm", reason="the extra pretrained is not installed")

CLOSE = 1e-5
SHAPE = (1, 8, 8)
IMAGES = torch.randint(0, 256, (18, *SHAPE), generator=torch.Generator().manual_seed(0)).byte()


def plain() -> Backbone:
    return build_backbone(BackboneConfig("vit", width=64, image_size=8), SHAPE, seed=0).eval()


def adapted(name: str) -> Backbone:
    """A backbone that a session has moved, in the form that it has within the session."""
    torch.manual_seed(0)
    backbone = plain()
    for parameter in adapt(backbone, name):
        nn.init.normal_(parameter, std=0.3)
    return backbone.eval()


def network_of(backbone: nn.Module) -> Network:
    with torch.no_grad():
        features = backbone(IMAGES)
    head = NearestMean()
    head.fit(head.new_memory(features.shape[1]).update(features, torch.arange(18) % 3))
    return Network(backbone, head)


@pytest.mark.parametrize("name", ["lora:rank=4", "vpt_deep", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("ssf", "adapter", "vpt_shallow")
)])  # fmt: skip
def test_a_graph_has_the_numbers_of_the_adapted_backbone(name: str) -> None:
    network = network_of(adapted(name))
    graph = export_program(network, IMAGES[:1]).module()
    with torch.no_grad():
        for number in (1, 2, 17):
            torch.testing.assert_close(graph(IMAGES[:number]), network(IMAGES[:number]))


def test_folded_matrices_are_in_the_weights_and_nowhere_else(tmp_path: Path) -> None:
    backbone = adapted("lora:rank=4")
    with torch.no_grad():
        before = backbone(IMAGES)
    fold(backbone, find_adaptation(backbone, "lora:rank=4"))
    assert torch.equal(backbone(IMAGES).detach(), before)
    assert not torch.allclose(before, plain()(IMAGES).detach(), atol=0.1)
    assert list(backbone.state_dict()) == list(plain().state_dict())
    network = network_of(two_branches(plain(), backbone, 64, True))
    path = export_onnx(network, IMAGES[:1], tmp_path / "model.onnx")
    for number in (1, 18):
        assert largest_difference(network, IMAGES[:number], path) <= CLOSE
