"""--reward: a function of the user's own, found, tried, and called in batches."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np

from infra.errors import UserError
from infra.pairs import check_rewards
from infra.processes import on_main

BATCH = 1024  # pairs that the function gets at once
PROGRAM = {"rest", "losses", "reward", "model", "train_toy", "train_mt", "infra", "experiments",
           "benchmarks", "course"}


def own_reward(name, texts):
    """A function (sources, outputs) -> (n,) on text, by its name -> a reward on ids.

    name: FILE.py:function, or module:function, the module being looked for in the current folder
    and among what is installed.
    """
    own = find_function(name)

    def batch(sources, outputs):
        try:
            return check_rewards(own(texts.lines(sources), texts.lines(outputs)), len(outputs))
        except Exception as error:  # the user's function may raise anything
            raise failed(name, error) from error

    def reward(sources, outputs):
        return on_main(lambda: np.concatenate([
            batch(sources[at : at + BATCH], outputs[at : at + BATCH])
            for at in range(0, len(outputs), BATCH)]))

    return reward


def find_function(name):
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise UserError(f"--reward {name}: it is FILE.py:function, or module:function")
    try:
        found = from_file(Path(module)) if module.endswith(".py") else from_module(module)
    except UserError as error:
        raise UserError(f"--reward {name}: {error}") from None
    except Exception as error:  # of the user's module, at its import
        raise failed(name, error) from error
    own = getattr(found, function, None)
    if not callable(own):
        has = [key for key, value in vars(found).items() if callable(value) and key[0] != "_"]
        raise UserError(f"--reward {name}: {found.__file__ or module} has no function {function}"
                        + (f"; it has {', '.join(has[:8])}" if has else ""))
    return own


def from_file(path):
    """The module that a file is, whatever its name; what lies beside it can be imported too."""
    if not path.is_file():
        raise UserError(f"no such file; looked for in {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(f"own_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def from_module(name):
    top = name.partition(".")[0]
    if top in PROGRAM:
        raise UserError(f"{top} is a part of this program; if a file of yours is meant, "
                        f"write ./{top}.py:function")
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in (name, top):
            raise UserError(f"no module {name} in {Path.cwd()}, nor among what is installed; a "
                            "file elsewhere is given as FILE.py:function") from None
        raise


def failed(name, error):
    """UserError for what the user's own code has raised; --debug shows where."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return UserError(f"--reward {name}: {kind}{text}; --debug shows where")
