"""kNN against loops, however the bank is cut."""

from __future__ import annotations

import math

import pytest
import torch

from genview.errors import UserError
from genview.evaluation import Features, Knn, knn_accuracy
from genview.evaluation.knn import PAIR, chunks, neighbours
from known_features import blobs, known


def knn_by_loops(train: Features, test: Features, k: int, temperature: float) -> float:
    right = 0
    for x, y in zip(test.x.tolist(), test.y.tolist(), strict=True):
        found = []
        for bank, label in zip(train.x.tolist(), train.y.tolist(), strict=True):
            dot = sum(p * q for p, q in zip(x, bank, strict=True))
            found.append((dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in bank)), label))
        votes: dict[int, float] = {}
        for similarity, label in sorted(found, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        right += max(votes, key=lambda label: votes[label]) == y
    return right / len(test.y)


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_against_loops(k: int, temperature: float) -> None:
    train, test = blobs(60, 1.5, 1), blobs(40, 1.5, 2)
    expected = knn_by_loops(train, test, k, temperature)
    assert 0.34 < expected < 1, "a task on which mistakes show"
    assert knn_accuracy(train, test, k=k, temperature=temperature) == pytest.approx(expected)
    assert knn_accuracy(Features(train.x.half(), train.y), test, k=k, temperature=temperature) == pytest.approx(
        expected, abs=1 / 40 + 1e-9
    )


def majority_by_loops(train: Features, test: Features, k: int) -> float:
    """For exact similarities: the nearest first, of equal ones the earlier; of equal votes the lower label."""
    right = 0
    for x, y in zip(test.x.tolist(), test.y.tolist(), strict=True):
        dots = [sum(p * q for p, q in zip(x, bank, strict=True)) for bank in train.x.tolist()]
        order = sorted(range(len(dots)), key=lambda i: (-dots[i], i))[:k]
        votes = [train.y[i].item() for i in order]
        right += min(range(3), key=lambda label: (-votes.count(label), label)) == y
    return right / len(test.y)


@pytest.mark.parametrize("k", [1, 4, 60])
def test_ties_are_broken_the_same_way_however_the_bank_is_cut(k: int) -> None:
    """Rows of ±1/2 in four dimensions: similarities are multiples of 1/2, exact, and mostly equal."""
    chance = torch.Generator().manual_seed(3)
    train, test = (
        Features(torch.randint(0, 2, (n, 4), generator=chance) - 0.5, torch.randint(0, 3, (n,), generator=chance))
        for n in (60, 40)
    )
    expected = majority_by_loops(train, test, k)
    for budget in (300, 2000, 10**9):
        found = neighbours(train, test, k, budget=budget)
        assert found.similarity.shape == found.labels.shape == (40, k)
        assert found.accuracy(test.y, None) == pytest.approx(expected)
        assert torch.equal(found.similarity, neighbours(train, test, k).similarity)
        assert torch.equal(found.labels, neighbours(train, test, k).labels)


@pytest.mark.parametrize("budget", [500, 4000])
def test_chunks_of_bank_and_queries_give_what_the_whole_gives(budget: int) -> None:
    train, test = blobs(70, 1.5, 1), blobs(30, 1.5, 2)
    whole, told = neighbours(train, test, 9), list[int]()
    cut = neighbours(train, test, 9, budget=budget, tell=lambda _what, done, _total, _note: told.append(done))
    assert torch.allclose(cut.similarity, whole.similarity, atol=1e-6)
    assert torch.equal(cut.labels, whole.labels)
    assert told[-1] == 70
    assert len(told) > 1
    everyone = neighbours(train, test, 99).similarity
    assert everyone.shape == (30, 70)
    assert bool((everyone[:, -1] < 0).all()), "the bits of negative numbers sort the other way"
    assert bool((everyone[:, :-1] >= everyone[:, 1:]).all())


@pytest.mark.parametrize(("width", "budget"), [(2048, 10**9), (384, 10**8), (8, 10**6)])
def test_chunks_keep_the_budget_and_use_most_of_it(width: int, budget: int) -> None:
    rows, asked = chunks(budget, width)
    assert 0.9 * budget < 8 * width * (rows + asked) + PAIR * rows * asked <= budget


def test_a_plain_vote_and_a_weighted_one_are_both_told() -> None:
    train = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    rows = dict(Knn(k=(1, 3)).run(known(train, test)))
    assert rows == {"knn/top1@k=1": 1, "knn/top1@k=3": 1, "knn/plain-top1@k=1": 1, "knn/plain-top1@k=3": 0}
    with pytest.raises(UserError, match="is no size"):
        list(Knn(budget="much").run(known(train, test)))


def test_a_k_above_the_number_of_training_images_is_not_claimed() -> None:
    train, test = blobs(30, 1.0, 1), blobs(20, 1.0, 2)
    rows = dict(Knn(k=(5, 30, 200), plain=False).run(known(train, test)))
    assert set(rows) == {"knn/top1@k=5", "knn/top1@k=30"}
    assert dict(Knn(k=(200, 31), plain=False).run(known(train, test))) == {"knn/top1@k=30": rows["knn/top1@k=30"]}
    assert knn_accuracy(train, test, k=31) == rows["knn/top1@k=30"]


def test_knn_at_a_temperature_that_overflows() -> None:
    """exp(1 / 0.001) is infinite in float32; the nearest image still wins."""
    train = Features(torch.tensor([[0.9, 0.1], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 2]))
    assert knn_accuracy(train, Features(torch.tensor([[1.0, 0.0]]), torch.tensor([2])), k=3, temperature=1e-3) == 1.0


def test_near_neighbours_count_more_than_many_far_ones() -> None:
    """One neighbour at similarity 1 against two at 0.6: exp(1/0.07) > 2 exp(0.6/0.07); without weights it loses."""
    train = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert knn_accuracy(train, test, k=3, temperature=0.07) == 1.0
    assert knn_accuracy(train, test, k=3, temperature=1e6) == 0.0
