"""python train_mt.py translate: a finished run's policy from standard input to standard output."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from infra.cli import choose_device
from infra.corpus import Codec, beam_hypotheses
from infra.errors import UserError
from infra.own_reward import own_reward
from infra.processes import on_main
from infra.sampling import sample_outputs
from infra.settings import Parser, flag, range_error
from infra.storage import load, load_weights, read_json
from infra.text import Tokenizer, decode_lines
from model import EOS, Config, Transformer
from reward import RewardModel

CHUNK = 2**16  # bytes of input that are translated together, at most


def translate(argv):
    """Translate standard input to standard output, line by line as the lines come."""
    args = parsed(argv)
    folder, device = Path(args.run), choose_device(args.device)
    policy, texts = load_run(folder, device)
    if args.beam >= policy.config.vocab_size - EOS:
        raise UserError(f"--beam {args.beam} is wider than the vocabulary")
    reward = None
    if args.best_of or args.show_scores:
        reward = reward_of(folder, policy, texts, device)
    for first, lines in chunks_of_stdin():
        sources = texts.ids(lines)
        if cut := sum(map(texts.too_long, lines)):
            print(f"warning: {cut} lines were cut at {texts.max_len} tokens", file=sys.stderr)
        hypotheses = translations(policy, texts, sources, first, reward, args)
        for line, found in zip(lines, hypotheses):
            for y in found:
                y = " ".join(y.split("\n")) if line.strip() else ""
                sys.stdout.buffer.write(y.encode() + b"\n")
        sys.stdout.flush()
        sys.stdout.buffer.flush()
        if args.show_scores:
            shown = [(x, y) for x, found in zip(sources, hypotheses) for y in found]
            for score in reward([x for x, _ in shown], texts.ids([y for _, y in shown])):
                print(f"{100 * score:.1f}", file=sys.stderr)


def parsed(argv):
    """The flags of the command line; UserError for one that makes no sense."""
    parser = Parser(prog="train_mt.py translate", description=translate.__doc__)
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument("--beam", type=int, default=5, help="beam width")
    parser.add_argument("--length-penalty", type=float, default=1.0,
                        help="hypotheses compare by log-probability / length^penalty")
    parser.add_argument("--temperature", type=float, default=None,
                        help="sample at this temperature, in place of the beam; 0 is greedy")
    parser.add_argument("--best-of", type=int, default=0, metavar="N",
                        help="the best of N samples by the reward, in place of the beam")
    parser.add_argument("--n-best", type=int, default=1, metavar="N",
                        help="N lines for each line, the best first: of the beam, or of --best-of")
    parser.add_argument("--show-scores", action="store_true",
                        help="each output's reward, on standard error")
    parser.add_argument("--device", default="", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    args = parser.parse_args(argv)
    for name, kind, low, high in (("beam", int, 1, None), ("best_of", int, 0, None),
                                  ("n_best", int, 1, None), ("seed", int, 0, 2**63 - 1),
                                  ("length_penalty", float, 0, None),
                                  ("temperature", float, 0, None)):
        value = getattr(args, name)
        if value is not None and (wrong := range_error(value, kind, low, high)):
            raise UserError(f"--{flag(name)} {value}: must be {wrong}")
    if args.n_best > 1 and args.temperature is not None and not args.best_of:
        raise UserError(f"--n-best {args.n_best}: --temperature alone draws one sample; add "
                        "--best-of N")
    if args.n_best > (args.best_of or args.beam):
        raise UserError(f"--n-best {args.n_best} is more than "
                        + (f"--best-of {args.best_of}" if args.best_of else f"--beam {args.beam}"))
    return args


def translations(policy, texts, sources, first, reward, args):
    """For each source its translations, the best first. first: the number of the first line."""
    if args.best_of or args.temperature is not None:
        temperature, n = 1.0 if args.temperature is None else args.temperature, args.best_of or 1
        out = []
        for k, x in enumerate(sources, first):  # what a line becomes depends on no other line
            drawn = sample_outputs(policy, [x], n, (args.seed, k), texts.max_len, temperature)
            order = [0]
            if args.best_of:
                order = np.argsort(-reward([x] * n, drawn.targets()), kind="stable")
            out.append(texts.lines(drawn.targets(order[: args.n_best])))
        return out
    return beam_hypotheses(policy, texts, sources, args.beam, args.n_best, args.length_penalty)


def chunks_of_stdin():
    """Yields (number of the first line, lines), as they come; what is not UTF-8 is refused."""
    left, number = b"", 0
    if sys.stdin is None:  # closed
        return
    while raw := on_main(partial(sys.stdin.buffer.read1, CHUNK)):
        whole, newline, left = (left + raw).rpartition(b"\n")
        if newline:
            lines = decode_lines(whole, "standard input", number)
            yield number, lines
            number += len(lines)
    if left:
        yield number, decode_lines(left, "standard input", number)


def load_run(folder, device):
    """The policy of a finished run, and its tokenizer as a Codec."""
    policy = load_model(folder / "policy.pt", Transformer, device)
    texts = Codec(Tokenizer.load(folder / "tokenizer.json"), policy.config.max_len)
    if texts.tokenizer.vocab_size != policy.config.vocab_size:
        raise UserError(f"{folder}: tokenizer.json has {texts.tokenizer.vocab_size} entries, "
                        f"policy.pt {policy.config.vocab_size}: they are of different runs")
    return policy, texts


def reward_of(folder, policy, texts, device):
    """The reward of a run: its reward model, or the function of one's own that it was trained with.
    """
    own = read_json(folder / "config.json", settings=dict)["settings"].get("reward", "")
    if own:
        return own_reward(own, texts)
    model = load_model(folder / "reward.pt", RewardModel, device)
    if model.body.config != policy.config:
        raise UserError(f"{folder}: reward.pt and policy.pt are of different runs")
    return model.score


def load_model(path, cls, device):
    """A policy or a reward model from what a run saved. Runs no code from the file."""
    if not path.exists():
        raise UserError(f"{path} is missing: --run wants the folder of a finished run")
    content = load(path, device=device)
    try:
        model = cls(Config(**content["config"])).to(device)
        load_weights(model, content["weights"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
            MemoryError) as error:
        raise UserError(f"{path}: not a {cls.__name__} of this program "
                        f"({(str(error).splitlines() or [type(error).__name__])[0]})") from None
    return model.eval()
