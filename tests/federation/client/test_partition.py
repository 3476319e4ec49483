"""Samples are shared out completely, once, and as asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl.errors import ConfigError, DataError
from protocl.federation.client.partition import PartitionConfig, assign, schedule

LABELS = torch.arange(600) % 10


def classes_of(rows) -> set[int]:
    return set(LABELS[torch.from_numpy(rows)].tolist())


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["iid", "classes", "dirichlet"]),
    clients=st.integers(5, 30),
    seed=st.integers(0, 100),
)
def test_every_sample_has_one_owner(name, clients, seed):
    config = PartitionConfig(name, alpha=0.5)
    parts = assign(LABELS, clients, config, seed)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(600))
    again = assign(LABELS, clients, config, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_class_sets_have_the_size_asked_for():
    parts = assign(LABELS, 10, PartitionConfig("classes", classes_per_client=2), 0)
    assert [len(classes_of(part)) for part in parts] == [2] * 10
    assert set().union(*map(classes_of, parts)) == set(range(10))


@pytest.mark.parametrize(("overlap", "common"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_overlap_is_the_share_of_classes_in_common(overlap, common):
    config = PartitionConfig("classes", classes_per_client=4, overlap=overlap)
    if overlap == 1.0:
        with pytest.raises(ConfigError, match="leave 6 of 10 classes to nobody"):
            assign(LABELS, 5, config, 0)
        return
    parts = assign(LABELS, 5, config, 0)
    shared = set.intersection(*map(classes_of, parts))
    assert len(shared) == common


def test_small_alpha_is_more_uneven_than_large():
    def classes_held(alpha):
        parts = assign(LABELS, 10, PartitionConfig("dirichlet", alpha=alpha, min_samples=0), 0)
        return np.mean([len(classes_of(part)) for part in parts])

    assert classes_held(0.05) < 5 < classes_held(100.0)


def test_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "clients.json"
    path.write_text(json.dumps([[3, 1], [], [599]]))
    parts = assign(LABELS, 3, PartitionConfig("file", path=str(path)), 0)
    assert [part.tolist() for part in parts] == [[1, 3], [], [599]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1], [2]]", "has 2 clients; clients=3"),
        ("[[1], [1], [2]]", "a sample to two clients"),
        ("[[1], [600], [2]]", r"outside 0\.\.599"),
        ("[[1], [-1], [2]]", "outside"),
        ("{", "not a list"),
        ('[["a"], [], []]', "not a list"),
    ],
)
def test_file_that_does_not_fit_is_refused(tmp_path, content, message):
    path = tmp_path / "clients.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        assign(LABELS, 3, PartitionConfig("file", path=str(path)), 0)
    with pytest.raises(DataError, match="No such file"):
        assign(LABELS, 3, PartitionConfig("file", path=str(tmp_path / "absent")), 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PartitionConfig("clases"), "did you mean 'classes'"),
        (PartitionConfig("classes", classes_per_client=11), "expected 1 to 10"),
        (PartitionConfig("classes", classes_per_client=1), "7 of 10 classes to nobody"),
        (PartitionConfig("classes", overlap=1.5), "share in"),
        (PartitionConfig("dirichlet", alpha=0.0), "number > 0"),
        (PartitionConfig("dirichlet", min_samples=300), "cannot each have"),
        (PartitionConfig("dirichlet", alpha=1e-3, min_samples=200), "1000 draws"),
        (PartitionConfig("file"), "needs partition.path"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        assign(LABELS, 3, config, 0)


ROWS = np.arange(0, 600, 3)


@pytest.mark.parametrize("growth", ["none", "samples", "classes", "stream"])
def test_everything_arrives_once(growth):
    stages = [[0, 1], [2, 3, 4], [5, 6, 7, 8, 9]]
    parts = schedule(LABELS, ROWS, 6, growth, 0, stages)
    assert len(parts) == 6
    assert sorted(np.concatenate(parts).tolist()) == ROWS.tolist()


def test_growth_by_classes_brings_whole_classes():
    parts = schedule(LABELS, ROWS, 5, "classes", 0)
    sets = [classes_of(part) for part in parts]
    assert [len(s) for s in sets] == [2] * 5
    assert len(set.union(*sets)) == 10


def test_stream_brings_the_stages_in_order():
    parts = schedule(LABELS, ROWS, 6, "stream", 0, [[9, 0], [1, 2], [3]])
    assert [classes_of(part) for part in parts] == [{0, 9}, set(), {1, 2}, set(), {3}, set()]
    with pytest.raises(ConfigError, match="needs at least 3 rounds"):
        schedule(LABELS, ROWS, 2, "stream", 0, [[9, 0], [1, 2], [3]])


def test_unknown_growth_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'samples'"):
        schedule(LABELS, ROWS, 2, "sample", 0)


def test_partitioners_of_flwr_datasets_share_out_every_sample():
    pytest.importorskip("flwr_datasets", reason="needs the extra 'partitioners'")
    config = PartitionConfig(
        "flwr",
        partitioner="PathologicalPartitioner",
        options={"num_classes_per_partition": 2, "class_assignment_mode": "deterministic"},
    )
    parts = assign(LABELS, 10, config, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LABELS)))
    assert all(len(np.unique(LABELS.numpy()[part])) == 2 for part in parts)
    with pytest.raises(ConfigError, match=r"choose from|did you mean"):
        assign(LABELS, 5, PartitionConfig("flwr", partitioner="NoPartitioner"), seed=0)
