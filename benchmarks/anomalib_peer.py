"""anomalib's side of benchmarks/results.py: a process of the environment .venv-bench that measures what it is asked
for.

It reads one JSON object a line, {"call": NAME, ...}, and answers with one: {"seconds": processor time, ...}. Arrays
pass through .npz files."""
import json, sys, time
from pathlib import Path

import numpy as np
import torch

from anomalib_agreement import their_model, their_scores

STATE = {}


def load(folder, name):
    "A dataset that results.py has written: pixels, weights, one feature map to compare."
    STATE["held"] = held = dict(np.load(Path(folder) / f"{name}.npz"))
    STATE["facts"] = facts = json.loads(str(held["facts"]))
    STATE["model"], STATE["normalise"] = their_model(Path(folder), facts, held)
    return {"seconds": 0}


def fit():
    "Features of all training images, coreset, bank."
    model, held = STATE["model"].train(), STATE["held"]
    model.memory_bank = torch.empty(0, STATE["facts"]["channels"])
    torch.manual_seed(0)
    start = time.process_time()
    for i in range(0, len(held["train"]), 8): model(STATE["normalise"](held["train"][i:i + 8]))
    # half a vector more than the size wanted: the ratio is truncated to a whole number of vectors
    model.subsample_embedding((STATE["facts"]["bank"] + 0.5) / sum(map(len, model.embedding_store)))
    return {"seconds": time.process_time() - start, "bank": len(model.memory_bank)}


def scores(out):
    found = their_scores(STATE["model"], STATE["normalise"], STATE["held"]["test"])
    np.savez(out, scores=found[0], maps=found[1])
    return {"seconds": 0}


def one(count):
    "`count` images, one at a time."
    images = STATE["held"]["test"][:count]
    start = time.process_time()
    for image in images: their_scores(STATE["model"], STATE["normalise"], image[None])
    return {"seconds": (time.process_time() - start) / count}


def coreset(file, count, first_file):
    "The first `count` vectors that KCenterGreedy chooses; a third axis of length 1 keeps it from projecting them."
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy
    X = torch.from_numpy(np.load(file))[:, :, None]
    sampler = KCenterGreedy(X, count / len(X))
    sampler.coreset_size = count
    torch.manual_seed(0)
    start = time.process_time()
    chosen = sampler.select_coreset_idxs()
    seconds = time.process_time() - start
    np.save(first_file, chosen)
    return {"seconds": seconds}


def metric(name, file):
    "`aupro` or `auroc` over all pixels of maps [N, H, W] and masks."
    from anomalib.metrics.aupro import _AUPRO
    from torchmetrics.classification import BinaryAUROC
    held = np.load(file)
    maps, masks = torch.from_numpy(held["maps"]), torch.from_numpy(held["masks"]).int()
    measure = _AUPRO(fpr_limit=0.3) if name == "aupro" else BinaryAUROC()
    start = time.process_time()
    if name == "auroc": maps, masks = maps.flatten(), masks.flatten()
    measure.update(maps, masks)
    value = float(measure.compute())
    return {"seconds": time.process_time() - start, "value": value}


def main():
    answers, sys.stdout = sys.stdout, sys.stderr                    # what anomalib prints stays out of the answers
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(globals()[asked.pop("call")](**asked)), file=answers, flush=True)


if __name__ == "__main__": main()
