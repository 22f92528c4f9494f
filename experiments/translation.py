"""Translation: does the reference metric follow the reward, on real text?

Claims     8: PPO loses the reference metric (BLEU), ReST does not.
Varied     the method: ReST, PPO with a KL to BC, PPO without (three of the seeds).
Held       Multi30k De-En and the settings of `train_mt.py --preset cpu`.
Takes      no time here: it reads docs/results/, which took an hour a seed. A seed's runs are

    python train_mt.py --seed 0                                    # docs/results/mt-0
    python train_mt.py --seed 0 --grow 0 --ppo-kl 0 --best-of 1    # docs/results/mt-0-free
"""

import json
from pathlib import Path

import numpy as np

from experiments.plot import BLUE, GREY, ORANGE, VERMILLION, interval, panels
from experiments.verdicts import Claim

SEEDS = range(5)
RESULTS = Path(__file__).parent.parent / "docs" / "results"
FREE = "PPO without KL"
FIELDS = ("name", "grow", "improve", "reward", "bleu", "beam_bleu", "chrf", "sampled_chrf",
          "kl_to_bc")


def points(lab):
    for folder, names in ((f"mt-{lab.seed}", {}), (f"mt-{lab.seed}-free", {"PPO": FREE})):
        file = RESULTS / folder / "results.json"
        if file.exists():
            for row in json.loads(file.read_text())["rows"]:
                name = names.get(row["name"], row["name"])
                if name == FREE or not names:
                    yield {key: row[key] for key in FIELDS} | {"name": name}


def claims(p):
    bc, ppo, free = (dict(name=name) for name in ("BC", "PPO", FREE))
    rest = dict(name="ReST", grow=2, improve=3)
    yield Claim("8", "PPO loses the reference metric, ReST does not", [
        *(p.compare(f"{name} BLEU of ReST (2,3) − BC", "=", key, rest, bc, scale=1, margin=0.5)
          for key, name in (("bleu", "greedy"), ("beam_bleu", "beam 5"))),
        p.compare("greedy BLEU of PPO − BC", "-", "bleu", ppo, bc, scale=1, margin=0.5)])
    without = p.of_seeds(p.where(**free).seeds)
    if without.seeds:
        yield Claim("8, without KL", "PPO without a KL to BC loses the reference metric", [
            without.compare("greedy BLEU of PPO without KL − BC", "-", "bleu", free, bc, scale=1,
                            margin=0.5)])


def figure(p):
    picture, (ax,) = panels("translation", 1, 8, 4.8)
    for name, colour in (("ReST", BLUE), ("PPO", VERMILLION), (FREE, ORANGE)):
        rows = p.where(name=name)
        steps = sorted({(q["grow"], q["improve"]) for q in rows.points})
        if not steps:
            continue
        bc = p.of_seeds(rows.seeds).where(name="BC")
        at = [[interval(rows.values(key, scale, grow=g, improve=i) - bc.values(key, scale))
               for key, scale in (("reward", 100), ("bleu", 1))] for g, i in steps]
        x, y = np.array([[mean for mean, _ in pair] for pair in at]).T
        half = [pair[1][1] for pair in at]
        ax.plot([0, *x], [0, *y], color=colour, marker="o", clip_on=False)
        if np.isfinite(half).all():
            ax.errorbar(x, y, yerr=half, color=colour, lw=1, alpha=0.6, ls="none")
        ax.annotate(f"{name}, {len(rows.seeds)} seeds", (x[-1], y[-1]), (8, 0), va="center",
                    textcoords="offset points", color=colour)
    ax.axhline(0, color=GREY, lw=1)
    ax.margins(x=0.3)
    ax.set(title="greedy BLEU above BC, Multi30k test set", xlabel="reward above BC, points of 100")
    return picture
