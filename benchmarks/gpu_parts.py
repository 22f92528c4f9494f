"""The parts of benchmarks/gpu.py that measure, each of which runs as a process of its own.

    python -m benchmarks.gpu_parts grow --out rows.json [--tiny]       # or training, or profile

A part appends rows, dicts, and keeps them in the file after each step. What runs for the first time
there is no GPU for here, so a side that fails (a library or a compiler that is missing, no memory)
becomes a row that says why, and the others are measured.
"""

import argparse
import functools
import itertools
import json
import math
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import torch
from torch.autograd import DeviceType

import rest
from benchmarks import cost, peers
from benchmarks import training as steps
from benchmarks.disk import MEAN
from benchmarks.measure import median, side_by_side, times_faster
from infra.batches import batches, collate
from infra.cli import choose_device
from infra.pairs import Pairs
from infra.sampling import sample_outputs
from infra.storage import atomic_write
from infra.trainer import compiled
from model import EOS, Transformer, sample

NOTES = {
    "float32": "without TF32, on both sides: as PyTorch comes, and as train_mt.py runs",
    "TF32": "float32 whose matrix products are made in TF32, on both sides",
    "bfloat16": "ours: autocast of float32 weights; Hugging Face's generate: weights in bfloat16; "
                "its training: autocast",
    "training": "the batches lie on the device already; `profile` has them made as a run does",
    "times_as_fast_as": "medians of the ratios within a round; all sides of a group take turns",
    "working_gb": "the highest memory of the first call, above what was there before it",
    "share_of_peak": f"FLOP counted by PyTorch in our step, a second, of {cost.H100:.4g} FLOP/s: "
                     "H100 and H200 in dense bfloat16, by NVIDIA's data sheet; TF32's is half",
    "idle": "1 - (time in which a kernel or a copy runs) / (time by the clock, no profiler on)",
}


def sizes_of(tiny):
    """How large everything is: --preset gpu, or next to nothing, and then nothing is compiled."""
    settings, config = cost.config_of("smoke" if tiny else "gpu")
    if tiny:
        return SimpleNamespace(config=config, batch_tokens=200, grow=[(4, 2), (2, 4)], length=6,
                               batches=2, rounds=1, compile=False)
    return SimpleNamespace(config=config, batch_tokens=settings.batch_tokens, length=64, batches=8,
                           grow=[(256, 8), (64, 32)], rounds=3, compile=True)


def corpus(sizes):
    """Random sources, and Pairs with a target for each; lengths vary as those of a corpus do."""
    rng, n = np.random.default_rng(0), 2 * sizes.batches * sizes.batch_tokens // MEAN
    longest = min(2 * MEAN - 5, sizes.config.max_len - 1)
    sources, targets = ([np.append(rng.integers(4, sizes.config.vocab_size, length), EOS)
                         for length in rng.integers(4, longest, n)] for _ in range(2))
    return sources, Pairs.of(range(n), targets)


class Rows(list):
    """What a part has found so far."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def save(self):
        atomic_write(self.file, lambda file: file.write(json.dumps(self).encode()))


# -------------------------------------------------------------------------------------- the clock


@contextmanager
def products(kind):
    """Float32 matrix products in TF32 or not, for both sides in the same way."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "TF32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def clock(work):
    """Seconds of a call, until the device has done it."""
    begin = perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - begin


def first_call(work):
    """Its seconds, which may be a compiler's, and the memory that it needs."""
    if not torch.cuda.is_available():
        return {"first_call_seconds": clock(work)}
    torch.cuda.reset_peak_memory_stats()
    before, seconds = torch.cuda.memory_allocated(), clock(work)
    return {"first_call_seconds": seconds,
            "working_gb": (torch.cuda.max_memory_allocated() - before) / 1e9}


def compare(rows, about, sides, tokens, rounds, flop=None):
    """A row for each side, {name: function that makes what is timed}; those that work take turns.

    tokens, flop: of one call, for rates. Each side is also timed at once, by itself ("rounds": 0),
    lest a compiler that takes too long for the next one leaves nothing of it.
    """
    def rates(seconds):
        share = {"share_of_peak": flop / seconds / cost.H100} if flop else {}
        return {"seconds": seconds, "tokens_per_second": tokens / seconds} | share

    found, works = {}, {}
    for name, make in sides.items():
        rows.append(about | {"side": name, "rounds": 0})
        rows.save()  # so that one sees at which the time was up
        found[name] = rows[-1]
        try:
            work = make()
            found[name] |= first_call(work)
            found[name] |= rates(clock(work))
            works[name] = work
        except Exception as error:
            found[name]["error"] = f"{type(error).__name__}: {str(error)[:500]}"
    rows.save()
    seconds = side_by_side(works, rounds, warm_up=0)
    for name, took in seconds.items():
        ratios = {other: times_faster(seconds, name, other) for other in works if other != name}
        found[name] |= rates(median(took)) | {"rounds": rounds, "times_as_fast_as": ratios}
    rows.save()


# -------------------------------------------------------------------------------------- the parts


