"""A seed's laboratory: runs of ReST and PPO on the invented language, each made once and then kept.

    lab = Lab(seed=0)
    rows = lab.rest(grow=1, filter="gamma")      # the rows of train_toy.py with these settings
    rows = lab.online(ppo_kl=0.0)                # PPO's
    value = lab.cached("name", settings, make)   # what make() measures on a run, as JSON

A run lies in experiments/cache/<hash of the code>/, in a folder named by a hash of its settings.
What comes before Improve (BC, ratings, reward model, first D_g) lies in folders of its own, named
by those settings alone that these steps look at, and so all runs of a seed share it. A stopped
experiment goes on where it was; a changed program or setting begins anew.
"""

import ast
import hashlib
import json
import os
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import torch

import rest
import train_mt
import train_toy
from experiments import variants  # noqa: F401 (adds them to the tables)
from infra import measures
from infra.run import Run
from infra.settings import plain

HERE = Path(__file__).parent
# what a result depends on
PROGRAM = ("rest", "losses", "reward", "model", "train_toy", "experiments/variants",
           *(f"infra/{name}" for name in ("batches", "demo", "measures", "pairs", "processes",
                                          "sampling", "seeds", "trainer")))
TEXT_PROGRAM = ("train_mt", "infra/beam", "infra/corpus", "infra/text")  # for TextLab, these too
QUICK = dict(shortest=3, longest=6, demonstrations=200, rated_sources=120, eval_sources=40,
             test_sources=60, d_model=32, bc_updates=80, reward_updates=40, updates=12,
             evaluate_every=6, batch_tokens=512, value_updates=20, ppo_batch=128)
# What runs share, and what is a run's own ("improve"): the steps of each stage ...
STAGES = {
    "bc": ("bc",),
    "reward": ("rated-1", "reward", "evaluate-bc"),
    "grow": ("grow-1", "score-1"),
}
# ... and the settings that no earlier stage looks at. One that is not named here counts as BC's, so
# that to forget one only means to share less.
LOOKED_AT_FROM = {
    "reward": "rated_sources rated_temperatures rating_noise reward_updates reward_lr preferences "
              "eval_sources test_sources",
    "grow": "samples grow_sources temperature top_k top_p distinct human_data",
    "improve": "grow improve unfiltered keep_samples filter thresholds inclusive max_per_source "
               "start checkpoint loss updates lr lr_decay evaluate_every patience value_updates "
               "gold_reward gold_sync bvmpo_epsilon ppo ppo_samples ppo_rows ppo_batch ppo_group "
               "ppo_updates ppo_lr ppo_kl best_of refresh",
}


class Lab:
    """What the experiments ask of one seed."""

    program, name = train_toy, "toy"

    def __init__(self, seed, quick=False, cache=HERE / "cache"):
        self.seed = seed
        self.folder = Path(cache) / self.code()
        self.usual = self.usual_settings(quick)

    @staticmethod
    def code():
        return CODE

    def usual_settings(self, quick):
        return train_toy.Settings(seed=self.seed, device="cpu", **(QUICK if quick else {}))

    def settings(self, **changes):
        """The usual settings, but for some; another filter has thresholds of its own."""
        return replace(self.usual, **{**({"thresholds": ()} if "filter" in changes else {}),
                                      **changes})

    @contextmanager
    def prepared(self, **changes):
        """The settings, their run, and what prepare() of the program makes: task, BC, reward.

        When the block ends, however it does, other processes may have the run's folders.
        """
        settings = self.settings(**changes)
        with SharedRun(settings, self.folder, self.name) as run:
            yield settings, run, self.program.prepare(settings, run, torch.device("cpu"))

    @contextmanager
    def walk(self, **changes):
        """What is prepared, and an iterator over (row, policy, D_g) of BC and of each Improve."""
        with self.prepared(**changes) as (settings, run, made):
            bc = measures.bc_row(made.bc, made.task, settings, run), made.bc, None
            yield made, chain([bc], rest.rest(made.bc, made.task, settings, run))

    def first_D_g(self, **changes):
        """The scored D_g of a run's first Grow, and what is prepared."""
        with self.prepared(**changes) as (settings, run, made):
            return rest.grow(made.bc, made.task, settings, 1, run)[0], made

    def rest(self, **changes):
        """The rows of BC and of each Improve."""
        def make():
            with self.walk(**changes) as (_, steps):
                return [row for row, *_ in steps]

        return self.cached("rest", changes, make)

    def online(self, **changes):
        """The rows of PPO."""
        def make():
            with self.prepared(**changes) as (settings, run, made):
                return [row for row, _ in rest.online(made.bc, made.task, settings, run)]

        return self.cached("online", changes, make)

    def cached(self, name, changes, make):
        """What make() makes, as JSON: once for each name, settings, and code of make's own file."""
        settings = self.settings(**changes)
        code = hash_of(Path(make.__code__.co_filename))
        file = self.folder / folder_name("improve", settings) / f"{name}-{code}.json"
        if not file.exists():
            made = make()
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(".tmp")
            beside.write_text(json.dumps(made))
            beside.replace(file)
        return json.loads(file.read_text())


