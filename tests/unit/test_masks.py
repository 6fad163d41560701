"""Exact counts, ties, and global thresholds, worked by hand."""

import pytest
import torch

from espalier.errors import EspalierWarning
from espalier.options import kept_count
from espalier.pruning.masks import masks_global, masks_per_layer, top


@pytest.mark.parametrize(
    ("density", "n", "kept"),
    [(0.5, 10, 5), (0.25, 10, 3), (0.05, 10, 1), (1e-9, 10, 1), (1.0, 10, 10), (0.1, 0, 0)],
)
def test_count_is_the_nearest_integer_and_at_least_one(density, n, kept):
    assert kept_count(density, n) == kept


def test_among_equals_the_lower_index_stays():
    assert top(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2).tolist() == [0, 1, 1, 0, 0]
    assert top(torch.zeros(5), 3).tolist() == [1, 1, 1, 0, 0]


def test_infinite_scores_rank_like_others():
    scores = torch.tensor([float("inf"), 1.0, float("-inf"), 2.0])
    assert top(scores, 2).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("k", [0, 1, 4, 5, 9])
def test_never_more_or_fewer_than_asked(k):
    assert int(top(torch.tensor([2.0, 2.0, 1.0, 2.0, 1.0]), k).sum()) == min(k, 5)


def test_per_layer_keeps_the_shape():
    first, second = masks_per_layer([torch.arange(6.0).view(2, 3), torch.ones(4)], [0.5, 0.25])
    assert first.tolist() == [[False, False, False], [True, True, True]]
    assert second.tolist() == [True, False, False, False]


def test_global_has_one_threshold_and_names_what_it_empties():
    scores = [torch.tensor([5.0, 6.0]), torch.tensor([1.0, 2.0])]
    with pytest.warns(EspalierWarning, match=r"nothing of small"):
        masks = masks_global(scores, 0.5, ["big", "small"])
    assert [m.tolist() for m in masks] == [[True, True], [False, False]]
