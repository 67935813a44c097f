"""Losses of ranked and rated answers, against the papers' own definitions in plain Python and numbers by hand."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rlhf_kit.ranking import pairs_of, ranking_loss, rating_loss


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def paper_loss(scores, group, rank):
    """arXiv 2203.02155, eq. 1, as written: over the prompts, over the pairs of a prompt, 1 / (K choose 2) of them."""
    prompts = defaultdict(list)
    for s, g, r in zip(scores, group, rank, strict=True):
        prompts[g].append((s, r))
    losses = []
    for answers in prompts.values():
        terms = []
        for (s_w, r_w), (s_l, r_l) in itertools.permutations(answers, 2):
            if r_w < r_l:
                terms.append(-log_sigmoid(s_w - s_l))
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


def ranked(sizes, ties, seed, groups=None):
    rng = np.random.default_rng(seed)
    scores, group, rank = [], [], []
    for g, k in enumerate(sizes):
        scores += list(rng.normal(size=k) * 3)
        group += [g if groups is None else groups[g]] * k
        rank += list(rng.integers(1, 4, size=k)) if ties else list(rng.permutation(k) + 1)
    order = rng.permutation(len(scores))  # the answers of a prompt need not stand together
    return [[float(scores[i]) for i in order], [int(group[i]) for i in order], [int(rank[i]) for i in order]]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [[2], [4], [9], [2, 2, 2], [9, 2, 4, 4, 7], [1, 3], [4] * 12])
def test_ranking_loss_is_the_papers_double_loop(sizes, ties):
    for seed in range(3):
        scores, group, rank = ranked(sizes, ties, seed, groups=[-5, 1000, 7, 0, 3, *range(20, 40)])
        found = ranking_loss(torch.tensor(scores, dtype=torch.float64), torch.tensor(group), torch.tensor(rank))
        assert float(found) == pytest.approx(paper_loss(scores, group, rank), rel=1e-6)


def test_ranking_loss_gradient_is_that_of_the_double_loop():
    scores, group, rank = ranked([4, 2, 5], True, 1)
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    ranking_loss(leaf, torch.tensor(group), torch.tensor(rank)).backward()
    for i in range(len(scores)):
        up, down = list(scores), list(scores)
        up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
        slope = (paper_loss(up, group, rank) - paper_loss(down, group, rank)) / 2e-5
        assert float(leaf.grad[i]) == pytest.approx(slope, abs=1e-8)


def test_ranking_loss_by_hand():
    # One prompt, s = 1, 0, -1, ranks 1, 2, 3: pairs with differences 1, 2, 1.
    loss = ranking_loss(torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3]))
    assert float(loss) == pytest.approx((0.313262 + 0.126928 + 0.313262) / 3, abs=1e-6)


def test_pairs_alone_give_trls_loss():
    chosen, rejected = torch.randn(6), torch.randn(6)
    trl = -F.logsigmoid(chosen - rejected).mean()  # RewardTrainer.compute_loss
    scores = torch.stack([rejected, chosen], 1).flatten()
    group = torch.arange(6).repeat_interleave(2)
    torch.testing.assert_close(ranking_loss(scores, group, torch.tensor([2, 1] * 6)), trl)


def test_no_answer_is_weighed_by_how_many_its_neighbours_have():
    # A prompt with 9 answers counts as much as one with 2.
    small = [torch.tensor([0.3, -0.2]), torch.tensor([0, 0]), torch.tensor([1, 2])]
    large = [torch.linspace(-1, 1, 9), torch.full((9,), 1), torch.arange(9) + 1]
    together = ranking_loss(*(torch.cat(pair) for pair in zip(small, large, strict=True)))
    torch.testing.assert_close(together, (ranking_loss(*small) + ranking_loss(*large)) / 2)


def test_tied_groups_give_zero_and_a_gradient_of_zero():
    scores = torch.tensor([3.0, -1.0, 8.0], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0, 0, 0]), torch.tensor([2, 2, 2]))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad.tolist() == [0.0, 0.0, 0.0]


def test_ranking_loss_survives_scores_far_apart():
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0, 0]), torch.tensor([1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert scores.grad.tolist() == [-1.0, 1.0]


# ---------------------------------------------------------------- options


def option_loss(scores, group, rank, *, ties, margin, rank_margin, smoothing, centering, weight):
    """The same with every option, as the option's own source writes it, pair by pair."""
    prompts = defaultdict(list)
    for s, g, r, m, w in zip(scores, group, rank, margin, weight, strict=True):
        prompts[g].append((s, r, m, w))
    losses = []
    for answers in prompts.values():
        ranks = [r for _, r, _, _ in answers]
        widest = max(ranks) - min(ranks)
        terms = []
        for (s_i, r_i, m, _), (s_j, r_j, _, _) in itertools.combinations(answers, 2):
            if r_i == r_j:
                if ties == "half":
                    tie = -0.5 * log_sigmoid(s_i - s_j) - 0.5 * log_sigmoid(s_j - s_i)
                    terms.append(tie + centering * (s_i + s_j) ** 2)
                continue
            s_w, s_l = (s_i, s_j) if r_i < r_j else (s_j, s_i)
            d = s_w - s_l - m - rank_margin * abs(r_i - r_j) / widest
            loss = -(1 - smoothing) * log_sigmoid(d) - smoothing * log_sigmoid(-d)
            terms.append(loss + centering * (s_w + s_l) ** 2)
        if terms:
            losses.append(answers[0][3] * sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("ties", ["drop", "half"])
@pytest.mark.parametrize("sizes", [[2], [4], [9], [9, 2, 4, 4, 7, 1]])
def test_every_option_is_its_double_loop(sizes, ties):
    for seed in range(4):
        scores, group, rank = ranked(sizes, True, seed)
        rng = np.random.default_rng(seed)
        margins, weights = rng.random(len(sizes)), rng.random(len(sizes)) * 3
        margin, weight = [margins[g] for g in group], [weights[g] for g in group]
        options = dict(ties=ties, rank_margin=0.7, centering=0.01)
        tensors = dict(margin=torch.tensor(margin), weight=torch.tensor(weight))
        found = ranking_loss(
            torch.tensor(scores, dtype=torch.float64),
            torch.tensor(group),
            torch.tensor(rank),
            label_smoothing=0.1,
            **options,
            **tensors,
        )
        expected = option_loss(scores, group, rank, margin=margin, weight=weight, smoothing=0.1, **options)
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_half_ties_pull_scores_together_and_a_tied_group_is_log_two_at_its_best():
    scores = torch.tensor([0.4, 0.4, 0.4], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), ties="half")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert scores.grad.abs().max() < 1e-7
    apart = torch.tensor([1.0, -1.0], requires_grad=True)
    ranking_loss(apart, torch.tensor([0, 0]), torch.tensor([1, 1]), ties="half").backward()
    assert apart.grad[0] > 0 > apart.grad[1]  # a step downhill brings them closer


