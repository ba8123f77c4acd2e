import dataclasses

import numpy as np
import pytest
import torch

import distsam
from distsam import TaskContext
from distsam.errors import ArgumentError
from distsam.tasks import completion
from distsam.tasks.completion import CompletionTask
from distsam.tasks.entries import Entries, entries_from_dense
from distsam.tasks.sampler import RoutedSampler, batch_positions
from distsam.tasks.split import split_entries

SHAPE, MODE = (9, 23, 5), 1
RNG = np.random.default_rng(0)


def skewed(num=700):
    """Entries in no order, of which many lie in few rows of the routed mode."""
    rows = np.minimum(RNG.geometric(0.15, 4 * num) - 1, SHAPE[MODE] - 1)
    indices = np.stack([RNG.integers(0, SHAPE[0], 4 * num), rows, RNG.integers(0, SHAPE[2], 4 * num)], axis=1)
    indices = RNG.permutation(np.unique(indices, axis=0))[:num]
    return Entries(indices, RNG.standard_normal(len(indices)) * 3 + 10, SHAPE, "skewed")


ENTRIES = skewed()
SPLIT = split_entries(ENTRIES, observed=0.7, validation=0.2, seed=1)
NUM_TRAIN = len(SPLIT.train)
SPEC = distsam.cp(SHAPE, 3)
SIZES = [(1, None), (2, None), (4, None), (4, 2)]
SETTINGS = [(None, 1), (None, 3), (64, 1), (64, 4), (NUM_TRAIN, 1)]


def one_process(**changes):
    return CompletionTask(TaskContext(seed=5, dtype=torch.float64), ENTRIES, SPLIT, SPEC, **changes)


def on_ranks(size, num_ranges=None, sum_over_ranks=lambda sums: sums, **changes):
    contexts = [
        TaskContext(
            seed=5,
            data_rank=rank,
            data_size=size,
            dtype=torch.float64,
            routed_mode=MODE,
            num_ranges=num_ranges,
            sum_over_ranks=sum_over_ranks,
        )
        for rank in range(size)
    ]
    return [CompletionTask(context, ENTRIES, SPLIT, SPEC, **changes) for context in contexts]


def rows_of(piece):
    return [(*row, value) for row, value in zip(piece.indices.tolist(), piece.targets.tolist(), strict=True)]


def rounded(rows):
    """Values in units that swallow the rounding of a mean: one of about 1e-15 of values of about 1."""
    return [(*row[:-1], round(row[-1], 9)) for row in rows]


@pytest.mark.parametrize(("size", "num_ranges"), SIZES)
@pytest.mark.parametrize(("batch_size", "count"), SETTINGS)
def test_the_pieces_of_all_ranks_are_those_of_one_process_in_its_order(size, num_ranges, batch_size, count):
    whole, ranks = one_process(batch_size=batch_size), on_ranks(size, num_ranges, batch_size=batch_size)
    num_steps = 2 if batch_size is None else 2 * NUM_TRAIN // batch_size + 2
    for step in range(num_steps):
        of_ranks = [task.microbatches(step, count) for task in ranks]
        for n, expected in enumerate(whole.microbatches(step, count)):
            wanted, met = rounded(rows_of(expected)), []
            for task, pieces in zip(ranks, of_ranks, strict=True):
                own = rounded(rows_of(pieces[n]))
                owner = task._routing.owner
                low, high = task.row_bounds[owner.range], task.row_bounds[owner.range + 1]
                assert all(low <= row[MODE] < high for row in own)
                if num_ranges is None:
                    assert own == [row for row in wanted if low <= row[MODE] < high]
                met += own
            assert sorted(met) == sorted(wanted)


