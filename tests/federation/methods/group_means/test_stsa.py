"""STSA and STSA-E on digits that arrive in a stream."""

from __future__ import annotations

import pytest

from protocl.errors import ConfigError
from protocl.federation.config.compose import load
from protocl.federation.runner.run import run_federation
from protocl.runner.folders import open_run

WORDS = [
    "federation=digits_stream", "clients=4", "rounds=6", "method.training_rounds=1",
    "method.head.projection=200", "method.width=32",
]  # fmt: skip


@pytest.mark.parametrize("name", ["stsa", "stsa_e"])
def test_a_stream_is_learned_and_means_are_a_fraction_of_the_bytes(tmp_path, name):
    strength = ["method.head.regularization=1000"] if name == "stsa_e" else []
    (config,) = load([*WORDS, *strength, f"method={name}", f"output={tmp_path}"])
    result = run_federation(config, open_run(config))
    assert result["metrics"]["last_accuracy"] > 0.75
    exchanged = result["federation"]["rounds"][2]["bytes_up"]
    moment = 4 * 200 * 201 / 2 * 4  # of four clients, as float32
    assert exchanged < moment if name == "stsa_e" else exchanged > moment


def test_what_means_do_not_tell_is_refused(tmp_path):
    (config,) = load([
        "federation=digits_stream", "method=stsa_e", "method.head=mahalanobis", "rounds=6",
        f"output={tmp_path}",
    ])  # fmt: skip
    with pytest.raises(ConfigError, match="one covariance for all classes"):
        run_federation(config, open_run(config))
