"""The classifier: scikit-learn's own checks, its tools and peers, and what only sums can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from protocl import PrototypeClassifier
from protocl.backbones import BackboneConfig
from protocl.errors import ConfigError, DataError
from protocl.heads import BayesianPrototypes, LinearDiscriminant, Mahalanobis, NearestMean, Ridge

X, Y = load_digits(return_X_y=True)
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


MADE_FOR_NETWORKS = {
    "check_classifiers_train": "Tukey's transform of two blobs near zero costs more than a sixth",
    "check_decision_proba_consistency": "takes negative features although the tag excludes them",
}
"""What FeCAM with its published settings does not pass, and why."""


@pytest.mark.parametrize(
    ("head", "options", "expected"),
    [
        ("nearest_mean", {}, {}),
        ("lda", {}, {}),
        ("ridge", {}, {}),
        ("mahalanobis", {}, MADE_FOR_NETWORKS),
        ("mahalanobis", {"tukey": None, "covariance": "shared"}, {}),
        ("bayesian", {}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # data of one sample a class, constants, far offsets
def test_scikit_learn_s_own_checks(
    head: str, options: dict[str, Any], expected: dict[str, str]
) -> None:
    results = check_estimator(
        PrototypeClassifier(head, head_options=options),
        expected_failed_checks=expected,
        on_fail=None,
    )
    assert len(results) > 40
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)
    assert {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"} == {}


class TestPeers:
    @pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
    def test_answers_are_those_of_scikit_learn(self, load: Any) -> None:
        features, labels = load(return_X_y=True)
        features = StandardScaler().fit_transform(features)[:, np.ptp(features, 0) > 0]
        train, test, y, _ = train_test_split(features, labels, random_state=0)
        pairs = [
            ("nearest_mean", {}, NearestCentroid()),
            (
                "lda",
                {"shrinkage": 0.1, "target": "scaled", "priors": "empirical"},
                LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
            ),
            ("ridge", {"regularization": 1.0}, RidgeClassifier(alpha=1.0, fit_intercept=False)),
        ]
        for name, options, peer in pairs:
            ours = PrototypeClassifier(name, head_options=options).fit(train, y)
            expected = peer.fit(train, y).predict(test)
            # RidgeClassifier codes labels as -1 and 1, the head as 0 and 1: another offset.
            least = 1.0 if name != "ridge" else 0.9
            assert np.mean(ours.predict(test) == expected) >= least, name


class TestTools:
    def test_a_grid_over_heads_and_their_settings(self) -> None:
        grid = GridSearchCV(
            PrototypeClassifier("lda"),
            [{"head": ["nearest_mean"]}, {"head": ["lda"], "head__shrinkage": [0.9, 0.1]}],
            cv=3,
        ).fit(X, Y)
        assert grid.best_params_ == {"head": "lda", "head__shrinkage": 0.1}
        assert cross_val_score(grid.best_estimator_, X, Y, cv=3).mean() > 0.9

    def test_a_head_as_an_object_takes_settings_too(self) -> None:
        known = PrototypeClassifier(LinearDiscriminant(0.5)).set_params(head__shrinkage=0.1)
        assert known.head.shrinkage == 0.1
        assert known.get_params()["head__target"] == "identity"
        twin = clone(known)
        assert twin.head is not known.head
        assert twin.get_params()["head__shrinkage"] == 0.1

    @pytest.mark.parametrize(
        "head",
        [
            NearestMean("cosine", normalize_input=True),
            LinearDiscriminant("auto"),
            Mahalanobis((0.5, 0.0), tukey=None, covariance="low_rank", rank=3),
            Ridge(100, seed=3, regularization=2.0),
            BayesianPrototypes(noise=0.3),
        ],
        ids=lambda head: type(head).__name__,
    )
    def test_settings_of_every_head_survive_a_clone(self, head: Any) -> None:
        assert clone(head).get_params() == head.get_params()
        with pytest.raises(ValueError, match="no setting 'colour': choose from"):
            head.set_params(colour=1)

    def test_a_pipeline_and_joblib(self, tmp_path: Any) -> None:
        pipeline = make_pipeline(StandardScaler(), PrototypeClassifier("ridge")).fit(X, NAMES[Y])
        joblib.dump(pipeline, tmp_path / "model.joblib")
        again = joblib.load(tmp_path / "model.joblib")
        assert (again.predict(X) == pipeline.predict(X)).all()
        assert again.predict_proba(X[:5]).tolist() == pipeline.predict_proba(X[:5]).tolist()

    def test_a_refused_setting_leaves_the_head_as_it_was(self) -> None:
        head = LinearDiscriminant(0.5)
        with pytest.raises(ValueError, match="shrinkage=2"):
            head.set_params(shrinkage=2)
        assert head.shrinkage == 0.5


class TestSums:
    @settings(max_examples=20, deadline=None)
    @given(
        cuts=st.lists(st.integers(0, 299), max_size=4),
        seed=st.integers(0, 2**31),
        exact=st.booleans(),
    )
    def test_portions_in_any_order_are_the_whole(
        self, cuts: list[int], seed: int, exact: bool
    ) -> None:
        order = np.random.default_rng(seed).permutation(300)
        parts = np.split(order, sorted(cuts))
        whole = PrototypeClassifier("lda", exact=exact).fit(X[:300], NAMES[Y[:300]])
        portions = PrototypeClassifier("lda", exact=exact)
        for part in parts:
            if len(part):
                portions.partial_fit(X[part], NAMES[Y[part]])
        assert portions.classes_.tolist() == whole.classes_.tolist()
        np.testing.assert_allclose(
            portions.decision_function(X[300:320]),
            whole.decision_function(X[300:320]),
            rtol=0 if exact else 1e-9,
            atol=0 if exact else 1e-9,
        )

    def test_two_that_learned_apart_merge_by_name(self) -> None:
        first, second = Y < 6, Y > 3
        a = PrototypeClassifier("lda", exact=True).fit(X[first], NAMES[Y[first]])
        b = PrototypeClassifier("lda", exact=True).fit(X[second], NAMES[Y[second]])
        both, before = a + b, a.decision_function(X[:9])
        whole = PrototypeClassifier("lda", exact=True)
        whole.fit(np.vstack([X[first], X[second]]), np.hstack([NAMES[Y[first]], NAMES[Y[second]]]))
        assert (both.decision_function(X) == whole.decision_function(X)).all()
        assert (a.decision_function(X[:9]) == before).all()

    @pytest.mark.parametrize("names", [NAMES, np.arange(10), np.arange(10) - 5])
    def test_forgotten_is_as_never_learned(self, names: Any) -> None:
        kept = Y != 3
        without = PrototypeClassifier("lda", exact=True).fit(X[kept], names[Y[kept]])
        known = PrototypeClassifier("lda", exact=True).fit(X, names[Y])
        known.forget(X[~kept], names[Y[~kept]])
        assert known.classes_.tolist() == without.classes_.tolist()
        assert (known.decision_function(X) == without.decision_function(X)).all()
        named = PrototypeClassifier("lda", exact=True, forgettable=True).fit(X, names[Y])
        named.forget(classes=[names[3]])
        assert (named.decision_function(X) == without.decision_function(X)).all()

    def test_a_class_that_comes_later_is_answered(self) -> None:
        known = PrototypeClassifier().partial_fit(X[Y < 9], Y[Y < 9], classes=range(10))
        assert known.classes_.tolist() == list(range(9))
        some = np.random.default_rng(0).permutation(np.flatnonzero(Y == 9))
        known.partial_fit(X[some[:5]], Y[some[:5]])
        assert (known.predict(X[some[5:]]) == 9).mean() > 0.5


class TestInputs:
    @pytest.mark.parametrize(
        "labels", [NAMES[Y], NAMES[Y].astype(object), Y, Y.astype(np.uint8), Y.astype(float), Y > 4]
    )
    def test_labels_come_back_as_they_were(self, labels: Any) -> None:
        known = PrototypeClassifier("lda").fit(X, labels)
        assert known.classes_.tolist() == np.unique(labels).tolist()
        assert known.predict(X).dtype == np.unique(labels).dtype
        assert known.score(X, labels) > 0.8

    def test_tensors_are_as_good_as_arrays(self) -> None:
        arrays = PrototypeClassifier("lda").fit(X, Y)
        tensors = PrototypeClassifier("lda").fit(torch.tensor(X), torch.tensor(Y))
        assert (arrays.decision_function(X) == tensors.decision_function(torch.tensor(X))).all()
        half = PrototypeClassifier("lda").fit(torch.tensor(X, dtype=torch.bfloat16), Y)
        assert half.score(X, Y) > 0.9

    def test_labels_of_another_kind_are_refused(self) -> None:
        known = PrototypeClassifier().fit(X, NAMES[Y])
        with pytest.raises(TypeError, match="labels are numbers, those learned before are texts"):
            known.partial_fit(X, Y)
        with pytest.raises(TypeError, match="expected labels of one type"):
            PrototypeClassifier().fit(X[:3], np.array(["a", 2, None], dtype=object))

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("other", [np.float64, np.int8, np.uint64])
    def test_numbers_of_another_type_are_the_same_labels(self, sign: int, other: Any) -> None:
        labels = sign * (Y % 2 + 1)
        if sign < 0 and other is np.uint64:
            return
        known = PrototypeClassifier("lda", exact=True).fit(X[:300], labels[:300])
        known.partial_fit(X[300:], labels[300:].astype(other))
        whole = PrototypeClassifier("lda", exact=True).fit(X, labels)
        assert known.classes_.dtype == labels.dtype
        assert (known.predict_proba(X) == whole.predict_proba(X)).all()
        known.forget(X[:9], labels[:9].astype(other))

    def test_large_numbers_stay_whole(self) -> None:
        labels = Y + 10**17
        known = PrototypeClassifier().fit(X, labels).partial_fit(X, labels.astype(np.uint64))
        assert known.classes_.tolist() == [10**17 + i for i in range(10)]
        with pytest.raises(ValueError, match="2\\^63 or more"):
            known.fit(X, Y.astype(np.uint64) + np.uint64(2**63))
        with pytest.raises(ValueError, match="do not fit uint8"):
            PrototypeClassifier().fit(X, Y.astype(np.uint8)).partial_fit(X, Y + 300)
        assert known.score(X, labels) > 0.8

    def test_a_failed_fit_leaves_what_was_known(self) -> None:
        known = PrototypeClassifier("lda", exact=True).fit(X, Y)
        before = known.decision_function(X)
        for samples, labels in ((X[:, :5], Y.astype("datetime64[D]")), (X * 1e12, Y)):
            with pytest.raises((TypeError, ValueError, OverflowError)):
                known.fit(samples, labels)
        assert (known.decision_function(X) == before).all()
        never = PrototypeClassifier("lda")
        with pytest.raises(TypeError):
            never.fit(X, np.array([b"x", b"y"])[Y % 2])
        for ask in (never.predict, lambda x: never.forget(x, Y), lambda x: never.merge(known)):
            with pytest.raises(NotFittedError):
                ask(X)

    def test_other_heads_do_not_merge(self) -> None:
        for head, options in (("ridge", {}), ("lda", {"shrinkage": 0.5})):
            other = PrototypeClassifier(head, head_options=options).fit(X, Y)
            with pytest.raises(ValueError, match="heads differ"):
                PrototypeClassifier("lda").fit(X, Y).merge(other)

    def test_samples_may_be_read_only_and_texts_of_numpy(self, recwarn: Any) -> None:
        fixed = X.copy()
        fixed.flags.writeable = False
        labels = np.array([np.str_(name) for name in NAMES[Y]], dtype=object)
        assert PrototypeClassifier("lda").fit(fixed, labels).score(fixed, labels) > 0.9
        assert not [w for w in recwarn if "writable" in str(w.message)]

    def test_what_cannot_be_forgotten_is_said(self) -> None:
        known = PrototypeClassifier("lda", forgettable=False).fit(X, Y)
        with pytest.raises(ValueError, match="either X and y, or classes"):
            known.forget()
        with pytest.raises(KeyError, match="classes \\[11\\] are not known"):
            known.forget(classes=[11])
        with pytest.raises(TypeError, match="labels are texts, those learned before are numbers"):
            known.forget(classes=["3"])
        with pytest.raises(ValueError, match="forgettable=True"):
            known.forget(classes=[3])
        assert known.score(X, Y) > 0.9

    def test_a_head_that_is_none_is_refused_at_fit(self) -> None:
        with pytest.raises(ConfigError, match="unknown head 'ldaa': did you mean 'lda'"):
            PrototypeClassifier("ldaa").fit(X, Y)
        for head in (3, None, Ridge):
            with pytest.raises(ConfigError, match="expected the name of a head, or a head"):
                PrototypeClassifier(head).fit(X, Y)
        with pytest.raises(ConfigError, match="shrinkage"):
            PrototypeClassifier("lda", head_options={"shrinkage": 3}).fit(X, Y)


class TestPictures:
    """Samples as people have them."""

    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
        root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(2)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            turned = Image.Exif()
            turned[0x0112] = 6  # orientation: a camera turned to the right
            Image.fromarray(pixels).save(root / f"{i}.png", exif=turned if i % 2 else None)
        return sorted(root.iterdir())

    @pytest.fixture(scope="class")
    def known(self, files: list[Path]) -> PrototypeClassifier:
        config = BackboneConfig(name="conv4", width=4, image_size=16)
        return PrototypeClassifier(backbone=config, exact=True).fit(files, list("ababab"))

    def test_of_every_form_are_the_same(self, known: PrototypeClassifier, files: Any) -> None:
        expected = known.scores(files)
        column = pandas_like(files)
        opened = [Image.open(file) for file in files]  # a camera that was turned is turned back
        for samples in (opened, iter(files), np.array(list(map(str, files))), column):
            np.testing.assert_array_equal(known.scores(samples), expected)
        for one in (files[1], opened[1], str(files[1])):
            np.testing.assert_array_equal(known.scores(one), expected[1:2])

    @pytest.mark.parametrize(
        ("strange", "message"),
        [
            ([None], "no array of numbers"),
            ([b"a.png"], "no array of numbers"),
            ([np.zeros((16, 16, 3)), np.zeros((20, 20, 3))], "of one size"),
            ([], "^no samples: expected at least one image"),
            (
                np.zeros((1, 3, 64, 64), np.float32),
                r"64.*give PIL pictures or files, which are res",
            ),
            ([Image.new("RGB", (16, 16)), np.zeros((16, 16, 3))], "pictures and ndarray"),
        ],
    )
    def test_what_is_none_is_named(
        self, known: PrototypeClassifier, strange: Any, message: str
    ) -> None:
        with pytest.raises((DataError, ValueError), match=message):
            known.predict(strange)


def pandas_like(values: list[Any]) -> Any:
    """A column of a data frame, as far as pandas' own is used."""

    class Column:
        ndim = 1

        def to_numpy(self) -> Any:
            return np.array(values, dtype=object)

    return Column()


