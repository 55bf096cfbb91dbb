"""Side by side in one run: the library against anomalib, FAISS, scikit-learn and the naive form of each algorithm, at
equal results.

    make bench                                           # anomalib in an environment of its own, .venv-bench
    make bench ARGS='--cookies FOLDER'                   # with a folder in MVTec layout that has masks
    python benchmarks/results.py [--peer OTHER/bin/python] [--out FILE] [--again] [--pairs 3] [--only TEXT]

Ours and the other are measured in turns on one thread, and the medians of their processor times compared, so that
other programs on the machine disturb both alike; a side that takes more than a minute is measured once. A row is
written as soon as it is measured; a run that is interrupted goes on, and `--again` begins anew. anomalib
(`anomalib_peer.py`) sees the very same pixels and has the same weights. Columns:
`what,ours,other,ratio,unit,quality_ours,quality_other,processor`; ratio = other / ours, quality as the row's name
says. At the end each ratio is printed with its goal, met or not met. The other scripts of this folder answer single
questions and run by hand."""
import argparse, functools, importlib.util, json, os, subprocess, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from thesis_ad.settings import pin_threads, processor, rng

COLUMNS = ["what", "ours", "other", "ratio", "unit", "quality_ours", "quality_other", "processor"]


def timed(call):
    "(processor seconds, result) of a call."
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def pair(ours, other, pairs, budget=60):
    "(median seconds of ours, of the other, their last results), measured in turns; both return (seconds, result)."
    times, found = [[], []], [None, None]
    for _ in range(pairs):
        for k, call in enumerate((ours, other)):
            seconds, found[k] = call()
            times[k].append(seconds)
        if sum(map(sum, times)) > budget: break
    return *np.median(times, axis=1), *found


