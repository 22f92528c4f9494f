"""Time to quality: validation BLEU over wall-clock time, ours and JoeyNMT's, on Multi30k De-En.

    python -m benchmarks.quality --data DIR --out runs/quality --minutes 20

Both train the same sizes (width 128, 3+3 layers) on the same BPE ids, with the same batch size,
peak learning rate, warm-up, dropout 0.1 and label smoothing; JoeyNMT with its own schedule, data
loader and validation, started by its own command line. BLEU is sacreBLEU's of greedy outputs as
text, for both; the time that each spends on validating counts, as it does for whoever waits. One
after the other, each with all threads: JoeyNMT for so many minutes, ours for all its updates.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.corpus import folder, multi30k
from benchmarks.measure import Table
from infra.corpus import sacrebleu
from infra.figures import BLUE, STYLE, VERMILLION, panels, save_png
from infra.text import Tokenizer, read_lines

CONFIG = """
name: multi30k
joeynmt_version: 2.3.0
model_dir: {folder}/model
use_cuda: False
fp16: False
random_seed: 0
data:
  train: {folder}/train
  dev: {folder}/val
  dataset_type: plain
  src: {{lang: de, level: word, lowercase: False, max_length: 64, voc_file: {folder}/vocab}}
  trg: {{lang: en, level: word, lowercase: False, max_length: 64, voc_file: {folder}/vocab}}
testing: {{beam_size: 1, batch_size: 8192, batch_type: token, max_output_length: 64,
  eval_metrics: [bleu]}}
training: {{optimizer: adam, adam_betas: [0.9, 0.98], learning_rate: 0.002,
  scheduling: warmupinversesquareroot, learning_rate_warmup: 400, learning_rate_min: 1.0e-8,
  clip_grad_norm: 1.0, label_smoothing: {smoothing}, normalization: tokens, loss: crossentropy,
  batch_size: 1024, batch_type: token, batch_multiplier: 1, epochs: 1000, validation_freq: 500,
  logging_freq: 500, early_stopping_metric: bleu, shuffle: True, keep_best_ckpts: 1,
  print_valid_sents: [0], overwrite: True}}
model:
  initializer: xavier_uniform
  embed_initializer: xavier_uniform
  tied_embeddings: True
  tied_softmax: True
  encoder: {{type: transformer, num_layers: 3, num_heads: 4, hidden_size: 128, ff_size: 512,
    dropout: 0.1, layer_norm: pre, embeddings: {{embedding_dim: 128, scale: True, dropout: 0.0}}}}
  decoder: {{type: transformer, num_layers: 3, num_heads: 4, hidden_size: 128, ff_size: 512,
    dropout: 0.1, layer_norm: pre, embeddings: {{embedding_dim: 128, scale: True, dropout: 0.0}}}}
"""


def joeynmt(out, data, tokenizer, smoothing, minutes):
    """Trains with JoeyNMT's program, on files made for it -> [(seconds, BLEU)]."""
    out.mkdir(parents=True, exist_ok=True)
    corpora = {split: multi30k(data, split) for split in ("train", "val")}
    for split, corpus in corpora.items():
        for language, lines in (("de", corpus.sources), ("en", corpus.targets)):
            text = "".join(" ".join(map(str, tokenizer.encode(line))) + "\n" for line in lines)
            (out / f"{split}.{language}").write_text(text)
    (out / "vocab").write_text("".join(f"{i}\n" for i in range(3, tokenizer.vocab_size)))
    config = out / "config.yaml"
    config.write_text(CONFIG.format(folder=out, smoothing=smoothing))
    begin = time.time()
    with open(out / "log.txt", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "joeynmt", "train", str(config)],
                                   stdout=log, stderr=log)
        try:
            process.wait(60 * minutes)
            raise SystemExit(f"JoeyNMT stopped by itself: see {out / 'log.txt'}")
        except subprocess.TimeoutExpired:
            process.kill()
    found, bleu = [], sacrebleu().BLEU()
    for file in out.glob("model/*.hyps"):
        outputs = [tokenizer.decode([int(i) for i in line.split() if i.isdecimal()])
                   for line in read_lines(file)]
        found.append((file.stat().st_mtime - begin,
                      bleu.corpus_score(outputs, [corpora["val"].targets]).score))
    return sorted(found)


def ours(out, data, smoothing):
    """BC as `train_mt.py` trains it -> [(seconds, BLEU)]."""
    begin = time.time()
    subprocess.run([sys.executable, "train_mt.py", "--data", str(data), "--out", str(out),
                    "--label-smoothing", str(smoothing), "--dropout", "0.1", "--stop-after", "bc"],
                   check=True)
    total = time.time() - begin
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [e for e in events if e.get("step") == "bc" and e.get("score") is not None]
    before = total - trained[-1]["seconds"]  # starting, reading, learning the BPE
    return [(before + e["seconds"], e["score"]) for e in trained if e["update"]]


def figure(curves):
    picture, (ax,) = panels("quality", 1, 8, 4.6)
    for (name, curve), colour in zip(curves.items(), (BLUE, VERMILLION)):
        ax.plot([s / 60 for s, _ in curve], [bleu for _, bleu in curve], color=colour, marker="o")
        ax.annotate(name, (curve[-1][0] / 60, curve[-1][1]), (8, 0), va="center", color=colour,
                    textcoords="offset points")
    ax.set(title="validation BLEU, greedy, Multi30k De-En", xlabel="minutes")
    ax.margins(x=0.15)
    return picture


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with train.*, val.*; default: download Multi30k")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    args = parser.parse_args(argv)
    data, out = folder(args.data), args.out.absolute()
    curves = {"ours": ours(out / "ours", data, args.label_smoothing)}
    tokenizer = Tokenizer.load(out / "ours" / "tokenizer.json")
    curves["JoeyNMT"] = joeynmt(out / "joeynmt", data, tokenizer, args.label_smoothing,
                                args.minutes)
    table = Table("who", "seconds", "BLEU")
    for name, curve in curves.items():
        for seconds, bleu in curve:
            table.add(name, seconds, bleu)
    best = max(bleu for _, bleu in curves["JoeyNMT"])
    reached = next((s for s, bleu in curves["ours"] if bleu >= best), None)
    at = next(s for s, bleu in curves["JoeyNMT"] if bleu == best)
    print(f"JoeyNMT's best, {best:.1f}, came after {at:.0f} s; ours had it after "
          + (f"{reached:.0f} s, 1/{at / reached:.1f} of that" if reached else "no time: never"))
    import matplotlib
    with matplotlib.rc_context(STYLE):
        save_png(figure(curves), out / "quality.png")
    table.end()


if __name__ == "__main__":
    main()
