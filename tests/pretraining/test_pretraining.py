"""Training of an embedding: objectives, resuming, and weights that load elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from protocl.backbones import BackboneConfig, build_backbone, fingerprint
from protocl.cli.main import main
from protocl.data.augmentation.distortion import Distortion
from protocl.errors import ConfigError, DataError, DivergedError
from protocl.pretraining.cosine import CosineConfig
from protocl.pretraining.episodes import EpisodesConfig
from protocl.pretraining.run import PRETRAINING, Pretraining, pretrain, turned
from protocl.runner.context import RunContext
from protocl.runner.folders import open_run

SMALL = ["benchmark=digits", "benchmark.train_per_class=20", "backbone=conv4", "backbone.width=8"]


def config_of(tmp_path, *words: str):
    (config,) = PRETRAINING.load([*SMALL, f"output={tmp_path}", *words])
    return config


def start(config) -> Pretraining:
    return Pretraining(RunContext("pretraining", config, open_run(config)))


# -- objectives ---------------------------------------------------------------------------------


def test_cosine_loss_is_cross_entropy_of_scaled_cosines_less_the_margin():
    objective = CosineConfig(scale=7.0, margin=0.2).build(5, 3)
    features, targets = torch.randn(4, 5), torch.tensor([0, 2, 1, 1])
    cosines = functional.cosine_similarity(features[:, None], objective.vectors[None], dim=2)
    cosines = cosines - 0.2 * functional.one_hot(targets, 3)
    expected = functional.cross_entropy(7 * cosines, targets)
    torch.testing.assert_close(objective.loss(features, targets), expected)


def test_an_epoch_of_the_cosine_objective_has_every_sample_once():
    labels = torch.arange(6).repeat(4)
    objective = CosineConfig(batch_size=8).build(5, 6)
    batches = list(objective.batches(labels, torch.Generator().manual_seed(0)))
    assert len(batches) == objective.batches_per_epoch(labels) == 3
    assert torch.cat([rows for rows, _ in batches]).sort().values.tolist() == list(range(24))
    assert all(torch.equal(labels[rows], targets) for rows, targets in batches)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_episode_loss_is_the_formula_of_prototypical_networks(distance):
    config = EpisodesConfig(ways=3, shots=2, queries=4, distance=distance, temperature=0.5)
    features = torch.randn(3, 6, 5)
    losses = []
    for way in range(3):
        for query in features[way, 2:]:
            prototypes = [features[k, :2].mean(0) for k in range(3)]
            if distance == "euclidean":
                logits = [-(query - p).square().sum() / 0.5 for p in prototypes]
            else:
                logits = [functional.cosine_similarity(query, p, dim=0) / 0.5 for p in prototypes]
            losses.append(-torch.stack(logits).log_softmax(0)[way])
    loss = config.build(5, 3).loss(features.flatten(0, 1), torch.zeros(18, dtype=torch.int64))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_an_episode_has_its_classes_in_succession_and_no_sample_twice():
    labels = torch.arange(5).repeat(7)
    objective = EpisodesConfig(ways=3, shots=2, queries=4, episodes_per_epoch=9).build(8, 5)
    batches = list(objective.batches(labels, torch.Generator().manual_seed(0)))
    assert len(batches) == 9
    for rows, targets in batches:
        assert len(set(rows.tolist())) == 18
        by_way = targets.view(3, 6)
        assert (by_way == by_way[:, :1]).all()
        assert len(set(by_way[:, 0].tolist())) == 3


def test_an_episode_needs_enough_samples_and_classes():
    with pytest.raises(ConfigError, match="base classes"):
        EpisodesConfig(ways=9).build(5, 8)
    objective = EpisodesConfig(ways=2, shots=2, queries=2).build(5, 2)
    with pytest.raises(DataError, match="has 3 samples"):
        next(objective.batches(torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.Generator()))


# -- images -------------------------------------------------------------------------------------


def test_turning_is_by_quarter_turns_of_each_image():
    images, turns = torch.rand(5, 2, 6, 6), torch.tensor([3, 0, 1, 2, 1])
    expected = torch.stack(
        [torch.rot90(x, int(k), (1, 2)) for x, k in zip(images, turns, strict=True)]
    )
    assert torch.equal(turned(images, turns), expected)


def test_no_distortion_is_the_identity_and_elastic_moves_each_image_differently():
    images = torch.rand(3, 1, 12, 12)
    still = Distortion(degrees=0, shear=0, scale=0, shift=0)
    torch.testing.assert_close(still(images), images, atol=1e-5, rtol=0)
    same = images[:1].expand(3, -1, -1, -1)
    moved = Distortion(degrees=0, shear=0, scale=0, shift=0, elastic=0.1)(same)
    assert (moved[0] - moved[1]).abs().max() > 0.05
    assert moved.shape == images.shape


def test_a_shift_is_a_share_of_half_the_image():
    images = torch.zeros(64, 1, 21, 21)
    images[:, :, 10, 10] = 1
    moved = Distortion(degrees=0, shear=0, scale=0, shift=0.2)(images)
    places = moved.flatten(1).argmax(1)
    furthest = torch.maximum((places // 21 - 10).abs(), (places % 21 - 10).abs())
    assert int(furthest.max()) == 2  # 0.2 * 10.5 pixels


# -- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["cosine", "episodes"])
def test_training_learns_and_its_weights_load_elsewhere(tmp_path, objective):
    config = config_of(
        tmp_path, f"objective={objective}", "holdout=3", "epochs=6", "rotations=false",
        *(["objective.ways=7"] if objective == "episodes" else ["objective.batch_size=35"]),
    )  # fmt: skip
    folder = open_run(config)
    result = pretrain(config, folder)
    found = result["pretraining"]
    assert found["epochs"][-1]["loss"] < found["epochs"][0]["loss"]
    assert found["epochs"][-1]["accuracy"] > 1 / 3 + 0.2
    assert len(found["base_classes"]) == 7
    assert not set(found["base_classes"]) & set(found["held_out_classes"])
    backbone = BackboneConfig(
        name="conv4", width=8, checkpoint=str(folder / "backbone.safetensors")
    )
    built = build_backbone(backbone, (1, 8, 8), seed=5)
    assert fingerprint(built) == result["backbone"]["fingerprint"]


def test_an_interrupted_training_ends_at_the_same_weights(tmp_path):
    config = config_of(tmp_path, "epochs=3", "holdout=2")
    whole = pretrain(config, open_run(config))
    folder = open_run(config)

    def stop(progress):
        if progress.report is not None and progress.report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, folder, on_progress=stop)
    resumed = pretrain(config, folder)
    assert resumed["backbone"]["fingerprint"] == whole["backbone"]["fingerprint"]
    losses = [[e["loss"] for e in r["pretraining"]["epochs"]] for r in (resumed, whole)]
    assert losses[0] == losses[1]


def test_training_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    config = config_of(tmp_path, "epochs=1")
    pretrain(config, open_run(config))
    assert torch.equal(torch.rand(3), expected)


def test_whole_adds_the_test_samples_of_the_base_classes(tmp_path):
    without = start(config_of(tmp_path, "benchmark.base_classes=4"))
    whole = start(config_of(tmp_path, "benchmark.base_classes=4", "whole=true"))
    assert len(without.images) == 80
    assert len(whole.images) > 80
    assert len(whole.labels) == 4 * len(whole.images)
    assert int(whole.labels.max()) == 15


def test_the_command_says_where_the_weights_are(tmp_path, capsys):
    assert main(["pretrain", *SMALL, "epochs=1", f"output={tmp_path}", "name=digits"]) == 0
    assert "backbone.safetensors" in capsys.readouterr().err.replace("\n", "")
    assert len(list(tmp_path.glob("digits/*/backbone.safetensors"))) == 1


def test_too_many_classes_held_out_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holdout=10"):
        start(config_of(tmp_path, "holdout=10"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs=0", "epochs=0: expected at least 1"),
        ("lr=nan", "lr=nan: expected a number > 0"),
        ("warmup=2", "warmup=2.0: expected a share"),
        ("weight_decay=-1", "weight_decay=-1.0: expected a number >= 0"),
        ("distortion.degrees=nan", "distortion.degrees=nan: expected"),
        ("distortion.flip=2", "distortion.flip=2.0: expected a share"),
        ("objective.batch_size=0", "objective.batch_size=0: expected at least 1"),
        ("objective.label_smoothing=1", "objective.label_smoothing=1.0: expected"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, word, message):
    with pytest.raises(ConfigError, match=message):
        start(config_of(tmp_path, word))


def test_a_training_that_diverges_writes_no_weights(tmp_path):
    config = config_of(tmp_path, "epochs=3", "lr=1e30")
    with pytest.raises(DivergedError, match="lower lr"):
        pretrain(config, folder := open_run(config))
    assert not (folder / "backbone.safetensors").exists()


def test_a_mini_batch_of_one_sample_is_told_in_terms_of_its_setting(tmp_path):
    config = config_of(tmp_path, "epochs=1", "objective.batch_size=1")
    with pytest.raises(ConfigError, match=r"one sample.*give another objective\.batch_size"):
        pretrain(config, open_run(config))
