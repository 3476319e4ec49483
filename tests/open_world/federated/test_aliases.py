"""Rows without names: their sums, what they are taken for, names, and forgetting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocl import PrototypeMemory
from protocl.memory.rows import class_id_of
from protocl.metrics.clusters import clustering_accuracy
from protocl.metrics.confusion import Confusion
from protocl.open_world.agglomeration import agglomerate
from protocl.open_world.evidence import TwoCovariance
from protocl.open_world.federated import (
    Aliases,
    Namings,
    OffsetTable,
    agree,
    group,
    provisional,
    provisional_rows,
    refined,
)

OFFSET = -30.0


def samples(seed, classes, each, first=0):
    """Samples of Gaussian classes with far means, and their labels from ``first``."""
    rng = torch.Generator().manual_seed(seed)
    means = 12 * torch.randn(classes, 6, generator=rng, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(each)
    noise = torch.randn(len(labels), 6, generator=rng, dtype=torch.float64)
    return means[labels] + noise, labels + first


@pytest.fixture(scope="module")
def known():
    x, labels = samples(1, classes=20, each=10)
    return PrototypeMemory(6, level="shared", exact=True).update(x, labels)


def clients(known, x, labels, n=3, seed=0):
    """What each of ``n`` clients finds among samples that are dealt to them."""
    holder = torch.randint(n, (len(x),), generator=torch.Generator().manual_seed(seed))
    evidence = TwoCovariance().fit(known)
    for client in range(n):
        mine = holder == client
        groups = group(evidence, x[mine], OFFSET)
        found = provisional_rows(known, x[mine], groups, epoch=f"e{client}", seq=1, least=2)
        yield found, labels[mine]


def agreed(known, rows, **options):
    return agree(TwoCovariance(), known, rows, offset=OFFSET, **options)


def test_far_categories_are_told_apart_and_recognised_between_clients(known):
    x, labels = samples(2, classes=5, each=18)
    found = list(clients(known, x, labels))
    rows = sum(one.memory for one, _ in found)
    aliases = agreed(known, rows)
    assert len(rows) > 10
    assert len(aliases.categories) == 5
    for one, mine in found:
        categories = aliases.of(one.ids)
        for c in range(5):
            assert len(categories[mine == c].unique()) <= 1
    for c in aliases.categories:
        assert min(row for row, mine in aliases.category.items() if mine == c) == c


@given(st.integers(0, 1000), st.permutations(range(3)))
@settings(max_examples=8, deadline=None)
def test_any_order_of_contributions_gives_the_same_aliases(seed, order):
    x, labels = samples(1, classes=20, each=10)
    known = PrototypeMemory(6, level="shared", exact=True).update(x, labels)
    x, labels = samples(seed + 2, classes=4, each=12)
    found = [one.memory for one, _ in clients(known, x, labels, seed=seed)]
    here = sum(found)
    there = found[order[0]] + (found[order[1]] + found[order[2]])
    assert agreed(known, here) == agreed(known, there)
    assert agreed(known, here).digest == agreed(known, there).digest
    # Forgetting a client leaves the world without it, bit for bit.
    without = agreed(known, here - found[0])
    assert without == agreed(known, found[1] + found[2])
    # What the ids are changes nothing but the ids.
    renamed = here.relabelled(here.classes.flip(0) + 7)
    ids = here.classes.tolist(), (here.classes.flip(0) + 7).tolist()
    assert parts_of(agreed(known, here), ids[0]) == parts_of(agreed(known, renamed), ids[1])


def parts_of(aliases, ids):
    """Places of ``ids`` by category."""
    categories = [aliases.category[row] for row in ids]
    return {tuple(n for n, c in enumerate(categories) if c == one) for one in categories}


def test_resolved_sums_are_those_of_all_samples(known):
    x, labels = samples(3, classes=4, each=15)
    found = list(clients(known, x, labels, n=4))
    rows = sum(one.memory for one, _ in found)
    aliases = agreed(known, rows)
    resolved = aliases.resolve(rows)
    assert resolved.classes.tolist() == aliases.categories
    holder = torch.randint(4, (len(x),), generator=torch.Generator().manual_seed(0))
    one_place = known.empty_like("mean")
    for client, (one, _) in enumerate(found):
        kept = one.ids >= 0
        one_place.update(x[holder == client][kept], aliases.of(one.ids[kept]))
    assert torch.equal(resolved.sums, one_place.sums)
    assert torch.equal(resolved.counts, one_place.counts)
    assert len(aliases.resolve(rows.empty_like())) == 0


def test_what_somebody_knows_by_name_is_absorbed(known):
    x, labels = samples(1, classes=20, each=10)
    x = x[:10] + torch.randn(10, 6, generator=torch.Generator().manual_seed(3)).double()
    found = provisional_rows(known, x, torch.zeros(10, dtype=torch.int64), epoch="e", seq=1)
    row = int(found.memory.classes)
    assert agreed(known, found.memory).category == {row: int(labels[0])}
    alone = agreed(known, found.memory, absorb=float("inf"))
    assert alone.category == {row: row}


def test_a_name_given_by_anyone_names_it_for_all(known):
    x, labels = samples(2, classes=3, each=18)
    rows = sum(one.memory for one, _ in clients(known, x, labels))
    before = agreed(known, rows)
    category = before.categories[0]
    row = max(r for r, c in before.category.items() if c == category)
    after = agreed(known, rows, named=Namings.of({row: "Ångström"}).class_ids)
    for r, c in before.category.items():
        assert after.category[r] == (class_id_of("Ångström") if c == category else c)


def test_two_names_split_what_was_joined(known):
    x, labels = samples(2, classes=1, each=40)
    rows = sum(one.memory for one, _ in clients(known, x, labels, n=4))
    ids = rows.classes.tolist()
    assert len(agreed(known, rows).categories) == 1
    namings = Namings.of({ids[0]: "a"}) | Namings.of({ids[-1]: "b"})
    split = agreed(known, rows, named=namings.class_ids)
    assert split.categories == sorted([class_id_of("a"), class_id_of("b")])
    assert split.category[ids[0]] == class_id_of("a")
    assert agreed(known, rows, named=namings.without([(ids[-1], "b")]).class_ids).categories == [
        class_id_of("a")
    ]


def test_namings_are_facts():
    one, two = Namings.of({3: "b", 1: "x"}), Namings.of({3: "a"})
    assert (one | two) == (two | one)
    assert (one | two).names == {1: "x", 3: "a"}
    assert (one | two).disputed == {3: ["a", "b"]}
    for name in ("new:cat", ""):
        with pytest.raises(ValueError, match="name"):
            Namings.of({1: name})


def test_small_groups_stay_at_home_and_floods_are_capped(known):
    x = torch.zeros(12, 6)
    groups = torch.tensor([0] * 5 + [1] * 4 + [2] * 1 + [3] * 2)
    found = provisional_rows(known, x, groups, epoch="e", seq=2, least=2, most=2)
    assert sorted(found.memory.counts.tolist()) == [4, 5]
    assert set(found.names.values()) == {"new:e:2:0", "new:e:2:1"}
    assert found.left_out == 2
    assert (found.ids[9:] == -1).all()
    none = provisional_rows(known, x[:0], groups[:0], epoch="e", seq=1)
    assert len(none.memory) == 0
    assert none.left_out == 0
    empty = agreed(known, none.memory)
    assert empty.category == {}
    assert len(empty.resolve(none.memory)) == 0


def test_what_is_refused(known):
    x = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="least=0"):
        provisional_rows(known, x, torch.zeros(2).long(), epoch="e", seq=1, least=0)
    with pytest.raises(ValueError, match="2 samples, but groups"):
        provisional_rows(known, x, torch.zeros(3).long(), epoch="e", seq=1)
    clash = known.empty_like("mean").update(x, known.classes[:1].repeat(2))
    with pytest.raises(ValueError, match="ids of known classes"):
        agreed(known, clash)
    with pytest.raises(ValueError, match="width 4"):
        agreed(known, PrototypeMemory(4))


def test_a_row_that_comes_later_can_join_two_categories(known):
    """Aliases are computed from all rows, so the last to come counts as the first."""
    x, labels = samples(5, classes=2, each=30)
    parts = [one.memory for one, _ in clients(known, x, labels, n=3)]
    grown = [agreed(known, sum(parts[: n + 1])) for n in range(3)]
    assert grown[-1] == agreed(known, sum(reversed(parts)))
    assert len(grown[-1].categories) == 2


def test_offsets_are_chosen_by_hidden_labels_and_tables_add(known):
    x, labels = samples(7, classes=6, each=8)
    evidence = TwoCovariance().fit(known)
    whole = OffsetTable.of(evidence, x, labels)
    assert whole.correct[whole.offsets.index(whole.best)] == max(whole.correct) == len(x)
    halves = [OffsetTable.of(evidence, x[n::2], labels[n::2]) for n in (0, 1)]
    assert sum(halves).total == len(x)
    assert sum(halves) == halves[1] + halves[0]
    with pytest.raises(ValueError, match="do not add up"):
        whole + OffsetTable.of(evidence, x, labels, [0.0])
    with pytest.raises(ValueError, match="a sample"):
        OffsetTable.of(evidence, x[:0], labels[:0])


def test_an_alias_of_an_id_that_is_no_row_is_itself():
    assert Aliases({5: 3}).of(torch.tensor([5, 4, -1])).tolist() == [3, 4, -1]


def test_what_cannot_be_meant_is_refused_by_its_value(known):
    x, _ = samples(1, classes=20, each=10)
    evidence = TwoCovariance().fit(known)
    for offset in (float("nan"), None, "low"):
        with pytest.raises(ValueError, match=f"offset={offset!r}: expected a log odds ratio"):
            group(evidence, x[:3], offset)
        with pytest.raises(ValueError, match="expected a log odds ratio"):
            agree(TwoCovariance(), known, known.empty_like("mean"), offset=offset)
    for name, error in ((3, TypeError), ("  ", ValueError)):
        with pytest.raises(error, match=f"{name}"):
            Namings.of({7: name})
    with pytest.raises(TypeError, match="'r'"):
        Namings.of({"r": "heron"})
    groups = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="group -1"):
        provisional_rows(known, x[:3], groups - 1, epoch="a", seq=1)
    with pytest.raises(ValueError, match=r"least=2\.5"):
        provisional_rows(known, x[:3], groups, epoch="a", seq=1, least=2.5)


def test_rows_of_another_backbone_are_not_compared(known):
    x, labels = samples(1, classes=20, each=10)
    theirs = PrototypeMemory(known.width, "mean", fingerprint="theirs").update(x, labels + 90)
    ours = PrototypeMemory(known.width, "shared", fingerprint="ours").update(x, labels)
    with pytest.raises(ValueError, match=r"backbone theirs .* classes of ours"):
        agree(TwoCovariance(), ours, theirs, offset=OFFSET)
    plain = PrototypeMemory(known.width, "mean").update(x, labels + 90)
    assert len(agree(TwoCovariance(), ours, plain, offset=OFFSET).category) == len(plain)


def test_composed_and_decomposed_letters_make_the_same_name():
    composed, decomposed = "h\u00e9ron", "he\u0301ron"
    both = Namings.of({7: composed}) | Namings.of({7: decomposed, 9: decomposed})
    assert both.disputed == {}
    assert both.class_ids == {7: class_id_of(composed), 9: class_id_of(composed)}
    assert both.without([(7, decomposed)]) == Namings.of({9: composed})


def test_many_samples_are_put_together_before_they_are_compared(known, monkeypatch):
    x, labels = samples(5, classes=6, each=30)
    evidence = TwoCovariance().fit(known)
    plain = group(evidence, x, OFFSET)
    compared = []
    monkeypatch.setattr(provisional, "ONE_BY_ONE", 100)
    monkeypatch.setattr(
        provisional,
        "agglomerate",
        lambda e, rows, **options: compared.append(len(rows)) or agglomerate(e, rows, **options),
    )
    fewer = group(evidence, x, OFFSET)
    assert compared[0] <= 36
    assert fewer.tolist() == plain.tolist()
    assert clustering_accuracy(Confusion.from_predictions(labels, fewer)) == 1


def test_samples_in_the_wrong_group_go_where_they_belong(known):
    x, labels = samples(8, classes=5, each=20)
    evidence = TwoCovariance().fit(known)
    assert refined(evidence, x, labels).equal(labels)
    wrong = labels.clone()
    wrong[::7] = (wrong[::7] + 1) % 5
    assert refined(evidence, x, wrong).equal(labels)
    assert refined(evidence, x, wrong, 0).equal(wrong)
    mixed = labels.clone()
    mixed[[0, 20]] = 5  # of two categories; both leave, and no gap is left
    assert refined(evidence, x, mixed).equal(labels)
    more, six = (part[:101] for part in samples(8, classes=6, each=20))
    assert refined(evidence, more, six).equal(six)  # the last is alone
    assert refined(evidence, x[:0], labels[:0]).tolist() == []
    with pytest.raises(ValueError, match="passes=-1"):
        refined(evidence, x, labels, -1)


def test_groups_that_are_too_small_are_dissolved_where_asked(known):
    x, labels = samples(8, classes=5, each=20)
    evidence = TwoCovariance().fit(known)
    split = labels.clone()
    split[[0, 20, 40]] = torch.tensor([5, 5, 6])  # two of two categories, and one alone
    assert refined(evidence, x, split, 0, least=5).equal(labels)
    assert refined(evidence, x, split, 0, least=1).equal(split)
    assert refined(evidence, x, labels, 0, least=21).equal(labels)  # none is large enough
    assert refined(evidence, x[:0], labels[:0], least=5).tolist() == []


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_is_refined_does_not_depend_on_the_numbers_of_groups(known, seed):
    rng = torch.Generator().manual_seed(seed)
    x, labels = samples(seed, classes=4, each=6)
    order = torch.randperm(4, generator=rng)
    evidence = TwoCovariance().fit(known)
    wrong = torch.where(torch.rand(24, generator=rng) < 0.2, (labels + 1) % 4, labels)
    here, there = refined(evidence, x, wrong), refined(evidence, x, order[wrong])
    assert clustering_accuracy(Confusion.from_predictions(here, there)) == 1
