"""The offline actor-critic: an advantage for each token."""

import torch

import losses
from course.kit import Exercise, Mistake
from course.probes import normal, ragged, with_gradient


class Value(torch.nn.Module):
    """A value model of given logits."""

    def __init__(self, shape):
        super().__init__()
        self.logits = torch.nn.Parameter(normal(shape, 5))

    def forward(self, source, tokens):
        return self.logits


def plain(answer):
    batch, _ = ragged()
    return with_gradient(lambda x: losses.oac(x, normal(batch.mask.shape, 4), batch.mask),
                         -normal(batch.mask.shape, 3).abs())


def in_improve(answer):
    """As Improve calls it, with a value model."""
    batch, logits = ragged()
    reference = losses.ReferenceModels(value=Value(batch.mask.shape))
    loss = losses.OAC(None, None, reference)
    return with_gradient(lambda x: loss(x, batch, 0, 1), logits)


def value_stays(answer):
    """What the value model is taught by this loss: nothing."""
    batch, logits = ragged()
    value = Value(batch.mask.shape)
    total = losses.OAC(None, None, losses.ReferenceModels(value=value))(
        logits.clone().requires_grad_(), batch, 0, 1)
    total.backward()
    grad = value.logits.grad
    return {"the value model's gradient": torch.zeros(()) if grad is None else grad.abs().sum()}


EXERCISE = Exercise(
    name="oac",
    goal="You can weigh each token by its advantage over what the behaviour policy would get.",
    functions=("losses.oac", "losses.OAC.forward"),
    stages={"oac: the loss of given advantages": plain,
            "OAC.forward: the advantage": in_improve,
            "OAC.forward: the value is fixed": value_stays},
    mistakes=(
        Mistake("-(advantages * logprobs * mask).sum()", "-(advantages * logprobs).sum()",
                "padding is counted: multiply by the mask before the sum."),
        Mistake("-(advantages * logprobs * mask).sum()", "(advantages * logprobs * mask).sum()",
                "the sign is the wrong way round: good tokens would become less likely."),
        Mistake("-(advantages * logprobs * mask).sum()",
                "-(advantages * logprobs * mask).sum() / mask.sum()",
                "it is a mean; a sum over tokens is wanted, the trainer divides."),
        Mistake("-(advantages * logprobs * mask).sum()",
                "-(advantages.clamp(min=0) * logprobs * mask).sum()",
                "negative advantages are dropped: OAC pushes bad tokens down too."),
        Mistake("batch.reward - values(self.reference.value, batch)", "batch.reward",
                "the value is missing: the reward alone pushes every token up, the bad ones "
                "too. A_t = G_t - V(s_t)."),
        Mistake("batch.reward - values(self.reference.value, batch)",
                "values(self.reference.value, batch) - batch.reward",
                "the advantage has the wrong sign: it is the return less the value."),
        Mistake("values(self.reference.value, batch)",
                "self.reference.value(batch.source, batch.tokens)",
                "the value model gives logits: V is their sigmoid, in [0, 1] as rewards are "
                "(values() has it, and keeps gradients out)."),
        Mistake("values(self.reference.value, batch)",
                "self.reference.value(batch.source, batch.tokens).sigmoid()",
                "the value model gets a gradient. V^μ is fixed: values() keeps gradients out."),
    ),
    hints=("batch.reward is (B, 1), values(...) is (B, T): their difference is (B, T) by itself.",
           "chosen_logprobs(logits, batch) picks the targets' log-probabilities."),
    minutes=20, difficulty=2, points=3, after=("bc-loss",))