class TestLittleKnown:
    """One sample a class, one class: what can be said is said, and nothing else."""

    def test_one_sample_a_class_tells_no_scatter(self) -> None:
        known = PrototypeClassifier().fit(np.eye(3), ["a", "b", "c"])
        for answer in (known.unknown, known.predict_proba):
            with pytest.raises(ValueError, match="no class has two samples"):
                answer(np.eye(3))
        guesses = known.guesses(np.eye(3))[0]
        assert guesses.unknown is None
        assert guesses.best[0].probability is None

    def test_one_class_tells_no_other(self) -> None:
        known = PrototypeClassifier().fit(np.random.default_rng(0).random((9, 3)), ["a"] * 9)
        with pytest.raises(ValueError, match="one class is known"):
            known.unknown(np.eye(3))

    def test_a_sum_of_classifiers(self) -> None:
        x, y = load_wine(return_X_y=True)
        x = x / 100
        parts = [PrototypeClassifier(exact=True).fit(x[i::3], y[i::3]) for i in range(3)]
        whole = PrototypeClassifier(exact=True).fit(x, y)
        np.testing.assert_array_equal(sum(parts).scores(x), whole.scores(x))  # type: ignore[union-attr]
        for other in (3, "a", None):
            with pytest.raises(TypeError):
                parts[0] + other
        with pytest.raises(TypeError, match="got a int"):
            parts[0].merge(3)

    @pytest.mark.parametrize("mixed", [[3, "3"], ["a", True], [True, 1]])
    def test_labels_of_several_types_in_a_list(self, mixed: list[Any]) -> None:
        with pytest.raises(TypeError, match="of one type"):
            PrototypeClassifier().fit(np.eye(2), mixed)


def test_names_of_rows_without_a_name_are_no_labels():
    x = [[0.0], [1.0]]
    with pytest.raises(ValueError, match=r"'new:x' begins with 'new:'"):
        PrototypeClassifier().fit(x, ["new:x", "old"])
    taught = PrototypeClassifier().fit(x, ["newt", "old"])
    with pytest.raises(ValueError, match="choose another name"):
        taught.partial_fit([[2.0]], ["new:x"])
    assert taught.classes_.tolist() == ["newt", "old"]
