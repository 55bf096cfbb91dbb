"""Tables that benchmarks write in several runs: row by row, or the rows of one processor beside those of others."""
import pandas as pd

from thesis_ad.files import atomic_write


def grown(out, keys, todo, measure):
    """The table in the CSV file `out` with the rows of `measure(*one)` for each `one` of `todo` that it lacks.

    keys: columns that tell one from another, in the order of `one`. Rows are printed and kept as they are measured."""
    table = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=keys)
    for one in todo:
        if (table[keys] == list(one)).all(axis=1).any(): continue
        rows = pd.DataFrame(measure(*one)).round(4)
        table = rows if table.empty else pd.concat([table, rows], ignore_index=True)
        with atomic_write(out) as part: table.to_csv(part, index=False)
        print(rows.to_string(index=False), flush=True)
    return table


def renewed(out, rows, key):
    "The table in the CSV file `out` with `rows` in place of those that have the same values in the column `key`."
    table = pd.read_csv(out) if out.exists() else rows.iloc[:0]
    table = pd.concat([table[~table[key].isin(rows[key])], rows], ignore_index=True)
    with atomic_write(out) as part: table.to_csv(part, index=False)
    return table
