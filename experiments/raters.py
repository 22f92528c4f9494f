"""Raters: what must a reward know, so that ReST makes a policy better, and not only sharper?

Varied     the rater, and with it how many pairs of one source's samples it ranks as chrF++ against
           the reference does: chance; the BC policy's own log-probability a token; the learned
           reward model; that chrF++ itself, with and without noise. And the sources of Grow: those
           that the policy was cloned from, or as many others, which it has never seen, and of whose
           references only the true raters know.
Held       Multi30k De-En, `train_mt.py --preset small`, ReST (1,4) without I = 0; the policy and
           the learned reward model see one half of the corpus. D stays out of D_g: by the true
           metric a reference always wins, and would be cloned once more. The rater also chooses the
           checkpoint of an Improve, on validation: chance by lot, chrF by the references there.
Takes      about half an hour a seed on one core.

What is compared is what no rater was trained on: BLEU on the test set, of samples, of greedy
outputs, of beam search. The margin is half a point of BLEU.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

import rest
from experiments.lab import TextLab
from experiments.plot import BLUE, GREY, VERMILLION, interval, panels
from experiments.verdicts import Claim
from infra.corpus import bleu_chrf, bleu_of, sentence_chrf
from infra.measures import bc_row
from infra.pairs import Pairs, score
from infra.sampling import logprobs_of, sample_outputs
from infra.seeds import stream
from infra.text import Corpus, download_multi30k, read_parallel
from reward import ordered_within_source

LAB = TextLab
SEEDS = range(3)
NOISE = {"chrF + 0.1 noise": 0.1, "chrF": 0.0}  # its standard deviation
RATERS = ("chance", "log-probability", "learned", *NOISE)
HALF = 14500  # pairs that the policy is cloned from
USUAL = dict(limit=HALF, grow=1, improve=(4,), unfiltered=False, human_data="out")
KINDS = {"samples": "sampled_bleu", "greedy": "bleu", "beam 5": "beam_bleu"}
FIELDS = (*KINDS.values(), "sampled_chrf", "chrf", "ter", "length", "repetition", "entropy",
          "kl_to_bc", "kept_samples")
N = 16  # samples of each validation source, by which a rater is judged


def points(lab):
    yield {"part": "both halves cloned", **lab.rest(limit=0, grow=0)[0]}
    for sources in ("seen", "new"):
        for name in RATERS:
            yield from lab.cached(f"{name}, {sources}", USUAL, lambda: measured(
                lab, name, sources))


def measured(lab, name, sources):
    """How well the rater ranks BC's samples of validation, and the rows of ReST with it."""
    with lab.prepared(**USUAL) as (settings, run, mt):
        more = other_half(mt.texts, settings)
        task = replace(mt.task, reward=rater(name, mt, more, lab.seed))
        if sources == "new":
            x, y = mt.texts.ids(more.sources), mt.texts.ids(more.targets)
            task = replace(task, sources=x, data=Pairs.of(range(len(x)), y, human=True))
        label = {"rater": name, "sources": sources}
        rows = [bc_row(mt.bc, mt.task, settings, run)]
        rows += [row for row, *_ in rest.rest(mt.bc, task, settings)]
        return [{"part": "rater", **label, **judged(task, mt, settings)},
                *({"part": "ReST", **label, "step": step, **{k: row[k] for k in FIELDS if k in row}}
                  for step, row in enumerate(rows))]


def other_half(texts, settings):
    """What of the corpus lies beyond settings.limit."""
    whole = read_parallel(settings.data or download_multi30k(Path(settings.cache)), "train",
                          settings.src, settings.tgt)
    pairs = [pair for pair in zip(whole.sources[settings.limit :], whole.targets[settings.limit :])
             if not any(map(texts.too_long, pair))]
    return Corpus(*map(list, zip(*pairs)))


