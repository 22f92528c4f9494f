"""Other papers' methods as settings of the loop in rest.py: where they differ, and where not.

    python train_toy.py --method raft        # or train_mt.py; any flag still overrules the table

All but the last draw outputs, choose among them by a reward, and train on what was chosen; a row
says what of that is not as in ReST (rest.Settings' defaults). What makes them comparable is left as
it is: the program's number of samples, of updates, and its rates. Their rewards that only know
right and wrong become "in the best fifth of D_g": a learned reward has no other way to say "right".
`base` in them is a pretrained model; here it is what BC began with, which has learned nothing yet.
experiments/relatives.py runs them on the same budget of samples.

Left out: STaR's rationalisation, which shows the model the answer; searching as expert iteration
does in games.
"""

ONCE = dict(improve=(1,), unfiltered=False)  # one Improve a Grow, filtered at once
RIGHT = dict(filter="quantile", thresholds=(0.8,))

METHODS = {
    "rest": dict(),
    # RAFT (Dong et al. 2023, arXiv:2304.06767): the best of each source's samples, from the
    # current policy on
    "raft": dict(ONCE, filter="top", thresholds=(1.0,), human="out", temperature=(1.0,)),
    # ReST-EM (Singh et al. 2023, arXiv:2312.06585): what is right, a few of each source (10 of 32
    # there), from the base model each time
    "rest-em": dict(ONCE, **RIGHT, human="out", start="base",
                    cap=3, temperature=(0.7,), top_k=40),
    # Expert iteration (Anthony et al. 2017, arXiv:1705.08439), sampling in place of search: what
    # is right, from the current policy on
    "expert-iteration": dict(ONCE, **RIGHT, human="out", temperature=(1.0,)),
    # RFT (Yuan et al. 2023, arXiv:2308.01825): all different right ones, beside D, once, from base
    "rft": dict(ONCE, **RIGHT, grow=1, human="whole", start="base",
                distinct=True, temperature=(0.7,)),
    # Llama 2's rejection sampling (Touvron et al. 2023, arXiv:2307.09288): the best of each
    # source's samples of all rounds, from base each time
    "llama2": dict(ONCE, filter="top", thresholds=(1.0,), human="out", start="base",
                   keep_samples=True, temperature=(1.0,)),
    # Online policy gradient: no Grow, no filter. PPO's rounds with one update each, at which the
    # ratio is 1 and nothing is clipped: REINFORCE (Williams 1992), with the mean reward of a
    # source's samples as its baseline and the KL to BC
    "policy-gradient": dict(grow=0, ppo_updates=1),
}
