"""Behaviour cloning, the loss that the paper's ReST uses, with its mask."""

import torch

import losses
from course.kit import Exercise, Mistake
from course.probes import ragged, with_gradient


def loss_of(lengths, **smoothing):
    batch, logits = ragged(lengths)
    return with_gradient(lambda x: losses.bc(x, batch.tokens, **smoothing), logits)


def halves(answer):
    """A batch, and the same batch in two: an update may be made of several micro-batches."""
    batch, logits = ragged()
    parts = [losses.bc(logits[k : k + 2], batch.tokens[k : k + 2]) for k in (0, 2)]
    return {"two halves of a batch, added": torch.stack(parts).sum()}


EXERCISE = Exercise(
    name="bc-loss",
    goal="You can clone a policy from pairs, by a loss that is a sum over their real tokens.",
    functions=("losses.bc",),
    stages={
        "one sentence, no padding": lambda answer: loss_of((5,)),
        "sentences of different lengths": lambda answer: loss_of((4, 1, 9, 6)),
        "two halves of a batch add up to the batch": halves,
        "label smoothing": lambda answer: loss_of((4, 1, 9, 6), label_smoothing=0.1),
    },
    mistakes=(
        Mistake(" * (targets != PAD)", "",
                "padding is counted. Targets that are PAD are no tokens: which mask leaves them "
                "out?"),
        Mistake("(loss * (targets != PAD)).sum()", "(loss * (targets != PAD)).mean()",
                "it is a mean over the batch, padding included. The loss is a sum over tokens; the "
                "trainer divides, once, by the tokens of the whole update."),
        Mistake("(loss * (targets != PAD)).sum()",
                "(loss * (targets != PAD)).sum() / (targets != PAD).sum()",
                "it is a mean over tokens. Then a micro-batch with few tokens weighs as much as "
                "one with many: return the sum, the trainer divides."),
        Mistake("loss = -logprobs", "loss = logprobs",
                "the sign is the wrong way round: training would make the human's words less "
                "likely."),
        Mistake("logprobs = logits.log_softmax(-1)",
                "logits, targets = logits[:, :-1], targets[:, 1:]\n"
                "    logprobs = logits.log_softmax(-1)",
                "shifted by one: here logits[:, t] already belongs to targets[:, t]; it is the "
                "decoder's input that was shifted."),
        Mistake("(loss * (targets != PAD)).sum()",
                "(loss * (targets != PAD)).sum() / len(targets)",
                "divided by the number of sentences. Return the sum, the trainer divides by the "
                "tokens."),
        Mistake("if label_smoothing > 0:", "if False:", "label_smoothing has no effect."),
        Mistake("logits.log_softmax(-1)", "logits",
                "logits are no log-probabilities: they have to be normalised over the vocabulary."),
        Mistake("logits.log_softmax(-1)", "logits.softmax(-1)",
                "these are probabilities; the loss is the sum of their negative logarithms."),
        Mistake("logits.log_softmax(-1)", "logits.log_softmax(1)",
                "normalised over positions. Which dimension of (B, T, V) is the vocabulary?"),
        Mistake("(targets != PAD)", "(targets > 2)",
                "eos is left out. It is a real token: without it a policy does not learn to stop."),
        Mistake("logprobs.mean(-1)", "logprobs.sum(-1)",
                "label smoothing spreads ε over the vocabulary: each entry gets ε / V, so that it "
                "is a mean."),
    ),
    hints=("log_softmax over the last dimension, then gather the entry of each target.",
           "targets[..., None] has the shape that gather wants; [..., 0] takes the dimension away.",
           "Multiply by the mask (targets != PAD) before you sum.",
           "Label smoothing ε: (1 - ε) times the loss of the target, plus ε times the mean of the "
           "losses of all V words."),
    minutes=15, difficulty=1, points=2)
