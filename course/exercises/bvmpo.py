"""V-MPO with its temperature, and BVMPO, which holds on to the policy that grew the data."""

import torch

import losses
from course.kit import Exercise, Mistake
from course.probes import normal, ragged, with_gradient


def vmpo_of(lengths, **settings):
    batch, _ = ragged(lengths)
    logprobs = -normal(batch.mask.shape, 3).abs()
    return with_gradient(lambda x, eta: losses.vmpo(x, normal(batch.mask.shape, 4), batch.mask, eta,
                                                    **settings), logprobs,
                         torch.tensor(-0.4).double())


def bvmpo_of(kl_weight):
    batch, _ = ragged()
    logprobs, kl = -normal(batch.mask.shape, 3).abs(), normal(batch.mask.shape, 6).abs()
    return with_gradient(
        lambda x, divergence: losses.bvmpo(x, normal(batch.mask.shape, 4), divergence, batch.mask,
                                           torch.tensor(-0.4).double(), kl_weight), logprobs, kl)


EXERCISE = Exercise(
    name="bvmpo",
    goal="You can learn from the better half of the tokens at a temperature that is learned too, "
         "and anneal a KL to the behaviour policy.",
    functions=("losses.vmpo", "losses.bvmpo", "losses.anneal"),
    stages={
        "vmpo: one sentence": lambda answer: vmpo_of((8,)),
        "vmpo: an odd number of tokens": lambda answer: vmpo_of((7,)),
        "vmpo: sentences of different lengths": lambda answer: vmpo_of((4, 1, 9, 6)),
        "vmpo: another ε": lambda answer: vmpo_of((8,), epsilon=0.5),
        "bvmpo: without KL": lambda answer: bvmpo_of(0.0),
        "bvmpo: with KL": lambda answer: bvmpo_of(0.3),
        "anneal: λ from 1 to 1e-5": lambda answer: {
            f"λ at progress {p:g}": losses.anneal(p) for p in (0.0, 0.2, 0.5, 1.0, 1.5)},
    },
    mistakes=(
        Mistake("advantages.topk((len(advantages) + 1) // 2)",
                "(-advantages).topk((len(advantages) + 1) // 2)",
                "the worse half is taken: V-MPO learns from the tokens of the highest advantages."),
        Mistake("advantages.topk((len(advantages) + 1) // 2)", "advantages.topk(len(advantages))",
                "all tokens are taken: D̃ is the better half."),
        Mistake("real = mask.bool()", "real = torch.ones_like(mask).bool()",
                "padding takes part in the choice of the better half: only real tokens do."),
        Mistake("eta.detach()", "eta",
                "the weights ψ carry a gradient to η, which has a loss of its own: detach it "
                "there."),
        Mistake("(advantages / eta.detach())", "(advantages * eta.detach())",
                "η stands on the wrong side: advantages are divided by it, so that a small η makes "
                "the best tokens outweigh the others."),
        Mistake(" - math.log(len(top))", "",
                "L_η has the logarithm of a mean over D̃; this is that of a sum."),
        Mistake("+ eta * epsilon +", "- eta * epsilon +",
                "ε has the wrong sign: η ε holds η down, and the log-mean-exp holds it up."),
        Mistake("eta = log_eta.exp()", "eta = log_eta",
                "η is given as its logarithm, so that it stays positive."),
        Mistake("mask, log_eta, epsilon) * n_tokens + kl_term",
                "mask, log_eta, epsilon) + kl_term",
                "V-MPO's loss is a weighted mean and the KL a sum: times the number of tokens it "
                "is a sum like the other losses."),
        Mistake("(kl * mask).sum()", "kl.sum()",
                "the KL of padding is counted: multiply by the mask."),
        Mistake("(kl * mask).sum()", "(kl * mask).sum() / n_tokens",
                "λ multiplies the *mean* of the KL, and the whole the number of tokens: together "
                "a sum."),
        Mistake("start * (end / start) ** min(max(progress, 0.0), 1.0)",
                "start + (end - start) * min(max(progress, 0.0), 1.0)",
                "λ falls in a straight line: so it is near 1 for half of the time. Geometric: the "
                "same factor at every update."),
        Mistake("min(max(progress, 0.0), 1.0)", "progress",
                "after progress 1 λ stays at its end."),
    ),
    hints=("Pick the real tokens first: advantages[mask.bool()] is flat. Then topk.",
           "The softmax is over all of D̃, with η detached; L_η uses η itself.",
           "logsumexp(x) - log(n) is the logarithm of the mean of exp(x)."),
    minutes=60, difficulty=3, points=5, after=("oac",))