def judged(task, mt, settings):
    """On N samples of each validation source at the temperature of Grow."""
    val = mt.texts["val"]
    pool = sample_outputs(mt.bc, task.eval_sources, N, ("raters", settings.seed), task.max_len,
                          settings.temperature[0], **settings.decoding())
    pool = score(pool, task.eval_sources, task.reward)
    lines = mt.texts.lines(pool.targets())
    best = np.arange(len(val.targets)) * N + pool.reward.reshape(-1, N).argmax(1)
    found = bleu_chrf([lines[i] for i in best], val.targets, bleu_of(settings))
    truth = sentence_chrf(lines, [val.targets[i] for i in pool.source])
    return {"pairs": ordered_in_blocks(pool, truth), "best": found["bleu"]}


def ordered_in_blocks(pool, truth):
    """As ordered_within_source, whose memory grows with the square, for a hundred sources each."""
    cut = [np.flatnonzero(pool.source // 100 == k) for k in range(pool.source.max() // 100 + 1)]
    return float(np.mean([ordered_within_source(pool.source[i], pool.reward[i], truth[i])
                          for i in cut]))


def rater(name, mt, more, seed):
    """-> a reward: (sources, outputs) -> (n,) in [0, 1]"""
    if name == "learned":
        return mt.task.reward
    if name == "log-probability":
        return lambda sources, outputs: likelihood(mt.bc, sources, outputs)
    rng = stream("raters", seed)
    if name == "chance":
        return lambda sources, outputs: rng.random(len(outputs))
    reference = {tuple(x): y for corpus in (*mt.texts.corpora.values(), more)
                 for x, y in zip(mt.texts.ids(corpus.sources), corpus.targets)}

    def true(sources, outputs):
        found = sentence_chrf(mt.texts.lines(outputs), [reference[tuple(x)] for x in sources])
        return np.clip(found + NOISE[name] * rng.standard_normal(len(found)), 0, 1)

    return true


def likelihood(policy, sources, outputs):
    """exp of the mean log-probability of a token"""
    pairs = Pairs.of(np.arange(len(outputs)), outputs)
    total = np.add.reduceat(logprobs_of(policy, sources, pairs), pairs.starts[:-1])
    return np.exp(total / pairs.lengths)


def claims(p):
    bc = dict(part="ReST", rater="learned", sources="seen", step=0)
    for kind, key in KINDS.items():
        for sources in ("seen", "new"):
            yield Claim("", f"BLEU of ReST (1,4) − BC on captions, {kind}, {sources} sources", [
                p.compare(name, "+", key, dict(part="ReST", rater=name, sources=sources, step=4),
                          bc, scale=1, margin=0.5) for name in RATERS])
        yield Claim("", f"BLEU of BC on both halves − BC on one, {kind}", [
            p.compare("cloned", "+", key, dict(part="both halves cloned"), bc, scale=1,
                      margin=0.5)])


def figure(p):
    picture, axes = panels("raters", 3, 16, 5.2)
    for ax, (kind, key) in zip(axes, KINDS.items()):
        for sources, colour, shift in (("seen", BLUE, -0.1), ("new", VERMILLION, 0.1)):
            here = [p.where(rater=name, sources=sources) for name in RATERS]
            y, half = np.array([interval(q.values(key, 1, part="ReST", step=4)
                                         - q.values(key, 1, part="ReST", step=0))
                                for q in here]).T
            ax.errorbar(np.arange(len(RATERS)) + shift, y,
                        yerr=half if np.isfinite(half).all() else None, color=colour, marker="o",
                        ls="none", capsize=3, label=f"{sources} sources")
        pairs = [p.where(rater=name, part="rater", sources="seen").values("pairs").mean()
                 for name in RATERS]
        ax.set_xticks(range(len(RATERS)), [f"{name}\n{share:.0f} %" for name, share in
                                           zip(RATERS, pairs)], fontsize=8)
        ax.axhline(0, color=GREY, lw=1)
        ax.set(title=f"BLEU above BC, {kind}", xlabel="rater; pairs that it ranks as chrF does")
    axes[0].legend(frameon=False)
    return picture
