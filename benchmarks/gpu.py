"""All that is to be learned of one GPU, in one command of at most eight minutes, without a network.

    python -m benchmarks.gpu --out gpu.json --data DIR   # one H100 or H200; DIR/train.de and so on
    python -m benchmarks.gpu --out gpu.json --tiny       # a dry run of two minutes, on a CPU too

Five parts, the most worth first: `tests` (tests/test_cuda.py); `grow` and `training`, ours beside
Hugging Face at the sizes of --preset gpu; `profile`, where the time goes (all three in
gpu_parts.py); `run`, train_mt.py shortened. Each is a process of its own with a time limit, so none
takes another down with it. The JSON is renewed every few seconds: what a part has found so far
stands there, and why it ended, if it failed.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.gpu_parts import NOTES
from benchmarks.measure import Table
from infra.report import label
from infra.storage import atomic_write

ROOT = Path(__file__).parent.parent
LIMITS = {"tests": 100, "grow": 120, "training": 100, "profile": 60, "run": 240}  # seconds, at most
LEAST = 15  # seconds under which a part is not begun


def run_flags(seconds):
    """train_mt.py's settings for Multi30k in so many seconds: estimates, nothing was measured.

    An update waits for the CPU, which starts some 2 500 kernels in about 20 ms, however large the
    batch; so 1 500 of BC take 30 s, and are 26 epochs of 57 batches. A step of 4 096 samples takes
    4 ms: a Grow of 116 000 about 10 s, and as much to score. 4 000 × 6 ratings by chrF take 10 s
    and the reward model 10; five rows 10 s each, most of it beam search; all the rest, BPE first,
    25. In all 180 s, of which 60 do not shrink. To compile would alone take a minute.
    """
    share = min(1.0, max(0.1, (seconds - 60) / 120))
    shrinking = dict(bc_updates=1500, bc_evaluate_every=300, rated_sources=4000, reward_updates=500,
                     grow_sources=14500, updates=300, evaluate_every=100)
    fixed = dict(vocab_size=8000, max_len=64, batch_tokens=8192, samples=8, best_of=4, grow=2)
    numbers = fixed | {name: max(1, round(share * value)) for name, value in shrinking.items()}
    return ["--no-compile", "--no-ppo", "--filter=percentile", "--improve", "2", "1",
            *(f"--{name.replace('_', '-')}={value}" for name, value in numbers.items())]


# ----------------------------------------------------------- a part as a process, watched over


def command(name, args, work, seconds):
    """The command line of a part, which leaves what it finds in the folder `work`."""
    python = [sys.executable, "-u"]
    if name == "tests":
        return [*python, "-m", "pytest", "-m", "cuda", "-vv", "--tb=short", "-p",
                "no:cacheprovider", "tests/test_cuda.py"]
    if name == "run":
        how = ["smoke"] if args.tiny else ["gpu", *run_flags(seconds)]
        return [*python, "train_mt.py", "--data", str(args.data.absolute()),
                "--out", str(work / "run"), "--preset", *how]
    return [*python, "-m", "benchmarks.gpu_parts", name, "--out", str(work / "rows.json"),
            *(["--tiny"] if args.tiny else [])]


def found_in(work):
    """What a part has left so far in its log and its files."""
    log, found = (work / "log").read_text(errors="replace"), {}
    if ended := re.findall(r"::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", log):
        found["tests"] = dict(Counter(how for _, how in ended))
        found["failed"] = [name for name, how in ended if how in ("FAILED", "ERROR")]
    if (rows := work / "rows.json").exists():
        found["rows"] = json.loads(rows.read_text())
    if (metrics := work / "run" / "metrics.jsonl").exists():
        lines = metrics.read_text().split("\n")[:-1]  # without the one that is being written
        found["events"] = [event for event in map(json.loads, lines)
                           if event["event"] in ("row", "step", "grow", "reward_model", "warning")
                           or event.get("step") == "bc" and "score" in event]
    return found


def watch(line, work, seconds, look=lambda: None):
    """Run a command line, and look() every two seconds -> why it failed, or None."""
    env = dict(os.environ)
    if "train_mt.py" in line:  # no cuDNN plans: what they cost is told by `profile`
        env["TORCH_CUDNN_SDPA_DEPRIORITIZED"] = "1"
    with open(work / "log", "wb") as log:
        process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                code = process.wait(min(2, left))
                return f"exit code {code}" if code else None
            except subprocess.TimeoutExpired:
                look()
        return f"not done after {seconds:.0f} s"
    finally:
        process.terminate()  # if it still runs, as when this program is stopped itself
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def do(name, args, seconds, keep):
    """One part. keep(found) is called again and again, with all that it has found so far."""
    with tempfile.TemporaryDirectory() as folder:
        work, begin = Path(folder), time.monotonic()
        line = command(name, args, work, seconds)
        error = watch(line, work, seconds, lambda: keep(found_in(work)))
        found = {"command": line[2:], "seconds": time.monotonic() - begin, **found_in(work)}
        if error:
            log = (work / "log").read_text(errors="replace").splitlines()
            found |= {"error": error, "log": log[-150:]}
        keep(found)


# --------------------------------------------------------------------------------- the program


def machine():
    """What all this was measured on."""
    about = {name: importlib.metadata.version(name) for name in ("torch", "transformers")
             if importlib.util.find_spec(name)}
    about |= {"python": sys.version.split()[0], "cores": os.cpu_count()}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        about |= {"gpu": gpu.name, "memory_gb": gpu.total_memory / 1e9,
                  "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return about


def show(parts):
    """The report, as it is read on a terminal."""
    for name, part in parts.items():
        print(f"\n{name}:", part.get("skipped") or part.get("error") or "done", end=", ")
        print(f"{part.get('seconds', 0):.0f} s", *part.get("tests", {}).items(),
              *part.get("failed", []))
        rows = [row for row in part.get("rows", []) if "side" in row]
        table = rows and Table("shape", "tokens/s", "x HF", "of peak", "GB", "first call", "side")
        for row in rows:  # beside the fastest of Hugging Face in the same precision
            ratios = [ratio for other, ratio in row.get("times_as_fast_as", {}).items()
                      if other.split()[:2] == ["HF", row["side"].split()[1]]]
            table.add(row.get("shape"), row.get("tokens_per_second"), min(ratios, default=None),
                      *map(row.get, ("share_of_peak", "working_gb", "first_call_seconds")),
                      " ".join([row["side"], *row.get("error", "").split()[:12]]))
        for row in (row for row in part.get("rows", []) if "what" in row):
            print({key: value for key, value in row.items() if key != "operations"})
            print(*row.get("operations", []), sep="\n")
        rows = [event for event in part.get("events", []) if event["event"] == "row"]
        table = rows and Table("row", "reward", "BLEU", "beam BLEU", "seconds")
        for row in rows:
            table.add(label(row), *map(row.get, ("reward", "bleu", "beam_bleu", "seconds")))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--data", type=Path, help="folder with train.de, train.en, val.*, test.*")
    parser.add_argument("--tiny", action="store_true", help="next to nothing, to see that it runs")
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    report = {"machine": machine(), "tiny": args.tiny, "notes": NOTES, "parts": {}}

    def keep(name, found):
        report["parts"][name] = found
        atomic_write(args.out, lambda file: file.write(json.dumps(report, indent=1).encode()))

    for name in args.parts:
        left = end - time.monotonic()
        if left < LEAST:
            keep(name, {"skipped": f"{max(0, left):.0f} s were left"})
        elif name == "run" and args.data is None:
            keep(name, {"skipped": "there is no --data"})
        else:
            do(name, args, min(left, LIMITS[name]), functools.partial(keep, name))
    show(report["parts"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no part outlives this program
    main()
