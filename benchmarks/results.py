"""Side by side in one run: the library against the naive form of each algorithm, scikit-learn and FAISS, and its own runtimes against PyTorch.

    python benchmarks/results.py [--out benchmarks/results.csv] [--again] [--pairs 3]

Ours and the other are measured in turns on one thread, and the medians of their processor times compared, so that other programs on the
machine disturb both alike. A row is written as soon as it is measured; a run that is interrupted goes on, and `--again` begins anew.
Columns: `what,ours,other,ratio,unit,quality_ours,quality_other,processor`; ratio = other / ours, quality as the row's name says. At the end
each ratio is printed with its goal, met or not met."""
import argparse, functools, importlib.util, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from thesis_ad.settings import pin_threads, processor, rng

COLUMNS = ["what", "ours", "other", "ratio", "unit", "quality_ours", "quality_other", "processor"]


def pair(ours, other, pairs):
    "(median processor seconds of ours, of the other, their last results), measured in turns."
    times, found = [[], []], [None, None]
    for _ in range(pairs):
        for k, call in enumerate((ours, other)):
            start = time.process_time()
            found[k] = call()
            times[k].append(time.process_time() - start)
    return *np.median(times, axis=1), *found


def usual_coreset(X, count, first):
    "k-centre greedy by its definition."
    chosen, nearest = [first], np.linalg.norm(X - X[first], axis=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(X - X[chosen[-1]], axis=1))
    return np.array(chosen)


def vectors(key, count, dimensions):
    "Clusters of vectors whose variance falls off as that of real features does."
    draw = rng("results", key)
    centres = 3 * rng("results", "centres").standard_normal((200, dimensions), dtype=np.float32)
    spread = np.geomspace(1, 0.2, dimensions, dtype=np.float32)
    return centres[draw.integers(200, size=count)] + spread * draw.standard_normal((count, dimensions), dtype=np.float32)


def coreset(count, dimensions, kept, pairs):
    from thesis_ad.features.coreset import greedy_coreset
    X = vectors("coreset", count, dimensions)
    a, b, chosen, wanted = pair(lambda: greedy_coreset(torch.from_numpy(X), kept, first=0, progress=False), lambda: usual_coreset(X, kept, 0), min(pairs, 1))
    return a, b, "s", float((np.asarray(chosen) == wanted).mean()), 1.0


def search(count, dimensions, k, peer, pairs):
    from sklearn.neighbors import NearestNeighbors as Brute
    from thesis_ad.features.search import NearestNeighbours
    bank, queries = vectors("bank", count, dimensions), vectors("queries", 1024, dimensions)
    ours, tensor = NearestNeighbours(torch.from_numpy(bank)), torch.from_numpy(queries)
    if peer == "faiss":
        import faiss
        index = faiss.IndexFlatL2(dimensions)
        index.add(bank)
        other = lambda: index.search(queries, k)
    else: other = functools.partial(Brute(n_neighbors=k, algorithm="brute").fit(bank).kneighbors, queries)
    a, b, (_, found), (_, theirs) = pair(lambda: ours(tensor, k), other, pairs)
    exact = np.argsort(((queries[:64, None].astype(np.float64) - bank[None]) ** 2).sum(-1), axis=1, kind="stable")[:, :k] if count <= 16_000 else theirs[:64]
    return 1000 * a, 1000 * b, "ms", float((found[:64].numpy() == exact).mean()), float((theirs[:64] == exact).mean())


def pixel_auroc_against_sklearn(pairs):
    from sklearn.metrics import roc_auc_score
    from thesis_ad.evaluation.metrics import pixel_auroc
    draw = rng("results", "maps")
    maps, masks = draw.random((30, 256, 256)).astype(np.float32), np.zeros((30, 256, 256), bool)
    masks[:15, 40:70, 90:130] = True
    maps[masks] += 0.3
    ours = lambda: pixel_auroc(list(maps), [mask if mask.any() else None for mask in masks])
    a, b, own, other = pair(ours, lambda: roc_auc_score(masks.ravel(), maps.ravel()), pairs)
    return a, b, "s", float(own), float(other)


def exported(runtime, pairs):
    from thesis_ad.data.datasets import open_dataset
    from thesis_ad.inspection.export import export_bundle
    from thesis_ad.models.detector import create, load_bundle
    data, folder = open_dataset("prefilter_a"), Path(tempfile.mkdtemp())
    bundle = create("patchcore", device="cpu").fit(data.train.evenly(20)).save(folder / "b")
    export_bundle(bundle, folder / "x", runtime)
    eager, fast = load_bundle(bundle, "cpu"), load_bundle(folder / "x")
    images = [eager.prepare(data.calibration.take([i]))[0][None] for i in range(8)]
    ours, other = (lambda d: lambda: [float(d.predict(image)[0][0]) for image in images])(fast), (lambda d: lambda: [float(d.predict(image)[0][0]) for image in images])(eager)
    ours(), other()
    a, b, own, theirs = pair(ours, other, max(pairs, 5))
    return 1000 * a / 8, 1000 * b / 8, "ms", float(np.mean(own)), float(np.mean(theirs))


MEASURES = {            # name: (function of `pairs`, goal of the ratio)
    "coreset 20,000 x 64, 2,000 kept, against the naive loop; quality: same vectors": (functools.partial(coreset, 20_000, 64, 2000), 20),
    "coreset 40,000 x 128, 1,500 kept, against the naive loop; quality: same vectors": (functools.partial(coreset, 40_000, 128, 1500), 20),
    "pixel AUROC of 30 maps, against scikit-learn; quality: its value": (pixel_auroc_against_sklearn, 1),
    "PatchCore, one 256 px image, ONNX Runtime against PyTorch; quality: mean score": (functools.partial(exported, "onnx"), 5 / 3),
    "PatchCore, one 256 px image, OpenVINO against PyTorch; quality: mean score": (functools.partial(exported, "openvino"), 5 / 3)}
for _count, _dimensions in ((1500, 152), (16_000, 152), (1500, 1536), (16_000, 1536)):
    for _k in (1, 9):
        for _peer in ("faiss", "scikit-learn"):
            MEASURES[f"search {_count:,} x {_dimensions:,}, {_k} nearest, against {_peer}; quality: exact neighbours"] = (functools.partial(search, _count, _dimensions, _k, _peer), 1)


def measured(out):
    "Rows of an earlier run on this processor."
    return pd.read_csv(out)[COLUMNS] if out.exists() else pd.DataFrame(columns=COLUMNS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    parser.add_argument("--again", action="store_true", help="measure rows that are there as well")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    options = parser.parse_args()
    pin_threads(1)
    table = measured(options.out)
    if options.again: table = table[table.processor != processor()]
    for what, (measure, _) in MEASURES.items():
        if options.only not in what or ((table.what == what) & (table.processor == processor())).any(): continue
        if "faiss" in what and importlib.util.find_spec("faiss") is None: continue
        ours, other, unit, quality, theirs = measure(pairs=options.pairs)
        row = [what, float(f"{ours:.4g}"), float(f"{other:.4g}"), round(other / ours, 2), unit, round(quality, 6), round(theirs, 6), processor()]
        table = pd.DataFrame([*table.values.tolist(), row], columns=COLUMNS)
        table.to_csv(options.out, index=False)
    for row in table[table.processor == processor()].itertuples():
        goal = MEASURES.get(row.what, (None, None))[1]
        if goal: print(f"{row.ratio:7.2f} x, goal {goal:.2f} x, {'met' if row.ratio >= goal else 'not met':8} {row.what} ({row.ours:g} and {row.other:g} {row.unit})")


if __name__ == "__main__": main()
