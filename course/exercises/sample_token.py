"""One token of a sample, by the inverse of the cumulative distribution."""

import torch

import model
from course.kit import Exercise, Mistake, Wrong
from course.probes import normal

DIVIDED = "temperature 0 divides by 0. It means greedy: the likeliest token."
U = torch.arange(0.0005, 1, 0.001, dtype=torch.float64)  # evenly: each token gets its share of them


def drawn(temperature, **truncation):
    logits = normal((9,), 1)
    logits[0], logits[1] = 3.0, 2.0  # pad and bos are likely, and never to be drawn
    ids, logprobs = model.sample_token(logits.expand(len(U), 9), U, temperature, **truncation)
    return {"how often each id is drawn": ids.bincount(minlength=9),
            "the ids": ids, "the log-probabilities": logprobs}


def greedy(answer):
    try:
        return drawn(0)
    except (ArithmeticError, IndexError, RuntimeError):
        raise Wrong(DIVIDED) from None


def rows(answer):
    """Two rows with different numbers: each row has its own distribution."""
    ids, logprobs = model.sample_token(normal((2, 9), 2), torch.tensor([0.1, 0.9]).double(), 1.0)
    return {"the ids": ids, "the log-probabilities": logprobs}


def all_or_nothing(answer):
    logits = torch.tensor([[-50.0, -50.0, -800.0, 0.0, -800.0]]).double()
    ids, logprobs = model.sample_token(logits, torch.zeros(1).double(), 1.0)
    return {"the ids": ids, "the log-probabilities": logprobs}


EXERCISE = Exercise(
    name="sample-token",
    goal="You can draw from a policy with one uniform number a token, at any temperature.",
    functions=("model.sample_token",),
    stages={
        "temperature 1": lambda answer: drawn(1.0),
        "several rows at once": rows,
        "u = 0, and ids of probability 0": all_or_nothing,
        "temperature 0.5": lambda answer: drawn(0.5),
        "temperature 0 is greedy": greedy,
        "top-k and top-p": lambda answer: drawn(0.7, top_k=4, top_p=0.9),
    },
    mistakes=(
        Mistake("(allowed / temperature)", "(allowed * temperature)",
                "the temperature stands on the wrong side: below 1 it makes the likely tokens more "
                "likely, so logits are divided by it."),
        Mistake("return ids, logprobs.gather(-1, ids[..., None])[..., 0]",
                "return ids, (logits / max(temperature, 1e-6)).log_softmax(-1)"
                ".gather(-1, ids[..., None])[..., 0]",
                "the log-probability is that of the tempered distribution. What is returned is "
                "the policy's own log π, whatever the temperature."),
        Mistake("if temperature < 1e-6:", "if temperature < 0:", DIVIDED),
        Mistake("[..., 0].log()", "[..., 0]",
                "a probability was returned where its logarithm was asked for."),
        Mistake("truncate(probs[..., EOS:], top_k, top_p), u) + EOS",
                "truncate(probs, top_k, top_p), u)",
                "pad and bos are drawn. They are no tokens of an output: leave ids 0 and 1 out, "
                "and number what is left from EOS = 2 on."),
        Mistake("truncate(probs[..., EOS:], top_k, top_p), u) + EOS",
                "truncate(probs[..., EOS:], top_k, top_p), u)",
                "the ids are too small by 2: without pad and bos the first entry is eos, id 2."),
        Mistake("truncate(probs[..., EOS:], top_k, top_p), u)",
                "truncate(probs[..., EOS:], top_k, top_p), 1 - u)",
                "1 - u in place of u: draws as often, but not the same sample for the same number, "
                "and at u = 0 it asks for what lies beyond the last token."),
        Mistake("allowed.argmax(-1) + EOS", "logprobs.argmax(-1)",
                "greedy decoding takes pad or bos where one of them is likeliest: they are never "
                "drawn."),
        Mistake("ids = inverse_cdf(truncate(probs, top_k, top_p), u) + EOS",
                "ids = inverse_cdf(probs, u) + EOS",
                "top_k and top_p do nothing here: truncate(probs, top_k, top_p) sets the entries "
                "to 0 that may not be drawn."),
    ),
    hints=("Without pad and bos: probs[..., EOS:], and add EOS to what was found.",
           "c = probs.cumsum(-1); the token is the first whose c lies above u times the last c: "
           "torch.searchsorted(c, point, right=True) finds it, point of shape (..., 1).",
           "Two distributions: the one that is drawn from (tempered, truncated), and the policy's "
           "own, whose log-probability is returned."),
    minutes=40, difficulty=2, points=4, after=("bc-loss",), withheld=("inverse_cdf",))
