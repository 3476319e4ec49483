"""Pictures do not meet the identity unless somebody says so."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from protocl.backbones import BackboneConfig, build_backbone
from protocl.backbones.fit import fit_for
from protocl.config.compose import load
from protocl.federation.config.compose import load as load_federation
from protocl.runner.context import RunContext


@pytest.mark.parametrize("read", [load, load_federation])
def test_only_benchmarks_that_say_so_have_the_identity(read) -> None:  # type: ignore[no-untyped-def]
    more = ["strategy=slda"] if read is load else []
    stated = {"digits", "split_mnist", "split_fashion_mnist"}
    names = {"npz", "image_folder", "omniglot", *stated}
    if read is load:
        names |= {"split_cifar100", "table", "hf", "imagenet_r", "torchvision/DTD", "fashion_mnist"}
    found = {name: read([f"benchmark={name}", *more])[0].backbone.name for name in names}
    assert {name for name, backbone in found.items() if backbone == "identity"} == stated
    assert found.pop("image_folder") == "efficientnet_lite0"
    assert {found[name] for name in names - stated - {"image_folder"}} == {"auto"}
    for typed in ("identity", "conv4"):
        (config,) = read(["benchmark=omniglot", f"backbone={typed}", *more])
        assert config.backbone.name == typed


def test_auto_is_decided_by_the_shape_and_said(caplog: pytest.LogCaptureFixture) -> None:
    auto = BackboneConfig("auto")
    with caplog.at_level(logging.WARNING):
        assert fit_for(auto, (7,), "mine").name == "identity"
        assert fit_for(BackboneConfig("conv4"), (3, 8, 8), "mine").name == "conv4"
    assert caplog.text == ""
    assert fit_for(auto, (1, 8, 8), "mine").name == "efficientnet_lite0"
    assert "mine: its pictures are seen by backbone=efficientnet_lite0" in caplog.text
    assert auto.name == "auto"
    features = torch.randn(2, 7)
    assert torch.equal(build_backbone(auto, (7,), 0)(features), features)


def test_a_run_knows_its_backbone_once_it_has_seen_the_data(tmp_path: Path) -> None:
    x, y = np.zeros((4, 8, 8, 3), dtype=np.uint8), np.arange(4) % 2
    for name, samples in (("pictures", x), ("vectors", x[:, 0, :, 0].astype(np.float32))):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x_train=samples, y_train=y, x_test=samples, y_test=y)
        (config,) = load(["benchmark=npz", f"benchmark.path={path}", "strategy=slda"])
        run = RunContext("experiment", config, tmp_path)
        run.load_data()
        expected = {"pictures": "efficientnet_lite0", "vectors": "identity"}[name]
        assert run.config.backbone.name == expected
        assert config.backbone.name == "auto"
