"""What headquarters keeps of the regions' Gaussians."""

import torch

from server.gaussians import MAX_GAUSSIANS, FederationGaussians
from shared.gaussians import COMPONENTS, Gaussians


def numbered(number: int) -> Gaussians:
    """One that can be told from others."""
    return Gaussians(
        torch.full((1, 2), float(number)), torch.zeros(1, COMPONENTS, 2), torch.zeros(1)
    )


def numbers(found: Gaussians | None) -> list[int]:
    return [] if found is None else found.mean[:, 0].int().tolist()


def test_all_of_a_small_cohort_in_their_order() -> None:
    kept = FederationGaussians({})
    assert kept.value() is None
    for number in (3, 1, 2):
        kept.add(numbered(number))
    assert numbers(kept.value()) == [3, 1, 2]


def test_they_are_remembered_until_a_round_brings_others() -> None:
    assert FederationGaussians(FederationGaussians({}).memory()).value() is None
    first = FederationGaussians({})
    first.add(numbered(1))
    silent = FederationGaussians(first.memory())
    assert numbers(silent.value()) == [1]
    later = FederationGaussians(silent.memory())
    later.add(numbered(2))
    assert numbers(FederationGaussians(later.memory()).value()) == [2]


def test_of_a_large_cohort_so_many_and_each_with_the_same_chance() -> None:
    size, times = 4 * MAX_GAUSSIANS, 400
    counts = torch.zeros(size)
    for seed in range(times):
        kept = FederationGaussians({}, seed=[seed, 1])
        for number in range(size):
            kept.add(numbered(number))
        chosen = numbers(kept.value())
        assert len(set(chosen)) == MAX_GAUSSIANS
        counts[chosen] += 1
    expected, spread = times / 4, (times * 3 / 16) ** 0.5
    assert ((counts - expected).abs() < 5 * spread).all()


def test_a_round_that_is_done_again_chooses_the_same() -> None:
    def chosen() -> list[int]:
        kept = FederationGaussians({}, seed=[7, 2])
        for number in range(2 * MAX_GAUSSIANS):
            kept.add(numbered(number))
        return numbers(kept.value())

    assert chosen() == chosen()
