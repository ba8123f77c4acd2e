import json
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import distsam
from distsam.sharding.collectives import all_reduce_sum_
from distsam.tasks.completion import CompletionTask
from distsam.tasks.entries import entries_from_dense
from distsam.tasks.split import Split, split_entries

SHAPE = (30, 20, 10)
TENSOR = np.random.default_rng(0).standard_normal(SHAPE) + 100


class CP(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.factors = nn.ParameterList(
            torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in SHAPE
        )

    def forward(self, indices):
        a, b, c = (factor[rows] for factor, rows in zip(self.factors, indices.T, strict=True))
        return (a * b * c).sum(dim=1)


def evaluate(rank, world_size):
    """Scores of an even split, and of one whose validation part has an entry for the last rank alone."""
    entries = entries_from_dense(TENSOR)
    even = split_entries(entries, 0.5, 0.2)
    lopsided = Split(train=even.train, validation=even.validation[:1], heldout=even.heldout[:0])
    context = distsam.TaskContext(
        data_rank=rank, data_size=world_size, dtype=torch.float64, sum_over_ranks=all_reduce_sum_
    )
    return [CompletionTask(context, entries, split, distsam.cp(SHAPE, 3)).evaluate(CP()) for split in (even, lopsided)]


def evaluate_in_process(rank, folder):
    warnings.simplefilter("error")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=170),
    )
    try:
        Path(folder, f"{rank}.json").write_text(json.dumps(evaluate(rank, 2)))
    finally:
        torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def test_two_ranks_score_what_one_rank_scores_also_when_one_of_them_has_no_entry(tmp_path):
    # Rank 0 is this process: starting a second one more would take as long as all other tests of this room.
    other = torch.multiprocessing.get_context("spawn").Process(target=evaluate_in_process, args=(1, str(tmp_path)))
    other.start()
    with warnings.catch_warnings():
        evaluate_in_process(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # to the last bit: every rank must take the same decision from them
    for got, expected in zip(first, evaluate(0, 1), strict=True):
        for name, value in expected.items():
            assert got[name] == (None if value is None else pytest.approx(value, rel=1e-12, abs=0)), name
    assert first[1]["validation/rmse"] is not None
    assert first[1]["validation/r2"] is None
    assert first[1]["heldout/rmse"] is None
