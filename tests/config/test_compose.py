"""Configurations: groups, presets, overrides, sweeps, and the errors about them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from protocl.config.arguments import expand, split_commas
from protocl.config.compose import compose, load, to_yaml
from protocl.config.presets import parse
from protocl.errors import ConfigError
from protocl.runner.experiment import EXPERIMENT
from tests import third_party


@pytest.fixture(autouse=True)
def _acme(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("site")
    third_party.install(folder)
    monkeypatch.syspath_prepend(folder)


def one(*arguments: str):
    (config,) = load(["strategy=acme_replay", *arguments])
    return config


def test_a_third_partys_strategy_needs_no_yaml_and_has_its_own_keys():
    config = one("strategy.mem_size=7")
    assert config.strategy.name == "acme_replay"
    assert config.strategy.mem_size == 7
    assert config.strategy.train_epochs == 2
    assert config.name == "digits-acme_replay"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("strategy.lr=1e-3", "lr", 0.001),
        ("strategy.lr=1", "lr", 1.0),
        ("strategy.mixture=0.5", "mixture", 0.5),
        ("strategy.mixture=1", "mixture", 1.0),
        ("strategy.mixture=auto", "mixture", "auto"),
        ("strategy.window=[0.2,1]", "window", (0.2, 1.0)),
        ("strategy.layers=[3,1,2]", "layers", [3, 1, 2]),
        ("strategy.layers=null", "layers", None),
    ],
)
def test_values_take_the_type_of_their_key(text: str, key: str, value: object):
    found = getattr(one(text).strategy, key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["strategy.mem_sise=1"], "unknown key strategy.mem_sise: did you mean strategy.mem_size?"),
        (["mem_size=1"], "unknown key mem_size: did you mean strategy.mem_size?"),
        (["sead=1"], "unknown key sead: did you mean seed?"),
        (["benchmark.n_experience=2"], "did you mean benchmark.n_experiences?"),
        (["strategies.lr=2"], "did you mean strategy.lr?"),
        (["seed=abc"], "seed=abc: expected int"),
        (["strategy.lr=fast"], "strategy.lr=fast: expected float"),
        (["strategy.window=[1,2,3]"], "strategy.window=[1, 2, 3]: expected tuple[float, float]"),
        (["strategy.layers=3"], "strategy.layers=3: expected list[int] | None"),
        (["strategy.mixture=true"], "strategy.mixture=True: expected float | str"),
        (["strategy=napa_vq", "strategy.temperature=1"], "did you mean strategy.loss.temperature?"),
        (["strategy=pass", "strategy.drift_sigma=1"], "did you mean strategy.drift.sigma?"),
        (["strategy=napa_vq", "strategy.loss.k=0"], "strategy.loss.k=0: expected at least 1"),
        (["strategy=napa_vq", "strategy.loss.mix=[1,0]"], "expected two shares, 0 <= least"),
        (["strategy=napa_vq", "strategy.loss=3"], "expected settings of its own: strategy.loss.k,"),
        (["strategy=prd", "strategy.loss.relation=both"], "=both: expected paper or released"),
        (["strategy=prd", "strategy.loss=paper"], "strategy.loss=paper: expected settings of its"),
        (["strategy=slda", "strategy.head.shrinkage=2"], "strategy.head.shrinkage=2.0: expected '"),
        (["strategy=slda", "strategy.head.shrinkage=no"], "expected a number or auto"),
        (["strategy=slda", "strategy.sums.step=0"], "strategy.sums.step=0.0: expected a number >"),
        (["strategy=slda", "strategy.sums.step=inf"], "strategy.sums.step=inf: expected a number"),
        (
            ["strategy=napa_vq", "strategy.plugin.code_lr_epochs=0"],
            "strategy.plugin.code_lr_epochs=0:",
        ),
        (["strategy=pass", "strategy.drift=up"], "method=up: expected none, sdc, ldc, dpcr or adc"),
        (["strategy=naive", "strategy.answer=trees"], "unknown head 'trees'"),
        (["strategy=fetril", "strategy.head=bayesian"], "expected lda or ridge"),
        (["seed=-1"], "expected 0 <= seed"),
        (["jobs=0"], "jobs=0: expected at least 1"),
        (["strategy.train_epochs=-1"], "strategy.train_epochs=-1: expected at least 0"),
        (["strategy.train_mb_size=0"], "strategy.train_mb_size=0: expected at least 1"),
        (["strategy.eval_mb_size=-1"], "strategy.eval_mb_size=-1: expected at least 1"),
        (["strategy.lr=0"], "strategy.lr=0.0: expected a number > 0"),
        (["strategy.lr=nan"], "strategy.lr=nan: expected a number > 0"),
        (["strategy.momentum=1"], "strategy.momentum=1.0: expected a number in [0, 1)"),
        (["strategy.weight_decay=inf"], "strategy.weight_decay=inf: expected a number >= 0"),
        (["jobs=1,2"], "it cannot be swept"),
        (["seed"], "'seed' is not of the form key=value"),
        (["benchmark=digit"], "unknown benchmark 'digit': did you mean 'digits'?"),
        (["backbone=conv5"], "unknown backbone 'conv5': did you mean 'conv4'?"),
        (["strategy.name=other"], "write strategy=other"),
        (["name=../elsewhere"], "expected a folder name below output"),
        (["name=${nowhere}"], "does not resolve"),
        (["benchmark.class_order=[1"], "the value is not readable"),
        (["experiment=nothing"], "unknown experiment 'nothing'"),
        (["benchmark=absent.yaml"], "there is no such file"),
    ],
)
def test_errors_say_what_was_expected(arguments: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        one(*arguments)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("recipe", "head", "settings"),
    [
        ("klda", "klda_ensemble", {"members": 1, "dim": 2000}),
        ("anacp", "anacp", {}),
    ],
)
def test_published_names_of_heads_are_strategies(recipe: str, head: str, settings: dict[str, int]):
    config = one(f"strategy={recipe}")
    assert config.strategy.head.name == head
    assert settings.items() <= vars(config.strategy.head).items()
    assert one(f"strategy={recipe}", "strategy.head.seed=3").strategy.head.seed == 3
    assert one(f"strategy={recipe}", "strategy.head=lda").strategy.head.name == "lda"


def test_a_strategy_must_be_named():
    with pytest.raises(ConfigError, match="strategy is not set: add strategy=NAME"):
        load(["seed=1"])


def test_a_misspelt_key_is_told_before_the_strategy_that_it_was_to_name():
    with pytest.raises(ConfigError, match=r"strateg\b.*did you mean strategy\?"):
        load(["benchmark=digits", "strateg=slda"])


def test_a_broken_registration_is_explained():
    with pytest.raises(ConfigError, match="acme_continual:Missing, which cannot be imported"):
        load(["strategy=acme_broken"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("{a: 1, b: [2, 3]}", ["{a: 1, b: [2, 3]}"]),
        ("", [""]),
    ],
)
def test_only_bare_commas_separate(text: str, parts: list[str]):
    assert split_commas(text) == parts


def test_a_sweep_is_the_product_in_the_order_typed():
    configs = load(["strategy=acme_replay", "strategy.mem_size=10,20", "seed=1,2"])
    assert [(c.strategy.mem_size, c.seed) for c in configs] == [(10, 1), (10, 2), (20, 1), (20, 2)]
    assert [
        c.benchmark.class_order
        for c in load(["strategy=acme_replay", "benchmark.class_order=[1,0],[0,1]"])
    ] == [[1, 0], [0, 1]]


def test_expand_of_nothing_is_one_run_with_defaults():
    assert expand({}) == [{}]


def test_a_preset_is_overruled_key_by_key(tmp_path: Path):
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        "name: mine/${strategy.name}\n"
        "benchmark: digits\n"
        "benchmark.n_experiences: 2\n"
        "strategy: acme_replay\n"
        "strategy.mem_size: 11\n"
        "sweep: {seed: [1, 2, 3]}\n"
    )
    configs = load([f"experiment={preset}"])
    assert [c.seed for c in configs] == [1, 2, 3]
    assert {(c.name, c.strategy.mem_size, c.benchmark.n_experiences) for c in configs} == {
        ("mine/acme_replay", 11, 2)
    }
    (changed,) = load([f"experiment={preset}", "seed=7", "strategy.mem_size=12"])
    assert (changed.seed, changed.strategy.mem_size) == (7, 12)


def test_picking_a_group_anew_drops_the_presets_keys_of_it(tmp_path: Path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("strategy: acme_broken\nstrategy.no_such_key: 1\nseed: 3\n")
    (config,) = load([f"experiment={preset}", "strategy=acme_replay"])
    assert (config.strategy.name, config.seed) == ("acme_replay", 3)


def test_picking_among_the_presets_parts_keeps_its_keys(tmp_path: Path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("strategy.lr: 0.5\nsweep: {strategy: [naive, acme_replay, slda]}\n")
    configs = load([f"experiment={preset}", "strategy=acme_replay,naive"])
    assert [(c.strategy.name, c.strategy.lr) for c in configs] == [
        ("acme_replay", 0.5),
        ("naive", 0.5),
    ]
    mixed = load([f"experiment={preset}", "strategy=naive,replay"])
    assert 0.5 not in {c.strategy.lr for c in mixed}
    saved = tmp_path / "saved.yaml"
    saved.write_text("strategy: {name: naive, lr: 0.5}\n")
    for pick, kept in (("naive", True), ("slda", False)):
        (config,) = load([f"experiment={saved}", f"strategy={pick}"])
        assert (config.strategy.lr == 0.5) == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n- 2\n", "expected 'key: value' lines"),
        ("a: [1\n", "is not readable as YAML"),
        ("sweep: {seed: 3}\n", "sweep.seed is 3; expected a list"),
        ("sweep: {strategy: {lr: 3}}\n", "sweep.strategy.lr is 3; expected a list"),
        ("sweep: [seed]\n", "sweep is ['seed']; expected keys with a list"),
        ("strategy: {name: acme_replay, mem_sise: 3}\n", "did you mean strategy.mem_size?"),
    ],
)
def test_a_bad_preset_is_named(tmp_path: Path, content: str, message: str):
    preset = tmp_path / "bad.yaml"
    preset.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load([f"experiment={preset}"])
    assert message in str(caught.value)


def test_a_group_file_of_the_users_own(tmp_path: Path):
    mine = tmp_path / "fast.yaml"
    mine.write_text("name: acme_replay\nlr: 0.5\n")
    (config,) = load([f"strategy={mine}"])
    assert (config.strategy.name, config.strategy.lr) == ("acme_replay", 0.5)


def test_the_saved_configuration_is_the_same_configuration(tmp_path: Path):
    config = one("strategy.window=[0.5,1]", "benchmark.class_order=[3,1,0,2]", "seed=5")
    assert EXPERIMENT.from_yaml(to_yaml(config)) == config
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load([f"experiment={file}"]) == [config]
    assert [asdict(c)["seed"] for c in load([f"experiment={file}", "seed=6,7"])] == [6, 7]


def test_timm_models_are_named_under_their_family():
    assert one("backbone=timm/resnet18").backbone.name == "timm/resnet18"


def test_parse_leaves_compose_to_check():
    assert parse(["nonsense=1"]) == {"nonsense": [1]}
    with pytest.raises(ConfigError, match="unknown key nonsense"):
        compose({"strategy": "acme_replay", "nonsense": 1})


@pytest.mark.parametrize(
    ("words", "known", "unknown", "advice"),
    [
        ("strategy=slda,ranpac strategy.head.projection=500", "strategy=ranpac", "strategy=slda",
         "'strategy=ranpac strategy.head.projection=500'"),
        ("strategy=ranpac,naive,slda strategy.head.projection=5,7", "strategy=ranpac",
         "strategy=naive' and 'strategy=slda", "'strategy=ranpac strategy.head.projection=5,7'"),
        ("strategy=frozen strategy.head=ridge,lda strategy.head.shrinkage=0.1",
         "strategy.head=lda", "strategy.head=ridge", "'strategy.head=lda strategy.head.shrinkage="),
        ("strategy.name=fetril,slda strategy.svm_c=2", "strategy.name=fetril", "strategy.name=slda",
         "'strategy.name=fetril strategy.svm_c=2'"),
        # Each of the two keys is unknown to the other.
        ("strategy=slda,ranpac strategy.head.shrinkage=0.1 strategy.head.projection=5",
         "strategy=ranpac", "strategy=slda", "'strategy=ranpac strategy.head.projection=5'"),
    ],
)  # fmt: skip
def test_a_key_that_some_of_a_sweep_have_is_refused_with_who_has_it(
    words: str, known: str, unknown: str, advice: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(words.split())
    message = str(caught.value)
    assert f"is a key of '{known}', but not of '{unknown}'" in message
    assert advice in message


def test_a_key_that_nobody_in_a_sweep_has_is_refused_as_ever() -> None:
    for sweep in ("strategy=slda,ranpac", "strategy=slda seed=1,2"):
        with pytest.raises(ConfigError, match=r"unknown key strategy\.head\.projektion"):
            load([*sweep.split(), "strategy.head.projektion=1"])
    with pytest.raises(ConfigError, match=r"choose from strategy\.head\.shrinkage, "):
        load(["strategy=slda", "strategy.head.projection=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("slda strategy.head=ridge", "fixed head, lda; .*strategy=frozen strategy.head=ridge"),
        ("slda strategy.head.name=ridge", "fixed head, lda; .*strategy=frozen strategy.head=ridge"),
        ("slda strategy.head=lda", "has this head anyway; leave it out"),
        ("fecam strategy.head=lda", "fixed head, mahalanobis; .*strategy=frozen strategy.head=lda"),
        ("ranpac strategy.head=lda", "has a fixed head, ridge; .*strategy=frozen"),
        ("simplecil strategy.head=lda", "has a fixed head, nearest_mean; .*strategy=frozen"),
        ("nearest_mean strategy.head=lda", "has a fixed head, nearest_mean; .*strategy=frozen"),
        ("aper strategy.head=lda", "has a fixed head, nearest_mean; .*strategy=frozen"),
        ("naive strategy.head=lda", "has no head; strategy.answer=NAME puts one"),
        ("naive strategy.head.shrinkage=1", "has no head; strategy.answer=NAME puts one"),
        ("napa_vq strategy.head=lda", "'napa_vq' has no head to set; strategy=frozen strategy.h"),
        ("avalanche_slda strategy.head=lda", "'avalanche_slda' has no head to set"),
    ],
)
def test_a_head_that_a_strategy_does_not_offer_is_refused_with_what_to_type(
    words: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(f"strategy={words}".split())


@pytest.mark.parametrize(
    "sweep",
    ["strategy.head.shrinkage: [0.1, auto]", "strategy: {head: {shrinkage: [0.1, auto]}}"],
)
def test_the_sweep_of_a_preset_takes_nested_keys(tmp_path: Path, sweep: str) -> None:
    preset = tmp_path / "über all.yaml"
    preset.write_text(f"strategy: {{name: slda, head: {{shrinkage: 0.5}}}}\nsweep: {{{sweep}}}\n")
    configs = load([f"experiment={preset}"])
    assert [c.strategy.head.shrinkage for c in configs] == [0.1, "auto"]  # type: ignore[attr-defined]
    typed = load([f"experiment={preset}", "strategy.head.shrinkage=0.2"])
    assert [c.strategy.head.shrinkage for c in typed] == [0.2]  # type: ignore[attr-defined]


def test_presets_of_a_federation_sweep_too(tmp_path: Path) -> None:
    from protocl.federation.config.compose import load as load_federation

    preset = tmp_path / "mine.yaml"
    preset.write_text("clients: 4\nsweep: {method.head: [lda, ridge], rounds: [1, 2]}\n")
    configs = load_federation([f"federation={preset}"])
    found = [(c.method.head.name, c.federation.rounds) for c in configs]  # type: ignore[attr-defined]
    assert found == [("lda", 1), ("lda", 2), ("ridge", 1), ("ridge", 2)]


def test_a_configuration_of_before_is_refused_with_all_its_keys_and_the_present_ones() -> None:
    golden = Path(__file__).parents[1] / "golden" / "results_v1"
    with pytest.raises(ConfigError) as caught:
        load([f"experiment={golden / 'experiment' / 'config.yaml'}"])
    for old, new in {
        "adapt": "session.adapt", "adapt_classifier": "session.classifier", "step": "sums.step",
        "two_branches": "session.two_branches", "exact": "sums.exact", "priors": "head.priors",
        "normalize_branches": "session.normalize_branches", "shrinkage": "head.shrinkage",
    }.items():  # fmt: skip
        message = f"unknown key strategy.{old}: did you mean strategy.{new}?"
        assert message in str(caught.value)