def test_a_step_may_be_asked_for_at_any_time():
    [forward, backward] = (on_ranks(2, batch_size=64)[1] for _ in range(2))
    steps = range(2 * NUM_TRAIN // 64)
    found = {step: rows_of(forward.microbatches(step, 1)[0]) for step in steps}
    assert found == {step: rows_of(backward.microbatches(step, 1)[0]) for step in reversed(steps)}


def test_a_sampler_keeps_twelve_bytes_for_each_of_its_own_examples():
    own = np.sort(np.random.default_rng(0).choice(10_000, 2_500, replace=False))
    sampler = RoutedSampler(10_000, 100, TaskContext(seed=3), own)
    batch = batch_positions(102, 10_000, 100, seed=3)
    assert own[sampler.pieces(102, 1)[0]].tolist() == [position for position in batch if position in set(own)]
    assert sum(kept.nbytes for kept in (sampler._places, sampler._examples)) == 12 * len(own)


@pytest.mark.parametrize(("size", "num_ranges"), SIZES)
@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize(("batch_size", "count"), [*SETTINGS, (4, 4)])
def test_losses_and_gradients_of_all_ranks_are_those_of_one_process(size, num_ranges, kind, batch_size, count):
    whole = one_process(batch_size=batch_size, loss=kind)
    expected, model = whole.build_model(), whole.build_model()
    for piece in whole.microbatches(3, count):
        (whole.loss(expected, piece) / count).backward()
    for task in on_ranks(size, num_ranges, batch_size=batch_size, loss=kind):
        for piece in task.microbatches(3, count):
            (task.loss(model, piece) / (count * size)).backward()
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-12, atol=1e-12 * float(wanted.grad.abs().max()))


def test_the_mean_of_the_losses_is_the_loss_of_one_process_also_where_pieces_are_empty():
    whole, ranks = one_process(batch_size=4), on_ranks(4, batch_size=4)
    model = whole.build_model()
    num_empty = 0
    for step in range(20):
        [piece] = whole.microbatches(step, 1)
        losses = []
        for task in ranks:
            [own] = task.microbatches(step, 1)
            num_empty += not len(own.indices)
            losses.append(task.loss(model, own))
        assert all(one.requires_grad for one in losses)
        assert sum(losses).item() / 4 == pytest.approx(whole.loss(model, piece).item(), rel=1e-12)
    assert num_empty


class Together:
    """Sums over ranks that run one after the other: first all of them leave what they have, then they get the sums."""

    def __init__(self):
        self.left, self.turn, self.sums = {}, 0, None

    def __call__(self, tensor):
        if self.sums is None:
            self.left.setdefault(self.turn, []).append(tensor.clone())
        found = tensor if self.sums is None else self.sums[self.turn]
        self.turn += 1
        return found


def together(size, num_ranges, ask):
    """What each rank gets for `ask(task)`, in which sums over ranks are taken."""
    link = Together()
    ranks = on_ranks(size, num_ranges, sum_over_ranks=link)
    for task in ranks:
        link.turn = 0
        # Sums of one rank are too few, which is said after they are left.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(completion.FitMetric, "compute", lambda metric: _left(metric))
            ask(task)
    link.sums = {turn: torch.stack(parts).sum(0) for turn, parts in link.left.items()}
    found = []
    for task in ranks:
        link.turn = 0
        found.append(ask(task))
    return found


def _left(metric):
    metric._sum_over_ranks(metric._sums.clone())
    return {"count": _Any()}


class _Any(float):
    def __ne__(self, other):
        return False


class Counting(torch.nn.Module):
    """The network, which says how often it was called and with which rows."""

    def __init__(self, network):
        super().__init__()
        self.network, self.rows = network, []

    def forward(self, indices):
        self.rows.append(indices[:, MODE].tolist())
        return self.network(indices)


