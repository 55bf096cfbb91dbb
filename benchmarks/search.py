"""Exact nearest neighbours: the float32 product of chapter 34, FAISS with its finds measured anew, bare FAISS, and
scikit-learn's brute force.

    python benchmarks/search.py --out benchmarks/search.csv     # banks of 1,500 to 100,000 vectors,
    152 and 1,536 dimensions

Milliseconds of processor time on one thread, the best of three, measured in turns. Columns: `float32_ms` and
`faiss_ms` are the two ways of `features.search`; `bare_faiss_ms` is faiss.IndexFlatL2 on the same vectors, which is
not guarded against rounding; `auto` is what `choose_way` takes; `equal_indices` is the fraction of neighbours in
which all agree. Two distances that a float32 cannot tell apart differ."""
import argparse, importlib.util, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors

from thesis_ad.features.search import NearestNeighbours, choose_way
from thesis_ad.settings import pin_threads, processor, rng

SIZES = [(count, dimensions) for dimensions, counts in ((152, (1500, 4000, 16_000, 100_000)),
    (1536, (1500, 4000, 16_000, 100_000))) for count in counts]


def vectors(key, count, dimensions):
    "Rows whose variance falls off as that of real features does."
    return rng("search", key).standard_normal((count, dimensions), dtype=np.float32) * np.geomspace(5, 0.3, dimensions,
        dtype=np.float32) + 4


def timed(calls, repeats=3):
    "({name: best processor milliseconds}, {name: result}) of calls measured in turns."
    best, results = dict.fromkeys(calls, np.inf), {}
    for name, call in [*calls.items()] * repeats:
        start = time.process_time()
        results[name] = call()
        best[name] = min(best[name], 1000 * (time.process_time() - start))
    return best, results


def measure(count, dimensions, queries, k):
    bank, x = vectors("bank", count, dimensions), vectors("queries", queries, dimensions)
    ours, asked = torch.from_numpy(bank), torch.from_numpy(x)
    calls = {"float32": lambda search=NearestNeighbours(ours, "float32"): search(asked, k)[1].numpy()}
    if importlib.util.find_spec("faiss"):
        import faiss
        bare = faiss.IndexFlatL2(dimensions)
        bare.add(bank)
        calls |= {"faiss": lambda search=NearestNeighbours(ours, "faiss"): search(asked, k)[1].numpy(),
            "bare_faiss": lambda: bare.search(x, k)[1]}
    if bank.size < 3e7:
        calls["sklearn"] = lambda brute=NearestNeighbors(n_neighbors=k,
            algorithm="brute").fit(bank): brute.kneighbors(x)[1]
    times, found = timed(calls)
    return {"bank": count, "dimensions": dimensions, "queries": queries, "neighbours": k,
        **{f"{name}_ms": round(value, 1) for name, value in times.items()}, "auto": choose_way("auto", ours),
        "equal_indices": round(float(np.all([one == found["float32"] for one in found.values()], axis=0).mean()), 6)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--largest", type=int, default=10**9, help="skip banks of more numbers than this")
    options, rows = parser.parse_args(), []
    pin_threads(1)
    for count, dimensions in SIZES:
        if count * dimensions > options.largest: continue
        for k in (1, 9):
            rows.append(measure(count, dimensions, options.queries, k) | {"processor": processor()})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            if options.out: pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__": main()
