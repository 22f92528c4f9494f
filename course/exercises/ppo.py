"""PPO, the online baseline: the ratio, the clip, and a KL to the BC policy."""

import losses
from course.kit import Exercise, Mistake
from course.probes import chosen, normal, ragged, with_gradient


def divergence(answer):
    p, q = normal((2, 3, 5), 1), normal((2, 3, 5), 2)
    return {"KL(p ‖ q)": losses.kl_divergence(p, q), "KL(p ‖ p)": losses.kl_divergence(p, p)}


def loss_of(lengths, near=True, **settings):
    batch, logits = ragged(lengths)
    old = batch.old_logprobs if near else chosen(logits, batch.tokens)
    kl = normal(batch.mask.shape, 8).abs()
    advantages = normal((len(lengths), 1), 9).expand_as(batch.mask)
    return with_gradient(lambda x: losses.ppo(chosen(x, batch.tokens), old, advantages, kl,
                                              batch.mask, **settings), logits)


def padding_overflows(answer):
    """Padding, whose log-probabilities may be anything."""
    batch, logits = ragged((2, 6))
    logits[0, 2:, 0] += 3000.0  # 0 is PAD
    old = chosen(logits, batch.tokens) - 2000.0 * (1 - batch.mask)
    return with_gradient(lambda x: losses.ppo(chosen(x, batch.tokens), old, batch.mask - 0.3,
                                              0 * batch.mask, batch.mask), logits)


EXERCISE = Exercise(
    name="ppo",
    goal="You can train on your own samples more than once without running away from them.",
    functions=("losses.ppo", "losses.kl_divergence"),
    stages={
        "kl_divergence": divergence,
        "ppo: before the first update (ratio 1)": lambda answer: loss_of((6,), near=False),
        "ppo: away from the old policy": lambda answer: loss_of((9, 9)),
        "ppo: a narrow clip": lambda answer: loss_of((9, 9), clip=0.05),
        "ppo: with KL": lambda answer: loss_of((9, 9), kl_weight=0.5),
        "ppo: sentences of different lengths": lambda answer: loss_of((4, 1, 9, 6), kl_weight=0.5),
        "ppo: what stands on padding": padding_overflows,
    },
    mistakes=(
        Mistake("(p.exp() * (p - q)).sum(-1)", "(q.exp() * (p - q)).sum(-1)",
                "the mean is taken under q; KL(p ‖ q) is the mean of log p - log q under p."),
        Mistake("(p.exp() * (p - q)).sum(-1)", "(q.exp() * (q - p)).sum(-1)",
                "p and q are exchanged: this is KL(q ‖ p)."),
        Mistake("(p.exp() * (p - q)).sum(-1)", "(p.exp() * (p - q)).mean(-1)",
                "a mean over the vocabulary; the KL is a sum over it, weighted by p."),
        Mistake("logprobs - old_logprobs", "old_logprobs - logprobs",
                "the ratio is upside down: ρ = π_θ / π_old."),
        Mistake("torch.minimum(", "torch.maximum(",
                "the larger of the two is taken. The smaller one: a bound from below, which gains "
                "nothing from moving too far."),
        Mistake("torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)",
                "ratio.clamp(1 - clip, 1 + clip) * advantages",
                "only the clipped term: a ratio that has gone the wrong way then has no gradient "
                "to come back. Take the minimum of both."),
        Mistake("ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(max=1 + clip)",
                "clipped from above alone: bad samples would be pushed down without end."),
        Mistake("surrogate - kl_weight * kl", "surrogate + kl_weight * kl",
                "the KL has the wrong sign: it would be a reward to move away from BC."),
        Mistake(" * mask).sum()", ").sum()", "padding is counted: multiply by the mask."),
        Mistake("((logprobs - old_logprobs) * mask).exp()", "(logprobs - old_logprobs).exp()",
                "the ratio overflows on padding, and inf times a mask of 0 is nan: apply the mask "
                "before exp."),
        Mistake("return -((surrogate", "return ((surrogate",
                "the sign is the wrong way round: the surrogate is to be made large."),
    ),
    hints=("The ratio of two probabilities is exp of the difference of their logarithms.",
           "min(ρ A, clamp(ρ) A): for A < 0 it is the other side that is clipped.",
           "Per token: surrogate - β KL; then mask, sum, minus."),
    minutes=40, difficulty=2, points=4, after=("oac",))
