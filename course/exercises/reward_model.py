"""A reward model: what it minimises on ratings and on preferences, and how to judge it."""

import numpy as np
import torch

import reward
from course.kit import Exercise, Mistake
from course.probes import normal, with_gradient


def judged(seed, ties=False):
    rng = np.random.default_rng(seed)
    source, true = rng.integers(0, 6, 40), rng.integers(0, 5, 40) / 4
    given = true + rng.standard_normal(40) * 0.5 + source  # harder sources have lower rewards
    given = np.round(given) if ties else given
    return {"the share in order": reward.ordered_within_source(source, given, true)}


def undefined(answer):
    """Each source has one output: there is nothing to order."""
    value = reward.ordered_within_source(np.arange(4), np.ones(4), np.arange(4) / 4)
    return {"with one output of each source": repr(value)}


EXERCISE = Exercise(
    name="reward-model",
    goal="You can train a reward model on ratings and on preferences, and say how far to trust it.",
    functions=("reward.rating_loss", "reward.preference_loss", "reward.ordered_within_source"),
    stages={
        "ratings": lambda answer: with_gradient(
            lambda x: reward.rating_loss(x, torch.linspace(0, 1, 6).double()), 3 * normal((6,), 0)),
        "preferences": lambda answer: with_gradient(
            reward.preference_loss, normal((5,), 1), normal((5,), 2)),
        "preferences: logits far apart": lambda answer: with_gradient(
            reward.preference_loss, torch.tensor([-900.0, 30.0]).double(),
            torch.tensor([100.0, -40.0]).double()),
        "the judge": lambda answer: judged(3),
        "the judge: ties count half": lambda answer: judged(4, ties=True),
        "the judge: nothing to order": undefined,
    },
    mistakes=(
        Mistake('with_logits(logits, ratings, reduction="sum")',
                'with_logits(logits, ratings, reduction="mean")',
                "the rating loss is a mean; a sum is wanted, the trainer divides."),
        Mistake('F.binary_cross_entropy_with_logits(logits, ratings, reduction="sum")',
                "(logits.sigmoid() - ratings).square().sum()",
                "this is the squared error: its gradient dies where the sigmoid is flat. The "
                "cross-entropy to the rating has the same best answer, and does not."),
        Mistake('F.binary_cross_entropy_with_logits(logits, ratings, reduction="sum")',
                '-(ratings * F.logsigmoid(logits)).sum()',
                "half of the cross-entropy is missing: (1 - rating) log(1 - σ) pulls low ratings "
                "down."),
        Mistake("winners - losers", "losers - winners",
                "winners and losers are exchanged: it would learn to prefer the worse output."),
        Mistake("-F.logsigmoid(winners - losers).sum()", "F.logsigmoid(winners - losers).sum()",
                "the sign is the wrong way round: a log-likelihood is to be made large, a loss "
                "small."),
        Mistake("-F.logsigmoid(winners - losers).sum()",
                "-(winners.sigmoid() - losers.sigmoid()).sum()",
                "Bradley-Terry puts the sigmoid around the difference of the logits, and takes its "
                "logarithm."),
        Mistake("-F.logsigmoid(winners - losers).sum()",
                "-(winners - losers).sigmoid().log().sum()",
                "right until the sigmoid rounds to 0: its logarithm is then -inf. F.logsigmoid "
                "works it out in one."),
        Mistake("(source[:, None] == source) & (true[:, None] > true)",
                "true[:, None] > true",
                "pairs of different sources are counted: they say which source is easy, which no "
                "filter within a source asks."),
        Mistake("(order + 1).mean() / 2", "(order > 0).mean()",
                "where the reward has a tie, it is right in half of the pairs: count one half."),
        Mistake("(true[:, None] > true)", "(true[:, None] >= true)",
                "outputs that are equally good are counted: there is no order to find."),
        Mistake(" if len(order) else None", "",
                "where no source has two outputs that differ there is no share: None, not a number "
                "(0 / 0 is nan)."),
    ),
    hints=("F.binary_cross_entropy_with_logits takes soft labels.",
           "preference_loss is one line: F.logsigmoid of a difference.",
           "x[:, None] - x is the matrix of all differences; a boolean matrix picks the pairs that "
           "count."),
    minutes=30, difficulty=2, points=3, after=("bc-loss",))
