"""python train_mt.py evaluate: a finished run's policies on test sets, without training."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from infra import measures
from infra.cli import choose_device
from infra.corpus import against_references, bleu_of
from infra.errors import UserError
from infra.report import Table, label, read_results
from infra.run import restore
from infra.settings import Parser
from infra.storage import load, load_weights, read_json
from infra.text import read_test_sets
from infra.translate import load_run, reward_of

COLUMNS = ["reward", "sampled_bleu", "sampled_chrf", "greedy_reward", "bleu", "chrf", "ter",
           "length", "repetition", "beam_bleu", "beam_chrf", "entropy", "kl_to_bc"]


def evaluate(argv, settings):
    """Measure a finished run on test sets: BC, and the last policies of ReST and of PPO."""
    parser = Parser(prog="train_mt.py evaluate", description=evaluate.__doc__)
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument("--test", required=True, nargs="+", metavar="FILE", help="test sets: files "
                        "two by two, sources and references, or one that ends in .tsv")
    parser.add_argument("--all", action="store_true", help="measure all rows of the run")
    parser.add_argument("--device", default="", help="cpu or cuda")
    args = parser.parse_args(argv)
    folder, device, tests = Path(args.run), choose_device(args.device), read_test_sets(args.test)
    policy, texts = load_run(folder, device)
    restore(settings, read_json(folder / "config.json", settings=dict)["settings"])
    reward = reward_of(folder, policy, texts, device)
    steps = steps_of(read_results(folder / "results.json")["rows"], args.all)
    policies = {name: weights_of(folder, step, policy) for name, step in steps.items()}
    for name, corpus in tests.items():
        print(table_of(name, corpus, policies, texts, reward, settings))


def steps_of(rows, every=False):
    """The step of a run that made each row's policy, {label: step}: of the last rows of BC, ReST
    and PPO, or of every row; of the rows of PPO, which have one name, only the last."""
    ppo = sum(row["name"] == "PPO" for row in rows)
    last = {row["name"]: row for row in rows}.values()
    return {label(row): "bc" if row["name"] == "BC" else f"ppo-{ppo}" if row["name"] == "PPO"
            else f"improve-{row['grow']}-{row['improve']}" for row in (rows if every else last)}


def weights_of(folder, step, like):
    """The policy that a step of a run made."""
    path, policy = folder / "steps" / f"{step}.pt", deepcopy(like)
    if not path.exists():
        raise UserError(f"{path} is missing: evaluate wants all of a finished run")
    try:
        load_weights(policy, load(path)["policy"])
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not weights of this run's policy "
                        f"({(str(error).splitlines() or ['?'])[0]})") from None
    return policy


def table_of(name, corpus, policies, texts, reward, settings):
    """Measures of named policies, BC among them, on one test set, as text."""
    against = partial(against_references, texts, corpus, bleu_of(settings), settings.beam)
    task = SimpleNamespace(test_sources=texts.ids(corpus.sources), max_len=texts.max_len,
                           reward=reward, metrics=against)
    rows = [{"name": which, **measures.evaluate(policy, policies["BC"], task, settings)}
            for which, policy in policies.items()]
    return (f"\n{name}, {len(corpus.sources)} sentences{Table(COLUMNS, rows)}\n"
            f"{rows[0]['signature']}")
