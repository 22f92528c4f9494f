"""GOLD: a policy gradient on given outputs."""

import losses
from course.kit import Exercise, Mistake
from course.probes import chosen, normal, ragged, with_gradient


def loss_of(lengths, mle_scale=1.0, **settings):
    batch, logits = ragged(lengths)
    frozen, mle = (chosen(scale * normal(logits.shape, seed), batch.tokens)
                   for scale, seed in ((1.5, 1), (mle_scale, 2)))
    return with_gradient(lambda x: losses.gold(chosen(x, batch.tokens), frozen, mle, batch.mask,
                                               **settings), logits)


EXERCISE = Exercise(
    name="gold",
    goal="You can turn given outputs into a policy gradient: importance weights, and a reward to "
         "go of K steps.",
    functions=("losses.gold",),
    stages={
        "the weights (K = 0)": lambda answer: loss_of((9, 9), steps=0),
        "the reward to go, GOLD-p": lambda answer: loss_of((9, 9), steps=2),
        "GOLD-s": lambda answer: loss_of((9, 9), steps=2, reward="s"),
        "discounted, γ = 0.5": lambda answer: loss_of((9, 9), steps=2, gamma=0.5),
        "rewards below the minimum": lambda answer: loss_of((9, 9), mle_scale=20.0),
        "sentences of different lengths": lambda answer: loss_of((4, 1, 9, 6)),
    },
    mistakes=(
        Mistake("value=past_the_end", "value=0.0",
                "Q is too small near the end of a sentence. What stands past the end? Probability "
                "1: a reward of 1 (GOLD-s), or log 1 + offset (GOLD-p), not 0."),
        Mistake("mle = mle_logprobs * mask", "mle = mle_logprobs",
                "Q looks at the log-probabilities of padding. Past the end of its own sentence a "
                "token counts as probability 1, also where the batch goes on."),
        Mistake("frozen_logprobs.exp().clamp(min_weight, 1.0)", "frozen_logprobs.exp()",
                "the importance weight has no lower bound: clamp it to [min_weight, 1]."),
        Mistake("frozen_logprobs.exp().clamp(min_weight, 1.0)",
                "logprobs.exp().clamp(min_weight, 1.0)",
                "the weight comes from the policy that is trained, and carries a gradient. π̃ is "
                "the frozen copy."),
        Mistake("frozen_logprobs.exp().clamp(min_weight, 1.0)",
                "frozen_logprobs.clamp(min_weight, 1.0)",
                "the weight is a probability; its logarithm was given."),
        Mistake("range(steps + 1)", "range(steps)",
                "one term is missing: Q_t runs from k = 0 to K, both included."),
        Mistake("r[:, k : k + T] for k in range(steps + 1)",
                "r[:, k : k + T] for k in range(1, steps + 1)",
                "the reward of the token itself is missing: Q_t begins at k = 0."),
        Mistake("gamma**k * r", "r", "γ is not used: the reward k steps on counts γ^k."),
        Mistake("r.clamp(min=min_reward)", "r",
                "single rewards have no lower bound: each is max(c, r)."),
        Mistake('mle.exp() if reward == "s" else mle + offset',
                'mle.exp() if reward == "p" else mle + offset',
                "p and s are exchanged: GOLD-s sums probabilities; a product of them is a sum of "
                "their logarithms, GOLD-p."),
        Mistake("return -(weight * q * logprobs * mask).sum()",
                "return -(weight * q * logprobs).sum()",
                "padding is counted: multiply by the mask before the sum."),
        Mistake("return -(weight * q * logprobs * mask).sum()",
                "return -(weight * q * logprobs * mask).sum() / mask.sum()",
                "it is a mean; a sum over tokens is wanted, the trainer divides."),
    ),
    hints=("First r (B, T), then r with K more columns for what lies past the end (F.pad), then Q "
           "as a sum of K + 1 slices of it.",
           "On padding, set log p_MLE to 0 = log 1 before you make r of it.",
           "Clamp each r before the sum, and the weight at the end."),
    minutes=45, difficulty=3, points=4, after=("bc-loss",))
