"""How time and memory of the greedy coreset grow with the number of vectors: 10,000 to 2,000,000 of 64 numbers, 1,000
kept.

    python benchmarks/coreset_growth.py [--out benchmarks/coreset_growth.csv] [--counts 10000 30000 …]

Each size is measured in a process of its own, on one thread. Columns: processor seconds, the memory beyond the
vectors themselves at its peak in MiB, and the fraction of all distances (vectors × chosen) that were computed. The
vectors are 200 clusters of unequal size and spread, as in benchmarks/coreset.py; a row is written as soon as it is
measured."""
import argparse, json, resource, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd

COUNTS = [10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000]


def clusters(count, dimensions):
    "Vectors float32, made by blocks, so that making them takes no more memory than they do."
    from thesis_ad.settings import rng
    draw, X = rng("coreset growth"), np.empty((count, dimensions), np.float32)
    centres = 3 * draw.standard_normal((200, dimensions), dtype=np.float32)
    for block in np.array_split(X, max(1, count // 4096)):
        block[:] = centres[draw.integers(200, size=len(block))]
        block += draw.standard_normal(block.shape, dtype=np.float32) * draw.uniform(0.1, 1.5,
            (len(block), 1)).astype(np.float32)
    return X


def measure(count, dimensions, kept):
    "The row of one size."
    from thesis_ad.features import coreset
    from thesis_ad.settings import pin_threads, processor
    pin_threads(1)
    computed, distances = [0], coreset._distances

    def counted(bank, i, since, upto):
        computed[0] += len(i) * (upto - since)
        return distances(bank, i, since, upto)

    coreset.greedy_coreset(clusters(2000, dimensions), 50, first=0, progress=False)  # what is loaded once is loaded
    coreset._distances, X = counted, clusters(count, dimensions)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    coreset.greedy_coreset(X, kept, first=0, progress=False)
    seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"vectors": count, "dimensions": dimensions, "kept": kept, "cpu_s": round(seconds, 3),
        "memory_mib": round((after - before) / 1024), "data_mib": round(X.nbytes / 2**20),
        "distances": round(computed[0] / count / kept, 4), "processor": processor()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--kept", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="write the table here as CSV")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options, rows = parser.parse_args(), []
    if options.one: return print(json.dumps(measure(options.counts[0], options.dimensions, options.kept)))
    for count in options.counts:
        command = [sys.executable, __file__, "--one", "--counts", str(count), "--dimensions", str(options.dimensions),
            "--kept", str(options.kept)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
        if options.out: pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__": main()
