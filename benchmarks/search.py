"""Exact nearest neighbours: float32 products, bfloat16 shortlist, scikit-learn's brute force, and FAISS where it is installed.

    python benchmarks/search.py --out benchmarks/search.csv     # banks of 1,500 to 64,000 vectors, 152 and 1,536 dimensions

Prints milliseconds of processor time for 1,024 queries (best of three) on one thread, and the share of equal indices. It sets the limits
of `features.search.choose_way`: `bfloat16` from 3,000 vectors on where a processor has vector instructions for it alone, and, by an earlier run on
another machine that is not in the table, from two million numbers on where it has bfloat16 tiles (AMX); `faiss` from 4,000 vectors on in place of
`float32`, and from 12,000 vectors of at most 512 numbers on in place of `bfloat16`.

Measured once (search.csv, AMD processor without tiles, other programs running). Relative to scikit-learn, `auto` takes 0.27 to 1.2 times the time;
without bfloat16 instructions, with float32 below 4,000 vectors and faiss from there on, 0.44 to 1.2 times. Relative to `faiss` as it is used here, which measures
its finds anew, `auto` takes 0.55 to 1.4 times the time. The indices are the same but for one in several thousand, whose distances a float32 cannot tell apart.
"""
import argparse, importlib.util, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors

from thesis_ad.features.search import NearestNeighbours, choose_way
from thesis_ad.settings import pin_threads, rng


def vectors(key, count, dimensions):
    "Rows whose variance falls off as that of real features does."
    return rng("search", key).standard_normal((count, dimensions), dtype=np.float32) * np.geomspace(5, 0.3, dimensions, dtype=np.float32) + 4


def timed(call, repeats=3):
    best, result = np.inf, None
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
    return 1000 * best, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    options, rows = parser.parse_args(), []
    pin_threads(1)
    print(f"{'bank':>7} {'dims':>5} {'k':>2}  {'float32':>9} {'bfloat16':>9} {'sklearn':>9} {'faiss':>9}  auto      equal")
    for count, dimensions in ((1500, 152), (3000, 152), (8000, 152), (16_000, 152), (64_000, 152), (1500, 1536), (3000, 1536), (8000, 1536), (16_000, 1536)):
        bank, queries = torch.from_numpy(vectors("bank", count, dimensions)), torch.from_numpy(vectors("queries", 1024, dimensions))
        for k in (1, 9):
            ways = ["float32", "bfloat16"] + (["faiss"] if importlib.util.find_spec("faiss") else [])
            times, found = {}, {}
            for way in ways:
                neighbours = NearestNeighbours(bank, way)
                times[way], (_, found[way]) = timed(lambda: neighbours(queries, k))
            brute = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank.numpy())
            times["sklearn"], (_, index) = timed(lambda: brute.kneighbors(queries.numpy()), 2)
            equal = np.mean([(found[way].numpy() == index).mean() for way in ways])
            cells = " ".join(f"{times[way]:7.0f}ms" if way in times else f"{'–':>9}" for way in ("float32", "bfloat16", "sklearn", "faiss"))
            print(f"{count:7,} {dimensions:5} {k:2}  {cells}  {choose_way('auto', bank):8}  {equal:.2%}", flush=True)
            rows.append({"bank": count, "dimensions": dimensions, "neighbours": k} | {f"{way}_ms": round(value) for way, value in times.items()}
                        | {"auto": choose_way("auto", bank), "equal_indices": round(equal, 6)})
    if options.out: pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__": main()
