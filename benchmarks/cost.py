"""What a D_g as large as the paper's would cost: FLOP counted, rates measured, and arithmetic.

    python -m benchmarks.cost                    # the model of --preset gpu
    python -m benchmarks.cost --preset cpu

PyTorch counts the floating-point operations of drawing, scoring and training on a few pairs of 25
tokens; the clock gives the rate at which this machine does them. Hours grow with the number of
pairs, and so do bytes on the disk. The GPU's column is no measurement: it assumes that a share of
the peak that its maker states is reached.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

import losses
from benchmarks.disk import MEAN, N_SOURCES, part
from benchmarks.measure import Table, median, side_by_side
from benchmarks.peers import NeverEnding
from infra.cli import keep_memory
from infra.settings import parse
from model import Config, sample, shift_right
from reward import RewardModel
from train_mt import PRESETS, Settings

RUNS = {"IWSLT14": 100 * N_SOURCES, "WMT20": 890_000_000}  # pairs of D_g in the paper
H100 = 989e12  # FLOP/s, bfloat16 without sparsity: NVIDIA's data sheet of the H100 SXM


def config_of(preset):
    """The settings of a preset of train_mt.py, and the size of its models."""
    s = parse(Settings, ["--preset", preset], preset=PRESETS)
    return s, Config(s.vocab_size, s.d_model, s.heads, s.encoder_layers, s.decoder_layers, s.d_ff,
                     s.dropout, max(s.max_len, MEAN))


def flop(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def sides(config, sources, samples):
    """{what: (function, pairs that one call makes, scores or trains on)}"""
    torch.manual_seed(0)
    policy, judge = NeverEnding(config).eval(), RewardModel(config).eval()
    src = torch.randint(3, config.vocab_size, (sources, MEAN))
    tokens = torch.randint(3, config.vocab_size, (sources, MEAN))

    def train():
        policy.train()
        losses.bc(policy(src, shift_right(tokens)), tokens).backward()
        policy.zero_grad()

    return {"Grow": (lambda: sample(policy, src, samples, MEAN), sources * samples),
            "score": (lambda: judge.score(list(src.numpy()), list(tokens.numpy())), sources),
            "train, one epoch": (train, sources)}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="gpu")
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.1, help="of the GPU's peak, assumed")
    args = parser.parse_args(argv)
    keep_memory()
    _, config = config_of(args.preset)
    made = sides(config, args.sources, args.samples)
    operations = {what: flop(function) / n for what, (function, n) in made.items()}  # of a pair
    seconds = side_by_side({what: function for what, (function, _) in made.items()}, args.rounds)
    sizes = [x.nbytes for x in vars(part(0, 10_000)).values()]
    print(f"{sum(sizes) / 10_000:.0f} bytes a pair of {MEAN} tokens on the disk")
    table = Table("run", "pairs", "GB of disk", "what", "FLOP a pair", "GFLOP/s here", "hours here",
                  f"h at {args.share:g} H100")
    for run, pairs in RUNS.items():
        for what, each in operations.items():
            rate = made[what][1] * each / median(seconds[what])
            table.add(run, pairs, sum(sizes) / 10_000 * pairs / 1e9, what, f"{each:.3g}",
                      rate / 1e9, pairs * each / rate / 3600,
                      pairs * each / (args.share * H100) / 3600)
    table.end()


if __name__ == "__main__":
    main()
