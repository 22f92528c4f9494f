"""Other papers' methods as settings of the loop in rest.py: where they differ, and where not.

    python train_toy.py --method raft        # or train_mt.py; any flag still overrules the table

All but the last sample outputs, choose among them by a reward, and train on what was chosen; a row
says what of that is not as in ReST. What makes them comparable is left as it is: the program's
number of samples, of updates, and its rates. Their "right" is what lies above 0.8: of a reward that
only knows right and wrong (`--task sums`) that is 1; of a learned one, whose filter by default is a
quantile, it is the best fifth of D_g. `base` in them is a pretrained model; here it is what BC
began with, which has learned nothing yet.
experiments/relatives.py runs them on the same budget of samples.

Left out: STaR's rationalisation, which shows the model the answer; searching as expert iteration
does in games.
"""

from dataclasses import dataclass

from infra.settings import setting


@dataclass
class Switches:
    """What other methods, and other implementations of ReST, do in another way"""

    top_k: int = setting(0, "Grow samples among the k likeliest tokens; 0 is off", low=0)
    top_p: float = setting(1.0, "Grow samples among the tokens that hold this probability",
                           low=1e-6, high=1)
    distinct: bool = setting(False, "keep equal outputs of a source only once")
    keep_samples: bool = setting(False, "D_g holds the samples of all Grows, not only the last")
    human_data: str = setting("filtered", "D's own pairs in D_g: filtered like the samples, kept "
                              "whole, or left out", choices=("filtered", "whole", "out"))
    inclusive: bool = setting(False, "keep what equals the threshold too: ≥ in place of the "
                              "paper's >")
    max_per_source: int = setting(0, "most samples of a source that an Improve keeps; 0: no limit",
                                  low=0)
    start: str = setting("previous", "what an Improve starts from: the previous policy, BC, or, "
                         "with BC's learning settings, the weights that BC itself began with",
                         choices=("previous", "bc", "base"))
    checkpoint: str = setting("best", "an Improve ends with the checkpoint of the best reward on "
                              "D_eval, or with its last update", choices=("best", "last"))


ONCE = dict(improve=(1,), unfiltered=False)  # one Improve a Grow, filtered at once
RIGHT = dict(filter="auto", thresholds=(0.8,))

METHODS = {
    "rest": dict(),
    # RAFT (Dong et al. 2023, arXiv:2304.06767): the best of each source's samples, from the
    # current policy on
    "raft": dict(ONCE, filter="top", thresholds=(1.0,), human_data="out", temperature=(1.0,)),
    # ReST-EM (Singh et al. 2023, arXiv:2312.06585): what is right, a few of each source (10 of 32
    # there), from the base model each time
    "rest-em": dict(ONCE, **RIGHT, human_data="out", start="base",
                    max_per_source=3, temperature=(0.7,), top_k=40),
    # Expert iteration (Anthony et al. 2017, arXiv:1705.08439), sampling in place of search: what
    # is right, from the current policy on
    "expert-iteration": dict(ONCE, **RIGHT, human_data="out", temperature=(1.0,)),
    # RFT (Yuan et al. 2023, arXiv:2308.01825): all different right ones, beside D, once, from base
    "rft": dict(ONCE, **RIGHT, grow=1, human_data="whole", start="base",
                distinct=True, temperature=(0.7,)),
    # Llama 2's rejection sampling (Touvron et al. 2023, arXiv:2307.09288): the best of each
    # source's samples of all rounds, from base each time
    "llama2": dict(ONCE, filter="top", thresholds=(1.0,), human_data="out", start="base",
                   keep_samples=True, temperature=(1.0,)),
    # Impossible Distillation (Jung et al. 2023, arXiv:2305.16635): a fresh student of what is right
    # and different, which then teaches itself once more in the same way
    "impossible-distillation": dict(ONCE, **RIGHT, grow=2, human_data="out", start="base",
                                    distinct=True, temperature=(1.0,)),
    # Online policy gradient: no Grow, no filter. PPO's rounds with one update each, at which the
    # ratio is 1 and nothing is clipped: REINFORCE (Williams 1992), with the mean reward of a
    # source's samples as its baseline and the KL to BC
    "policy-gradient": dict(grow=0, ppo=True, ppo_updates=1),
}
