"""A table of a million rows with text labels: time and memory of reading it, and whether a round trip is exact.

    pip install -e '.[tables]'
    python tests/benchmarks/tables.py [--rows 1000000]

1000 x 500 x 40 entries, of which so many are there: two columns of text, one of dates, one of values. Memory is the
largest that the process had until the entries were there, torch not loaded.
"""

import argparse
import csv
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from distsam.tasks.tables import read_table, write_table

SHAPE = (1000, 500, 40)


def write(file: Path, num_rows: int) -> None:
    """Rows in no order."""
    rng = np.random.default_rng(0)
    flat = rng.choice(int(np.prod(SHAPE)), num_rows, replace=False)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["city", "product", "day", "price"])
        for i, j, k, value in zip(*np.unravel_index(flat, SHAPE), rng.normal(size=num_rows).tolist(), strict=True):
            day = f"2024-{1 + k // 28:02d}-{1 + k % 28:02d}"
            writer.writerow([f"city number {i}", f"product {j:05d}", day, repr(value)])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        write(file, num_rows)
        began = time.perf_counter()
        entries = read_table(file)
        read_s = time.perf_counter() - began
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        size_mib = file.stat().st_size / 2**20
        print(f"{num_rows} rows, {size_mib:.0f} MiB: read in {read_s:.2f} s, {peak_mib:.0f} MiB of memory at most")
        for suffix in (".csv", ".parquet", ".feather"):
            again = Path(folder) / f"again{suffix}"
            with again.open("wb") as stream:
                write_table(stream, suffix, entries.modes, entries.indices, {entries.value_name: entries.values})
            began = time.perf_counter()
            found = read_table(again)
            read_s = time.perf_counter() - began
            print(
                f"{suffix}: read in {read_s:.2f} s, {'exact' if found.sha256() == entries.sha256() else 'NOT the same'}"
            )


if __name__ == "__main__":
    main()