def test_a_margin_by_hand():
    # Ranks 1, 2, 4: the widest gap is 3, so the margins of the pairs are 1/3, 1 and 2/3.
    scores = torch.tensor([2.0, 1.0, 0.0])
    loss = ranking_loss(scores, torch.tensor([0, 0, 0]), torch.tensor([1, 2, 4]), rank_margin=1.0)
    expected = -(log_sigmoid(1 - 1 / 3) + log_sigmoid(2 - 1) + log_sigmoid(1 - 2 / 3)) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_a_weight_of_two_is_standing_twice():
    scores, group, rank = (torch.tensor(x) for x in ranked([4, 3], False, 0))
    leaf = scores.clone().requires_grad_(True)
    weight = torch.where(group == 0, 2.0, 1.0)
    ranking_loss(leaf, group, rank, weight=weight).backward()
    twice = scores.clone().requires_grad_(True)
    again = (group == 0).nonzero().squeeze(1)
    loss = ranking_loss(
        torch.cat([twice, twice[again]]), torch.cat([group, group[again] + 77]), torch.cat([rank, rank[again]])
    )
    (loss * 3 / 2).backward()  # a mean over three prompts instead of two
    torch.testing.assert_close(leaf.grad, twice.grad)


def test_what_takes_no_part_makes_no_pair():
    scores, rank = torch.tensor([5.0, 1.0, 0.0]), torch.tensor([0, 1, 2])
    taken = torch.tensor([False, True, True])
    loss = ranking_loss(scores, torch.zeros(3, dtype=torch.long), rank, ranked=taken)
    assert float(loss) == pytest.approx(-log_sigmoid(1.0), abs=1e-6)
    pairs = pairs_of(torch.zeros(3, dtype=torch.long), rank, taken)
    assert pairs.better.tolist() == [1] and pairs.worse.tolist() == [2] and pairs.prompts == 1


def test_sixty_four_answers():
    scores, group, rank = ranked([64, 64], False, 3)
    found = ranking_loss(torch.tensor(scores, dtype=torch.float64), torch.tensor(group), torch.tensor(rank))
    assert float(found) == pytest.approx(paper_loss(scores, group, rank), rel=1e-6)


# ---------------------------------------------------------------- ratings


def test_rating_loss_is_the_cross_entropy_by_hand():
    scores = torch.tensor([0.3, -1.2, 2.0, 9.0])
    target, rated = torch.tensor([1.0, 0.25, 0.0, math.nan]), torch.tensor([True, True, True, False])
    terms = [
        -(y * log_sigmoid(s) + (1 - y) * log_sigmoid(-s))
        for s, y in zip([0.3, -1.2, 2.0], [1.0, 0.25, 0.0], strict=True)
    ]
    group = torch.tensor([0, 0, 1, 1])
    loss = rating_loss(scores, target, rated, group)
    assert float(loss) == pytest.approx(((terms[0] + terms[1]) / 2 + terms[2]) / 2, abs=1e-6)
    weighted = rating_loss(scores, target, rated, group, weight=torch.tensor([3.0, 3.0, 1.0, 1.0]))
    assert float(weighted) == pytest.approx((3 * (terms[0] + terms[1]) / 2 + terms[2]) / 2, abs=1e-6)


def test_the_best_score_of_a_rating_is_its_log_odds():
    score = torch.tensor([0.0], requires_grad=True)
    optimiser = torch.optim.SGD([score], lr=2.0)
    for _ in range(400):
        optimiser.zero_grad()
        rating_loss(score, torch.tensor([0.8]), torch.tensor([True]), torch.tensor([0])).backward()
        optimiser.step()
    assert score.item() == pytest.approx(math.log(0.8 / 0.2), abs=1e-3)


def test_nothing_rated_is_zero_with_a_gradient_of_zero():
    scores = torch.tensor([3.0, -1.0], requires_grad=True)
    loss = rating_loss(scores, torch.zeros(2), torch.tensor([False, False]), torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0.0 and scores.grad.tolist() == [0.0, 0.0]
