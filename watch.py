"""What goes wrong in ReST without an error. Each sign is said once in a run, and then it is yours.

The limits are rough on purpose: a run that is well stays far from all of them.

    grown(D_g, seen, settings, run)        # after a Grow: has the policy collapsed?
    filtered(D_g, kept, row, settings, run)    # before an Improve: is the filter a filter?
    measured(rows, run)                    # after a row: does only the reward rise?
"""

from filters import GLOBAL, select

# A measure by the reward and one by reference of the same outputs, each with what makes it points
# of 100: on validation where there is one, else in the invented language, on test.
BOTH = (("val_greedy_reward", 100, "val_chrf", 1), ("reward", 100, "oracle", 100))


def grown(D_g, seen, settings, run):
    """D_g scored; seen: what rest.describe says of its samples."""
    if seen["entropy"] < 0.05:
        run.warn(f"the policy's entropy has collapsed to {seen['entropy']:.3f} nats a token: its "
                 "samples hold little that is new", "entropy")
    if seen["truncated"] > 0.5:
        run.warn(f"{seen['truncated']:.0%} of the samples are cut off at the maximum length",
                 "truncated")
    different = seen["distinct"] * settings.samples
    if settings.samples >= 4 and different < 1.5:
        run.warn(f"of {settings.samples} samples of a source only {different:.1f} are distinct: "
                 "a higher temperature would spread them", "distinct")
    tau, mean = select(D_g, settings, 1)[1], D_g.reward.mean()
    if settings.filter in GLOBAL and tau <= mean:
        # τ_1 > V(π) = E_{D_g}[R] is what makes the next policy's V rise
        run.warn(f"the first threshold {tau:.3f} is not above the mean reward {mean:.3f} of D_g")


def filtered(D_g, kept, row, settings, run):
    """kept (n,): what this Improve trains on."""
    name = f"improve-{row['grow']}-{row['improve']}"
    if not kept.any():
        run.warn(f"{name}: the filter kept nothing, so it is skipped")
    elif row["improve"] and kept.all():
        run.warn(f"{name}: the filter kept everything", "everything")
    elif settings.human == "filtered" and D_g.human.any() and row["kept_data"] < 0.001:
        run.warn(f"{name}: the filter kept nothing of D: the policy is on its own now", "no D")


def measured(rows, run):
    """Does the last row have a higher reward than an earlier one, and a lower reference metric?"""
    last = rows[-1]
    for reward, times, metric, times_too in BOTH:
        if all(reward in row and metric in row for row in rows):
            for row in rows[:-1]:
                up = times * (last[reward] - row[reward])
                down = times_too * (row[metric] - last[metric])
                if up > 1 and down > 1:
                    run.warn(f"{metric} is {down:.1f} points lower than at an earlier row, and "
                             f"{reward} {up:.1f} higher: the policy may have found what the reward "
                             "model does not see", "hacking")
            return