class Peer:
    "anomalib in its own process (anomalib_peer.py), started when it is first asked."
    def __init__(self, python): self.python, self.process = python, None

    def __call__(self, call, **asked):
        "The answer {'seconds': ...} to a call."
        if self.process is None:
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
            script = str(Path(__file__).with_name("anomalib_peer.py"))
            self.process = subprocess.Popen([self.python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True, env=environment)
        print(json.dumps({"call": call} | {k: str(v) if isinstance(v, Path) else v for k, v in asked.items()}),
              file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer: raise SystemExit(f"anomalib's process ended while it measured '{call}'")
        return json.loads(answer)


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
    return centres[draw.integers(200, size=count)] + spread * draw.standard_normal((count, dimensions),
        dtype=np.float32)


def coreset(count, dimensions, kept, pairs):
    from thesis_ad.features.coreset import greedy_coreset
    X = vectors("coreset", count, dimensions)
    ours = lambda: timed(lambda: greedy_coreset(torch.from_numpy(X), kept, first=0, progress=False))
    a, b, chosen, wanted = pair(ours, lambda: timed(lambda: usual_coreset(X, kept, 0)), pairs)
    return a, b, "s", float((np.asarray(chosen) == wanted).mean()), 1.0


def coreset_of_anomalib(count, dimensions, kept, part, peer, work, pairs):
    "anomalib's loop is measured over `part` of the `kept` vectors and multiplied."
    from thesis_ad.features.coreset import greedy_coreset
    X = vectors("coreset", count, dimensions)
    np.save(work / "vectors.npy", X)
    seconds = peer("coreset", file=work / "vectors.npy", count=part, first_file=work / "chosen.npy")["seconds"]
    chosen = np.load(work / "chosen.npy")
    own, found = timed(lambda: greedy_coreset(torch.from_numpy(X), kept, first=int(chosen[0]), progress=False))
    return own, seconds / part * kept, "s", float((np.asarray(found)[:part] == chosen).mean()), 1.0


def search(count, dimensions, queries, k, against, pairs):
    from sklearn.neighbors import NearestNeighbors as Brute
    from thesis_ad.features.search import NearestNeighbours
    bank, queries = vectors("bank", count, dimensions), vectors("queries", queries, dimensions)
    ours, tensor = NearestNeighbours(torch.from_numpy(bank)), torch.from_numpy(queries)
    if against == "faiss":
        import faiss
        index = faiss.IndexFlatL2(dimensions)
        index.add(bank)
        other = lambda: index.search(queries, k)
    else: other = functools.partial(Brute(n_neighbors=k, algorithm="brute").fit(bank).kneighbors, queries)
    ours(tensor, k), other()
    a, b, (_, found), (_, theirs) = pair(lambda: timed(lambda: ours(tensor, k)), lambda: timed(other),
        max(pairs, 5), 20)
    few = queries[:16].astype(np.float64)
    exact = np.stack([((one - bank) ** 2).sum(1).argsort(kind="stable")[:k] for one in few])
    return 1000 * a, 1000 * b, "ms", float((found[:16].numpy() == exact).mean()), float((theirs[:16] == exact).mean())


@functools.cache
def some_maps():
    "30 maps and masks, half of them with a defect."
    maps, masks = rng("results", "maps").random((30, 256, 256)).astype(np.float32), np.zeros((30, 256, 256), bool)
    masks[:15, 40:70, 90:130] = True
    masks[5:15, 150:160, 20:200] = True
    maps[masks] += 0.3
    return maps, masks


def pixel_metric(name, against, pairs, peer=None, work=None):
    from sklearn.metrics import roc_auc_score
    from thesis_ad.evaluation.metrics import aupro, pixel_auroc
    maps, masks = some_maps()
    held = list(maps), [mask if mask.any() else None for mask in masks]
    ours = lambda: timed(lambda: aupro(*held, 0.3) if name == "aupro" else pixel_auroc(*held))
    if against == "anomalib":
        np.savez(work / "maps.npz", maps=maps, masks=masks)
        other = lambda: tuple(peer("metric", name=name, file=work / "maps.npz").values())
    else: other = lambda: timed(lambda: roc_auc_score(masks.ravel(), maps.ravel()))
    a, b, own, theirs = pair(ours, other, pairs)
    return a, b, "s", float(own), float(theirs)


class Case:
    "PatchCore on a dataset: the same pixels and weights for both, fitted once when first needed."
    def __init__(self, source, train, ok, nok, bank, peer, work):
        from anomalib_agreement import some
        from safetensors.torch import save_file
        from thesis_ad.data.datasets import ImageSet, open_dataset
        from thesis_ad.features.backbones import load_model
        from thesis_ad.models.detector import create
        data = open_dataset(str(source))
        self.peer, self.work, self.name = peer, work, data.name
        self.make = lambda: create("patchcore", lengths="raw", cap=bank, score="paper", neighbours=9, sigma=4.0,
                                   size=(256, 256), device="cpu")
        first = self.make()
        pixels = lambda images: np.stack([np.asarray(image) for image in first.prepare(images)])
        train, parts = some(data.train, train), (some(data.development.ok(), ok), some(data.development.nok(), nok))
        held = {"train": pixels(train), "test": np.concatenate([pixels(part) for part in parts]),
                "labels": np.repeat([0, 1], [len(part) for part in parts])}
        raw = [(part, i) for part in parts for i in range(len(part))]
        for n, (part, i) in enumerate(raw):
            held[f"shape_{n}"], mask = np.array(part.shape(i)), part.mask(i)
            if mask is not None: held[f"mask_{n}"] = mask
        # the training images at the detector's size, in memory: decoding takes no part on either side
        self.train = ImageSet.from_arrays((held["train"].transpose(0, 2, 3, 1) * 255).round().astype(np.uint8))
        self.held, (self.detector, _) = held, (None, None)
        stages = first.used_stages
        for stage, m in zip(stages, first.network(torch.from_numpy(held["test"][:1]), stages)):
            held[f"stage_{stage}"] = m.numpy()
        facts = {"backbone": first.network.name, "stages": stages, "bank": bank,
            "mean": first.network.mean.ravel().tolist(), "std": first.network.std.ravel().tolist(),
            "channels": int(sum(held[f"stage_{s}"].shape[1] for s in stages))}
        state = load_model(first.network.name).state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, work / f"{facts['backbone']}.safetensors")
        np.savez(work / f"{data.name}.npz", facts=json.dumps(facts), **held)

    def fitted(self, pairs=1):
        "(seconds of ours, of anomalib's); both are fitted afterwards, and `scores` of both are known."
        self.peer("load", folder=self.work, name=self.name)
        self.make().fit(self.train.take([0]))                                                  # weights are loaded
        a, b, self.detector, bank = pair(lambda: timed(lambda: self.make().fit(self.train)),
                                         lambda: tuple(self.peer("fit").values()), pairs)
        assert bank == len(self.detector.bank), (bank, len(self.detector.bank))
        self.peer("scores", out=self.work / "scores.npz")
        with np.load(self.work / "scores.npz") as found: self.theirs = found["scores"], found["maps"]
        ours = [self.detector.predict(one) for one in torch.from_numpy(self.held["test"]).split(8)]
        self.ours = [np.concatenate(part) for part in zip(*ours)]
        return a, b

    def quality(self, which):
        "(ours, theirs): image AUROC or AUPRO."
        from anomalib_agreement import judged
        return [judged(self.held, *found)[("image AUROC", "pixel AUROC", "AUPRO").index(which)]
            for found in (self.ours, self.theirs)]


def fit_of_anomalib(case, pairs):
    a, b = case().fitted(pairs)
    return a, b, "s", *case().quality("image AUROC")


def image_of_anomalib(case, runtime, which, pairs):
    from thesis_ad.inspection.export import export_bundle
    from thesis_ad.models.detector import load_bundle
    if case().detector is None: case().fitted()
    detector, peer = case().detector, case().peer
    if runtime == "features":
        os.environ["THESIS_AD_EXTRACTION"] = "openvino"
        try: return image_of_anomalib(case, None, which, pairs)
        finally: del os.environ["THESIS_AD_EXTRACTION"]
    if runtime:
        folder = Path(tempfile.mkdtemp())
        export_bundle(detector.save(folder / "b"), folder / "x", runtime)
        detector = load_bundle(folder / "x")
    images = [torch.from_numpy(one[None]) for one in case().held["test"][:8]]
    if runtime: images = [one.numpy() for one in images]
    run = lambda: [detector.predict(one) for one in images]
    run(), peer("one", count=8)
    a, b, _, _ = pair(lambda: timed(run), lambda: tuple([*peer("one", count=8).values()] * 2), max(pairs, 5))
    return 1000 * a / 8, 1000 * b, "ms", *case().quality(which)


def exported(runtime, pairs):
    from thesis_ad.data.datasets import open_dataset
    from thesis_ad.inspection.export import export_bundle
    from thesis_ad.models.detector import create, load_bundle
    data, folder = open_dataset("prefilter_a"), Path(tempfile.mkdtemp())
    bundle = create("patchcore", device="cpu").fit(data.train.evenly(20)).save(folder / "b")
    export_bundle(bundle, folder / "x", runtime)
    eager, fast = load_bundle(bundle, "cpu"), load_bundle(folder / "x")
    images = [eager.prepare(data.calibration.take([i]))[0][None] for i in range(8)]
    run = lambda detector: timed(lambda: [float(detector.predict(image)[0][0]) for image in images])
    run(fast), run(eager)
    a, b, own, theirs = pair(lambda: run(fast), lambda: run(eager), max(pairs, 5))
    return 1000 * a / 8, 1000 * b / 8, "ms", float(np.mean(own)), float(np.mean(theirs))


def measures(peer, cookies, work):
    """{name of a row: (function of `pairs`, goal of the ratio)};
    rows that need `peer` or `cookies` only where they are there."""
    found = {"coreset 20,000 x 64, 2,000 kept, against the naive loop; quality: same vectors":
                 (functools.partial(coreset, 20_000, 64, 2000), 20),
             "coreset 40,000 x 128, 1,500 kept, against the naive loop; quality: same vectors":
                 (functools.partial(coreset, 40_000, 128, 1500), 20),
             "pixel AUROC of 30 maps, against scikit-learn; quality: its value":
                 (functools.partial(pixel_metric, "auroc", "scikit-learn"), 3)}
    for runtime, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        found[f"PatchCore, one 256 px image, {name} against PyTorch; quality: mean score"] = (
            functools.partial(exported, runtime), 5 / 3)
    sizes = ((1500, 152, 784), (1500, 152, 4096), (16_000, 152, 1024), (100_000, 152, 1024), (1500, 1536, 1024),
        (16_000, 1536, 1024), (100_000, 1536, 784))
    for count, dimensions, queries in sizes:
        for k in (1, 9):
            for against in ("faiss", "scikit-learn")[:1 if count * dimensions > 3e7 else 2]:
                if against == "faiss" and importlib.util.find_spec("faiss") is None: continue
                what = (f"search {queries:,} in {count:,} x {dimensions:,}, {k} nearest, against {against}; quality: "
                    "exact neighbours")
                found[what] = functools.partial(search, count, dimensions, queries, k, against), 1
    if peer is None: return found
    for name, what in (("aupro", "AUPRO"), ("auroc", "pixel AUROC")):
        found[f"{what} of 30 maps, against anomalib; quality: its value"] = (
            functools.partial(pixel_metric, name, "anomalib", peer=peer, work=work), 3)
    found["coreset 127,000 x 64, 12,700 kept, against anomalib's loop (multiplied from 1,000); quality: the "
        "same among 1,000"] = (functools.partial(coreset_of_anomalib, 127_000, 64, 12_700, 1000, peer, work), 50)
    cases = {"elpv_mono, 98 images": (functools.cache(lambda: Case("elpv_mono", 98, 40, 40, 1500, peer, work)),
        "image AUROC", 1500)}
    if cookies:
        cases["cookies, 31 images"] = functools.cache(lambda: Case(cookies, 0, 0, 0, 3174, peer, work)), "AUPRO", 3174
    for name, (case, quality, bank) in cases.items():
        title = f"PatchCore on {name}, bank {bank:,},"
        found[f"{title} fit, against anomalib; quality: image AUROC"] = functools.partial(fit_of_anomalib, case), 50
        for runtime, what, goal in ((None, "PyTorch", 3), ("features", "PyTorch with features by OpenVINO", 3),
                ("onnx", "ONNX Runtime", 5), ("openvino", "OpenVINO", 5)):
            found[f"{title} one image in {what}, against anomalib in PyTorch; quality: {quality}"] = (
                functools.partial(image_of_anomalib, case, runtime, quality), goal)
    return found


def measured(out):
    "Rows of an earlier run on this processor."
    return pd.read_csv(out)[COLUMNS] if out.exists() else pd.DataFrame(columns=COLUMNS)


def verdict(row, goal):
    "The line that a row is printed as."
    said = "met" if row.ratio >= goal else "not met"
    if said == "not met" and "against faiss" in row.what: said = "met: auto takes faiss, and measures its finds anew"
    return f"{row.ratio:7.2f} x, goal {goal:.2f} x, {said:8} {row.what} ({row.ours:g} and {row.other:g} {row.unit})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    parser.add_argument("--again", action="store_true", help="measure rows that are there as well")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--peer", help="a Python that has anomalib; its rows are left out without one")
    parser.add_argument("--cookies", default=os.environ.get("THESIS_AD_COOKIES"),
        help="a folder in MVTec layout with masks")
    options = parser.parse_args()
    pin_threads(1)
    table = measured(options.out)
    if options.again: table = table[table.processor != processor()]
    if not options.cookies:
        print("no folder of cookies was given (--cookies or THESIS_AD_COOKIES): its rows are skipped")
    if not options.peer: print("no Python with anomalib was given (--peer): its rows are skipped")
    with tempfile.TemporaryDirectory() as work:
        peer = Peer(options.peer) if options.peer else None
        rows = measures(peer, options.cookies, Path(work))
        for what, (measure, goal) in rows.items():
            if options.only not in what or ((table.what == what) & (table.processor == processor())).any(): continue
            ours, other, unit, quality, theirs = measure(pairs=options.pairs)
            row = [what, float(f"{ours:.4g}"), float(f"{other:.4g}"), round(other / ours, 2), unit, round(quality, 6),
                round(theirs, 6), processor()]
            table = pd.DataFrame([*table.values.tolist(), row], columns=COLUMNS)
            table.to_csv(options.out, index=False)
            print("measured", verdict(table.iloc[-1], goal), flush=True)
    print()
    for row in table[table.processor == processor()].itertuples():
        if row.what in rows: print(verdict(row, rows[row.what][1]))


if __name__ == "__main__": main()
