"""A queue of product vectors: each product once, the newest stay."""

import numpy as np
import torch

from client.recent import RecentProducts


def vectors(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].repeat(1, 3)


def queue(size: int) -> RecentProducts:
    return RecentProducts(size, 3, torch.device("cpu"))


def test_the_oldest_leave() -> None:
    recent = queue(3)
    recent.push(np.array([1, 2]), vectors(1, 2))
    recent.push(np.array([5, 6]), vectors(5, 6))
    assert recent.rows.tolist() == [2, 5, 6]
    assert torch.equal(recent.vectors, vectors(2, 5, 6))


def test_a_product_that_comes_again_replaces_itself() -> None:
    recent = queue(3)
    recent.push(np.array([1, 2]), vectors(1, 2))
    recent.push(np.array([1]), vectors(9))
    assert recent.rows.tolist() == [2, 1]
    assert torch.equal(recent.vectors, vectors(2, 9))


def test_the_batchs_own_products_are_no_others() -> None:
    recent = queue(4)
    recent.push(np.array([1, 2, 3]), vectors(1, 2, 3))
    rows, others = recent.others(np.array([2, 7]))
    assert rows.tolist() == [1, 3]
    assert torch.equal(others, vectors(1, 3))


def test_an_empty_queue_stays_empty() -> None:
    recent = queue(0)
    recent.push(np.array([1]), vectors(1))
    assert recent.rows.tolist() == [] and recent.vectors.shape == (0, 3)


def test_what_is_kept_has_no_graph() -> None:
    recent = queue(2)
    recent.push(np.array([1]), vectors(1.0).requires_grad_())
    assert not recent.vectors.requires_grad
