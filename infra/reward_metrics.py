"""How good a reward model is, on sources that it was not trained on."""

import numpy as np

from model import EOS
from reward import ordered_within_source


def judge(score, held_out, rated, sources, references, samples, run):
    """All that is measured of a reward, logged -> {"measures": {...}, "unit_tests": {...}}.

    held_out, rated: as for `evaluate_reward_model`; the others: as for `reference_above`.
    """
    measures = evaluate_reward_model(score, held_out, rated)
    measures["reference above a sample"] = reference_above(score, sources, references, samples)
    found = {"measures": measures, "unit_tests": unit_tests(score, sources, references)}
    run.log("reward_model", **found)
    return found


def evaluate_reward_model(score, sources, rated):
    """Measures of a reward on held-out sources: correlations in [-1, 1], shares in [0, 1].

    score(sources, outputs) -> (n,); rated: Pairs of held-out sources with their true ratings. A
    measure that is not defined, where all scores are equal, is left out. Takes memory in n².
    """
    given = score([sources[i] for i in rated.source], rated.targets())
    true = rated.reward
    measures = {
        "pearson": pearson(given, true),
        "spearman": pearson(ranks(given), ranks(true)),
        "kendall": kendall(given, true),
    } if np.ptp(given) > 0 and np.ptp(true) > 0 else {}
    ordered = ordered_within_source(rated.source, given, true)
    return measures if ordered is None else measures | {"pairs within a source": ordered}


def reference_above(score, sources, references, samples):
    """The share of samples (Pairs) with a lower reward than the human target of their source."""
    given = score([sources[i] for i in samples.source], samples.targets())
    return float((score(sources, references)[samples.source] > given).mean())


def ranks(x):
    """Ranks from 0, ties sharing their mean rank, as Spearman's coefficient wants them."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def pearson(x, y):
    return float(np.corrcoef(x, y)[0, 1])


def kendall(x, y):
    """Kendall's τ-b, corrected for ties."""
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    return float((dx * dy).sum() / np.sqrt((dx != 0).sum() * (dy != 0).sum()))


def unit_tests(score, sources, references, seed=0):
    """The paper's checks: the mean reward of references, and of outputs that are bad on purpose."""
    rng = np.random.default_rng(seed)
    words = [np.asarray(y)[np.asarray(y) != EOS] for y in references]
    end = [EOS]
    made = {
        "the reference": words,
        "its words shuffled": [rng.permutation(y) for y in words],
        "repeated twice": [np.concatenate([y, y]) for y in words],
        "its first half": [y[: len(y) // 2] for y in words],
        "empty": [y[:0] for y in words],
        "the source itself": [np.asarray(x)[np.asarray(x) != EOS] for x in sources],
        "another source's": words[1:] + words[:1],
    }
    return {name: float(score(sources, [np.concatenate([y, end]) for y in outputs]).mean())
            for name, outputs in made.items()}


def table(judged, tests):
    """Both of these as text."""
    lines = ["reward model, on held-out sources"]
    lines += [f"  {name:28}{value:6.2f}" for name, value in judged.items()]
    lines += ["  mean reward of"]
    lines += [f"    {name:26}{100 * value:6.1f}" for name, value in tests.items()]
    return "\n".join(lines)
