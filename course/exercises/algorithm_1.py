"""Algorithm 1: the two loops, out of Grow, the filter and Improve."""

import inspect
from unittest import mock

import numpy as np

import rest
from course.kit import Exercise, Mistake, Wrong
from infra.pairs import Pairs
from model import Config, Transformer
from rest import Settings, Task

SOURCES = [np.array([3, 2]), np.array([4, 2])]
SAMPLES = Pairs.of([0, 0, 1], [[3, 2], [4, 2], [4, 2]], reward=[0.9, 0.1, 0.5])
D = Pairs.of([0, 1], [[3, 2], [5, 2]], reward=[0.8, 0.2], human=True)
D_G = Pairs.join([SAMPLES, D])
KEYS = ("name", "loss", "grow", "improve", "threshold", "kept_samples", "kept_data")


NOTE = """\
It is a generator: after each Improve it yields (row, policy, D_g). `kept` are booleans, one for
each pair of D_g. An Improve also wants a `row`, a dict with name ("ReST"), loss (settings.loss),
grow, improve, threshold (τ), kept_samples and kept_data (the mean of `kept` over D_g's samples,
over its human pairs), to which it adds what it measures; and a `reference`, one for each Grow:
ReferenceModels(bc, behaviour=the policy that grew D_g). You may leave out what Algorithm 1 does not
have: earlier, tally, task.refresh, the value model."""


def network(name):
    policy = Transformer(Config(6, 4, 1, 1, 1, 4, 0.0, 4))
    policy.name = name
    return policy


def traced(answer, **settings):
    """What a run calls, in order; Grow, filter and Improve only note that they were called."""
    settings, steps = Settings(**settings), []
    kept_by = {i: D_G.reward > 0.1 * i for i in range(9)}
    real = {name: inspect.signature(getattr(rest, name)) for name in
            ("grow", "select", "improve_step")}

    def grow(*args, **kwargs):
        call = real["grow"].bind(*args, **kwargs).arguments
        steps.append(f"Grow {call['g']} with the policy {call['policy'].name}")
        return D_G, SAMPLES

    def select(*args, **kwargs):
        call = real["select"].bind(*args, **kwargs).arguments
        steps.append(f"the filter of Improve {call['i']}")
        return kept_by[call["i"]], 0.1 * call["i"]

    def improve_step(*args, **kwargs):
        call = real["improve_step"].bind(*args, **kwargs).arguments
        row, reference = call["row"], call["reference"]
        missing = [key for key in KEYS if key not in (row if isinstance(row, dict) else {})]
        if missing:
            raise Wrong(f"improve_step wants a row, a dict, with {', '.join(KEYS)}; there is no "
                        f"{missing[0]}")
        if call["D_g"] is not D_G:
            raise Wrong("improve_step gets all of D_g, and beside it the booleans of what is kept: "
                        "it selects by itself")
        if getattr(getattr(reference, "bc", None), "name", None) != "BC":
            raise Wrong("improve_step wants a reference: ReferenceModels(bc, behaviour=...)")
        asked = [i for i, kept in kept_by.items() if kept is call["kept"]]
        kept = f"what filter {asked[0]} keeps" if asked else "something that no filter gave"
        name = f"({row['grow']},{row['improve']})"
        grown_by = getattr(reference.behaviour, "name", "nobody")
        steps.append(f"Improve {name} of {call['policy'].name}, on {kept}, D_g grown by {grown_by}")
        return network(name), row

    task = Task(SOURCES, D, SOURCES, SOURCES, 4, lambda sources, outputs: np.ones(len(outputs)))
    with mock.patch.dict(answer, grow=grow, select=select, improve_step=improve_step):
        run = rest.rest(network("BC"), task, settings)
        if not inspect.isgenerator(run):
            raise Wrong("rest() has to yield (row, policy, D_g) after each Improve; this returns "
                        f"{type(run).__name__}")
        for k, (row, policy, D_g) in enumerate(run):
            if k > 50:
                raise Wrong("it does not end: 50 Improves, and more come")
            steps.append(f"yield the policy {policy.name}"
                         + ("" if D_g is D_G else ", without D_g"))
    return {"what happens": steps}


EXERCISE = Exercise(
    name="algorithm-1",
    goal="You can write ReST: Algorithm 1 out of grow, select and improve_step.",
    functions=("rest.rest",),
    stages={
        "one Grow, one Improve": lambda answer: traced(
            answer, grow=1, improve=(1,), unfiltered=False),
        "one Grow, I = 0 and three Improves": lambda answer: traced(answer, grow=1, improve=(3,)),
        "three Grows": lambda answer: traced(answer, grow=3, improve=(2, 1)),
    },
    mistakes=(
        Mistake("behaviour=policy", "behaviour=bc",
                "reference.behaviour is the policy that grew D_g, which is BC in the first Grow "
                "alone."),
        Mistake("improve_step(policy, D_g, kept,", "improve_step(policy, D_g.select(kept), kept,",
                "improve_step gets all of D_g, and beside it the booleans of what is kept: it "
                "selects by itself"),
        Mistake("grow(policy, task,", "grow(bc, task,",
                "each Grow samples from BC. It is the newest policy that grows the next data set."),
        Mistake("improve_step(policy, D_g", "improve_step(bc, D_g",
                "each Improve starts from BC. It fine-tunes the policy of the Improve before."),
        Mistake("select(D_g, settings, i)", "select(D_g, settings, 1)",
                "each Improve has the same filter. The threshold rises with i."),
        Mistake("settings.improves(g)", "settings.improves(1)",
                "each Grow has the Improves of the first one. settings.improves(g) numbers those "
                "of Grow g; I = 0 belongs to the first."),
        Mistake("for g in range(1, settings.grow + 1):", "for g in range(1, settings.grow):",
                "the last Grow is missing: g runs from 1 to G."),
        Mistake("            kept, tau = select(",
                "            D_g, samples = grow(policy, task, settings, g, run, earlier)\n"
                "            kept, tau = select(",
                "it grows before each Improve. One Grow serves all of its Improves: that is what "
                "makes ReST cheap."),
        Mistake("D_g, kept, task, settings, reference", "D_g, ~kept, task, settings, reference",
                "Improve gets the pairs that the filter drops."),
        Mistake("            yield row, policy, D_g", "        yield row, policy, D_g",
                "it yields once a Grow. A row comes after each Improve."),
        Mistake("            policy, row = improve_step(", "            _, row = improve_step(",
                "the new policy is thrown away: keep what improve_step returns."),
    ),
    hints=("Two loops: over g = 1..G, and over i in settings.improves(g). Which of grow, select "
           "and improve_step stands in which?",
           "grow stands in the outer loop, once; select and improve_step in the inner one. Which "
           "policy does each get, and which is the newest after it?",
           "policy, row = improve_step(policy, D_g, kept, task, settings, reference, run, row); "
           "the rest is python -m course solution algorithm-1."),
    minutes=40, difficulty=2, points=5, after=("bc-loss", "filters"), given=3, note=NOTE)