def grow(rows, sizes, device):
    """Samples of forced length: first without a compiler, then, in the time that is left, with."""
    torch.manual_seed(0)
    policy = peers.NeverEnding(sizes.config).to(device).eval()

    @functools.cache
    def marian(kind):
        return peers.marian(sizes.config).to(
            device, torch.bfloat16 if kind == "bfloat16" else torch.float32)

    def ours(kind, compile=False):
        step = compiled(Transformer.step, device) if compile else Transformer.step

        def draw():
            with products(kind), torch.autocast(device.type, torch.bfloat16, kind == "bfloat16"):
                sample(policy, src, n, sizes.length, step=step,
                       generator=torch.Generator().manual_seed(0))

        return draw

    def theirs(kind, **how):
        model = marian(kind)

        def draw():
            with products(kind):
                peers.generate(model, src, n, sizes.length, True, **how)

        return draw

    plain = {f"{whose} {kind}": functools.partial(make, kind)
             for kind in ("float32", "bfloat16")
             for whose, make in (("ours", ours), ("HF", theirs))}
    fast = {"ours bfloat16": plain["ours bfloat16"],
            "ours bfloat16 compiled": lambda: ours("bfloat16", sizes.compile),
            # on a GPU its generate compiles the decoding step where the cache is static
            "HF bfloat16 static": lambda: theirs("bfloat16", cache_implementation="static")}
    for group, (sources, n) in itertools.product((plain, fast), sizes.grow):
        src = torch.randint(4, sizes.config.vocab_size, (sources, MEAN), device=device)
        compare(rows, {"shape": f"{sources} x {n}"}, group, sources * n * sizes.length,
                sizes.rounds)


def training(rows, sizes, device):
    """Some updates of BC on batches of different shapes, the same for both sides."""
    sources, pairs = corpus(sizes)
    cut = batches(pairs.padded_lengths(sources), sizes.batch_tokens, seed=0)
    made = [(batch.source, batch.tokens) for batch in (
        collate(pairs, sources, index, device) for index in itertools.islice(cut, sizes.batches))]

    def side(function, kind, compile=False):
        step = function(sizes.config, made, compile and sizes.compile, device,
                        "bfloat16" if kind == "bfloat16" else "float32")

        def train():
            with products(kind):
                step()

        return train

    def sides(kind, *compile):
        return {f"{whose} {kind}{' compiled' if how else ''}":
                functools.partial(side, function, kind, how) for how in compile
                for whose, function in (("ours", steps.ours), ("HF", steps.marian))}

    flop = cost.flop(side(steps.ours, "bfloat16"))
    about = {"updates": len(made), "tokens": steps.tokens_in(made), "flop": flop}
    for group in (sides("TF32", False) | sides("bfloat16", False), sides("bfloat16", False, True),
                  sides("TF32", True)):  # what matters most comes before what is compiled longest
        compare(rows, about, group, about["tokens"], sizes.rounds, flop)


class Ending(Transformer):
    """A policy that ends its outputs at about one token in forty, whatever its weights."""

    def logits(self, hidden):
        logits = super().logits(hidden)
        logits[..., EOS] = math.log(self.config.vocab_size / 24)
        return logits


def profile(rows, sizes, device):
    """Where the time goes in a Grow, and in updates as a run makes them: no shape comes twice."""
    torch.manual_seed(0)
    policy, ending = (cls(sizes.config).to(device) for cls in (Transformer, Ending))
    (sources, pairs), (some, n) = corpus(sizes), sizes.grow[0]
    settings = rest.Settings(batch_tokens=sizes.batch_tokens, precision="bfloat16")
    hp = settings.training(updates=4)

    def draw(seed):
        sample_outputs(ending, sources[:some], n, seed, sizes.length, batch_size=some * n,
                       precision="bfloat16")

    def train(seed):
        rest.improve(policy, pairs, sources, settings, hp, seed)

    for what, work in {"Grow": draw, "training": train}.items():
        clock(lambda: work(0))
        seconds = median(clock(lambda: work(seed)) for seed in (1, 2, 3))
        rows.append(row := {"what": what, "seconds": seconds})
        rows.save()
        with torch.profiler.profile() as profiler:
            clock(lambda: work(4))
        row["operations"] = operations_of(profiler)
        if busy := busy_seconds(profiler):
            row |= {"busy_seconds": busy, "idle": 1 - busy / seconds}
        rows.save()
        other_attention(row, work)
        rows.save()


def other_attention(row, work):
    """Seconds with cuDNN's attention, or without, whichever it was not before.

    As of 2.11 it is PyTorch's first choice on an H100 in bfloat16, and makes a plan for each new
    shape, some 30 ms of the CPU; and while rows are dropped, each step of a Grow is a new shape.
    """
    had = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(not had)
    row[f"seconds_with{'out' if had else ''}_cudnn_attention"] = median(
        clock(lambda: work(seed)) for seed in (5, 6, 7))
    torch.backends.cuda.enable_cudnn_sdp(had)


def operations_of(profiler, count=12):
    """The operations that take most of the device's time (without a GPU: the CPU's), as lines."""
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    kind = "device" if any(e.self_device_time_total for e in events) else "cpu"
    times = [(getattr(e, f"self_{kind}_time_total"), e.count, e.key) for e in events]
    total = sum(time for time, _, _ in times)
    return [f"{time / 1e3:9.2f} ms {time / total:6.1%} {calls:6d} x  {name}"
            for time, calls, name in sorted(times, reverse=True)[:count]]


def busy_seconds(profiler):
    """Seconds in which at least one kernel or copy runs on the GPU."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events()
                   if e.device_type == DeviceType.CUDA
                   and not getattr(e, "is_user_annotation", False))  # such as an optimiser's step
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6


PARTS = {"grow": grow, "training": training, "profile": profile}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    PARTS[args.part](Rows(args.out), sizes_of(args.tiny), choose_device(""))


if __name__ == "__main__":
    main()