@pytest.mark.parametrize(("size", "num_ranges"), SIZES)
@pytest.mark.parametrize("chunk", [2**18, 7])
def test_scores_are_those_of_one_process(size, num_ranges, chunk, monkeypatch):
    monkeypatch.setattr(completion, "_CHUNK", chunk)
    network = one_process().build_model()
    expected, calls = one_process().evaluate(network), []

    def ask(task):
        model = Counting(network)
        scores = task.evaluate(model)
        owner = task._routing.owner
        low, high = task.row_bounds[owner.range : owner.range + 2]
        assert all(low <= row < high for rows in model.rows for row in rows)
        calls.append(len(model.rows))
        return scores

    for scores in together(size, num_ranges, ask):
        assert scores.keys() == expected.keys()
        for key, value in expected.items():
            assert scores[key] == pytest.approx(value, rel=1e-12), key
    assert len(set(calls)) == 1  # the forward of a sharded model may be a collective


@pytest.mark.parametrize(("size", "num_ranges"), SIZES)
def test_predictions_are_those_of_one_process(size, num_ranges, monkeypatch):
    network = one_process().build_model()
    indices = np.stack([RNG.integers(0, n, 40) for n in SHAPE], axis=1)
    expected = one_process().predict(network, indices)
    monkeypatch.setattr(completion, "_CHUNK", 7)
    for predicted in together(size, num_ranges, lambda task: task.predict(network, indices)):
        assert predicted == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("size", "num_ranges"), SIZES)
def test_a_rank_says_of_the_whole_what_one_process_says(size, num_ranges):
    whole = one_process()
    for task in on_ranks(size, num_ranges):
        assert task.identity() == whole.identity()
        assert task.describe() == whole.describe()
        assert task.num_values() == whole.num_values()
        assert list(task.warnings()) == list(whole.warnings())
        # Two ways of rounding a mean of NUM_TRAIN numbers of about 10.
        assert task.scaling.mean == pytest.approx(whole.scaling.mean, rel=NUM_TRAIN * 2**-53)
        assert task.scaling.std == pytest.approx(whole.scaling.std, rel=4 * NUM_TRAIN * 2**-53)
        assert len(task.row_bounds) == (num_ranges or size) + 1
    assert sum(len(task.entries) for task in on_ranks(size, num_ranges)) == len(ENTRIES)
    assert whole.row_bounds is None


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9])
def test_constant_values_are_said_on_every_rank(constant):
    flat = dataclasses.replace(ENTRIES, values=np.full(len(ENTRIES), constant))
    context = TaskContext(data_rank=1, data_size=2, routed_mode=MODE)
    task = CompletionTask(context, flat, SPLIT, SPEC)
    assert task.scaling.std == task.target_std == 1.0
    assert list(task.warnings()) == list(CompletionTask(TaskContext(), flat, SPLIT, SPEC).warnings())


def test_ranks_without_a_row_have_empty_pieces():
    entries = entries_from_dense(RNG.standard_normal((2, 8)))
    split = split_entries(entries, observed=1.0, validation=0.0)
    tasks = [
        CompletionTask(
            TaskContext(data_rank=rank, data_size=3, routed_mode=0, dtype=torch.float64),
            entries,
            split,
            distsam.cp((2, 8), 1),
            batch_size=4,
        )
        for rank in range(3)
    ]
    assert tasks[0].row_bounds == (0, 1, 2, 2)
    [piece] = tasks[2].microbatches(0, 1)
    model = tasks[2].build_model()
    tasks[2].loss(model, piece).backward()
    assert all(torch.equal(core.grad, torch.zeros_like(core)) for core in model.parameters())


def test_what_needs_all_entries_is_refused_by_its_name():
    with pytest.raises(ArgumentError, match="init: is 'data', which needs all entries"):
        on_ranks(2, init="data")
    [task, _] = on_ranks(2)
    with pytest.raises(ArgumentError, match="routed_mode: is 1: no process holds all known entries"):
        task.fill(task.build_model())
    with pytest.raises(ArgumentError, match="routed_mode: is 7"):
        CompletionTask(TaskContext(routed_mode=7), ENTRIES, SPLIT, SPEC)
    with pytest.raises(ArgumentError, match="routing: is not that of mode None"):
        CompletionTask(TaskContext(), task.entries, task.split, SPEC, routing=task._routing)
