"""Two values that make runs odd only together are named, and nothing is where they do not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tachograph_exporter.views.causes.differences import Described, differences, differences_of_set
from tachograph_exporter.views.causes.features import HOST, INPUT, PROCESS, VERSION, Feature, Place

Values = dict[str, Feature]


def values(rng: random.Random) -> Values:
    def feature(key: str, value: str | float | bool, place: Place) -> tuple[str, Feature]:
        return key, Feature(key, value, place)

    host = f"node-{rng.randrange(6)}"
    return dict([
        feature("version", rng.choice(("1.7", "1.8", "1.9")), VERSION),
        feature("host", host, HOST),
        feature("process", f"{host}/boot/{rng.randrange(3)}/1", PROCESS),
        feature("input.shards", float(rng.choice((4, 8, 16))), INPUT),
        feature("input.strict", rng.random() < 0.3, INPUT),
        *(feature(f"input.text{i}", f"v{rng.randrange(2 + i)}", INPUT) for i in range(12)),
        *(feature(f"input.number{i}", rng.random(), INPUT) for i in range(4)),
    ])  # fmt: skip


def runs_of(seed: str, is_odd: Callable[[Values, random.Random], bool], count: int = 200) -> list[Described]:
    """Runs, the last of which is an odd one."""
    rng = random.Random(seed)
    described: list[Described] = []
    while len(described) < count or not described[-1].is_odd:
        features = values(rng)
        described.append(Described(len(described), is_odd(features, rng), features))
    described[-1] = described[-1]._replace(is_target=True)
    return described


def named(runs: list[Described]) -> list[str]:
    return [each.key for each in differences(runs[-1].features, runs).differences if each.is_strong]


def _both(features: Values) -> bool:
    return features["host"].value == "node-3" and features["version"].value == "1.9"


@pytest.mark.parametrize("seed", range(4))
def test_a_version_on_one_host(seed: int) -> None:
    runs = runs_of(f"both {seed}", lambda features, rng: _both(features) or rng.random() < 0.01)
    if not _both(dict(runs[-1].features)):
        return
    first = differences(runs[-1].features, runs).differences[0]
    assert (first.key, first.value, first.place.kind) == ("host & version", "node-3 & 1.9", "pair")
    assert first.effect > 0.7
    # Neither of the two is said to be the cause by itself.
    assert named(runs) == ["host & version"]
    assert differences_of_set(runs).differences[0].key == "host & version"


def test_a_number_may_be_a_choice() -> None:
    runs = runs_of("shards", lambda f, _: f["input.shards"].value == 16 and f["input.strict"].value is True)
    assert named(runs) == ["input.shards & input.strict"]


@pytest.mark.parametrize("seed", range(4))
def test_one_cause_is_no_pair(seed: int) -> None:
    runs = runs_of(f"one {seed}", lambda f, rng: f["host"].value == "node-3" and rng.random() < 0.9)
    assert named(runs) == ["host"]


@pytest.mark.parametrize("seed", range(4))
def test_two_causes_are_no_pair_and_both_are_named(seed: int) -> None:
    runs = runs_of(f"two {seed}", lambda f, _: f["host"].value == "node-3" or f["input.text5"].value == "v2")
    features = {
        **runs[-1].features,
        "host": Feature("host", "node-3", HOST),
        "input.text5": Feature("input.text5", "v2", INPUT),
    }
    runs[-1] = runs[-1]._replace(features=features)
    assert sorted(named(runs)) == ["host", "input.text5"]


def test_shuffled_labels_make_no_pair() -> None:
    announced = 0
    for seed in range(30):
        runs = runs_of(f"shuffled {seed}", lambda _, rng: rng.random() < 0.12, 120)
        results = differences(runs[-1].features, runs), differences_of_set(runs)
        announced += any(each.parts for result in results for each in result.differences)
    assert announced <= 1


def test_a_cause_with_chance_beside_it_makes_no_pair() -> None:
    """The bound holds where one value does matter, too: its partner would be chance."""
    paired = 0
    for seed in range(30):
        runs = runs_of(f"half {seed}", lambda f, rng: f["host"].value == "node-3" and rng.random() < 0.5, 150)
        paired += any(each.parts for each in differences(runs[-1].features, runs).differences)
    assert paired <= 1