class TextLab(Lab):
    """The laboratory of a seed for train_mt.py, at a size that allows many runs.

    The data are downloaded, or in the folder that the environment variable REST_DATA names.
    """

    program, name = train_mt, "mt"

    @staticmethod
    def code():
        return CODE + TEXT_CODE

    def usual_settings(self, quick):
        return train_mt.Settings(**train_mt.PRESETS["smoke" if quick else "small"], seed=self.seed,
                                 device="cpu", data=os.environ.get("REST_DATA", ""))


class SharedRun:
    """A run whose first steps lie in folders that it shares with others: a Run for each folder.

    All that is asked of it is asked of the Run whose step is being made, or was made last.
    """

    def __init__(self, settings, folder, program="toy"):
        with ExitStack() as opened:
            runs = {stage: opened.enter_context(Run(in_folder(stage, settings, folder), program))
                    for stage in (*STAGES, "improve")}
            self.close = opened.pop_all().close  # if one cannot be opened, all are closed
        self.own = self.at_hand = runs["improve"]
        self.shared = {step: runs[stage] for stage, steps in STAGES.items() for step in steps}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __getattr__(self, name):  # end, add, log, checkpoint, ...
        return getattr(self.at_hand, name)

    def of(self, step):
        return self.shared.get(step, self.own)

    def begin(self, name):
        self.at_hand = self.of(name)
        return self.at_hand.begin(name)

    def parts(self, name, items, look=None):
        self.at_hand = self.of(name)
        return self.at_hand.parts(name, items, look)

    def pairs(self, name):
        return self.of(name).pairs(name)

    def seconds(self, name):
        return self.of(name).seconds(name)

    def bind(self, **parts):
        self.own.bind(**parts)


def in_folder(stage, settings, folder):
    """These settings as those of the run that this stage lies in."""
    return replace(as_seen(stage, settings), out=str(folder / folder_name(stage, settings)),
                   resume=True)


def as_seen(stage, settings):
    """The settings, with those that no step up to `stage` looks at as they are by default."""
    if getattr(settings, "refresh", False) and stage != "bc":
        return settings  # then the ratings depend on the number of Grows
    order = ["bc", *LOOKED_AT_FROM]
    later = order[order.index(stage) + 1 :]
    default = {field.name: field.default for field in fields(settings)}
    return replace(settings, **{name: default[name] for part in later
                                for name in LOOKED_AT_FROM[part].split() if name in default})


def folder_name(stage, settings):
    text = json.dumps(plain(replace(as_seen(stage, settings), out="", resume=False)))
    return f"{stage}-{settings.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def hash_of(*files):
    """Of programs as Python reads them: comments, docstrings and layout count for nothing."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                    body[0].value, ast.Constant):
                body[0].value.value = ""
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


CODE, TEXT_CODE = (hash_of(*(HERE.parent / f"{name}.py" for name in names))  # once, as it is run
                   for names in (PROGRAM, TEXT_PROGRAM))


def code_of(name, lab=Lab):
    """The hash of all that the points of an experiment depend on."""
    return lab.code() + hash_of(HERE / f"{name}.py", HERE / "search.py")
