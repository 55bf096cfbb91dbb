"""The greedy coreset here against the usual loop, on one machine and the same vectors.

    python benchmarks/coreset.py                             # 30,000 x 128, 1,000 chosen
    python benchmarks/coreset.py --count 164000 --steps 1500

Prints seconds, their ratio, the memory beyond the data, the share of distances computed at all, and whether both choose
the same vectors. The usual loop, nearest = min(nearest, norm(X - c)), is timed over 40 steps and multiplied.

Last run (164,000 x 128, 1,640 chosen, one thread beside other work): 2.2 s here, 144 s by the usual loop, a ratio of
65; 172 MB beyond the data."""
import argparse, resource, time

import numpy as np

from thesis_ad.features import coreset
from thesis_ad.settings import pin_threads, rng


def usual(X, steps, first):
    chosen, nearest = [first], np.linalg.norm(X - X[first], axis=1)
    while len(chosen) < steps:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(X - X[chosen[-1]], axis=1))
    return np.array(chosen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", help="an .npy file of vectors in place of random ones")
    args = parser.parse_args()
    pin_threads(args.threads)
    if args.features: X = np.load(args.features)[:args.count]
    else:  # clusters of unequal size, spread and direction, like patches of a part
        g = rng("benchmark")
        centres = 3 * g.standard_normal((200, args.dimensions), dtype=np.float32)
        X = np.empty((args.count, args.dimensions), np.float32)
        # by blocks, so that making them takes no more memory than they do
        for block in np.array_split(X, max(1, args.count // 4096)):
            block[:] = centres[g.integers(0, 200, len(block))]
            block += g.standard_normal(block.shape, dtype=np.float32) * g.uniform(0.1, 1.5,
                (len(block), 1)).astype(np.float32)
    computed, distances = [0], coreset._distances

    def counted(bank, i, since, upto):
        computed[0] += len(i) * (upto - since)
        return distances(bank, i, since, upto)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    coreset._distances = counted
    start = time.process_time(), time.perf_counter()
    ours = coreset.greedy_coreset(X, args.steps, first=0, progress=False)
    cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    coreset._distances = distances
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    start, few = time.process_time(), min(40, args.steps)
    same = usual(X, few, 0)
    loop = (time.process_time() - start) / few * args.steps
    print(f"{len(X):,} x {X.shape[1]}, {args.steps:,} chosen, {args.threads} thread(s)")
    print(f"usual loop   {loop:8.1f} s of processor time (from {few} steps)")
    print(f"here         {cpu:8.1f} s of processor time, {wall:.1f} s by the clock, {memory:.0f} MB beyond the data")
    print(f"ratio        {loop / cpu:8.1f}")
    print(f"distances    {computed[0] / len(X) / args.steps:8.1%} of all pairs computed in refreshes")
    print(f"first {few} indices equal: {bool((ours[:few] == same).all())}")


if __name__ == "__main__": main()
