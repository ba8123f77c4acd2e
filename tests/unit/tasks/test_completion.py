import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import distsam
from distsam.errors import InputError
from distsam.tasks import completion
from distsam.tasks.completion import CompletionTask, Scaling
from distsam.tasks.entries import entries_from_dense
from distsam.tasks.split import Split, split_entries

SHAPE = (6, 5, 4)
TENSOR = np.random.default_rng(0).standard_normal(SHAPE) * 3 + 10
ENTRIES = entries_from_dense(TENSOR)
SPLIT = split_entries(ENTRIES, observed=0.5, validation=0.2, seed=1)


class Table(nn.Module):
    """A model with one parameter for each entry: it can predict anything."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.as_tensor(values, dtype=torch.float64))
        self.calls = []

    def forward(self, indices):
        self.calls.append(indices.clone())
        return self.values[tuple(indices.T)]


def zeros():
    return Table(np.zeros(SHAPE))


def task(**changes):
    return CompletionTask(ENTRIES, SPLIT, **{"dtype": torch.float64, **changes})


def learnt(values):
    train = ENTRIES.values[SPLIT.train]
    return (values - train.mean()) / train.std()


def test_standardisation_is_fitted_on_training_entries_alone():
    train = ENTRIES.values[SPLIT.train]
    assert task().scaling == Scaling(train.mean(), train.std())
    assert task().target_std == 1.0
    assert task(standardise=False).scaling == Scaling(0.0, 1.0)
    assert task(standardise=False).target_std == train.std()
    json.dumps(dataclasses.asdict(task().scaling))


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9])
@pytest.mark.parametrize("standardise", [True, False])
def test_a_constant_training_set_is_not_divided_by_zero(constant, standardise):
    entries = entries_from_dense(np.full(SHAPE, constant))
    flat = CompletionTask(entries, SPLIT, standardise=standardise, dtype=torch.float64)
    assert flat.scaling.std == flat.target_std == 1.0
    scores = flat.evaluate(Table(np.full(SHAPE, 0.0 if standardise else constant)))
    assert scores["heldout/rmse"] == pytest.approx(0.0, abs=1e-12 * (1 + abs(constant)))
    assert scores["train/r2"] is None


def test_full_batch_losses_are_the_mean_and_the_sum_over_training_entries():
    squares = learnt(ENTRIES.values[SPLIT.train]) ** 2
    assert task(loss="mean").loss(zeros(), 0).item() == pytest.approx(squares.mean(), rel=1e-12)
    assert task(loss="sum").loss(zeros(), 5).item() == pytest.approx(squares.sum(), rel=1e-12)


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [None, 7, 2])  # 2 entries leave one of 3 ranks empty
def test_losses_and_gradients_averaged_over_ranks_are_those_of_one_rank(loss, batch_size):
    for step in (0, 9):
        reference = zeros()
        expected = task(loss=loss, batch_size=batch_size).loss(reference, step)
        expected.backward()
        model, losses = zeros(), []
        for rank in range(3):
            own = task(loss=loss, batch_size=batch_size, rank=rank, world_size=3).loss(model, step)
            (own / 3).backward()
            losses.append(own.item())
        assert np.mean(losses) == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(model.values.grad, reference.values.grad, rtol=1e-12, atol=1e-12)


def test_an_empty_slice_gives_zero_gradients_not_none():
    model = zeros()
    loss = task(batch_size=2, rank=0, world_size=3).loss(model, 0)
    loss.backward()
    assert model.calls[0].shape == (0, 3)
    assert loss.item() == 0.0
    assert torch.equal(model.values.grad, torch.zeros(SHAPE, dtype=torch.float64))


NETWORKS = [
    distsam.cp(SHAPE, 3),
    distsam.tucker(SHAPE, [2, 3, 2]),
    distsam.tt(SHAPE, 3),
    distsam.tr(SHAPE, 2),
    distsam.einsum_network("ia,jab,kb->ijk", {"i": 6, "j": 5, "k": 4, "a": 3, "b": 2}),
]


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.format)
def test_networks_of_every_format_pass_an_empty_slice_and_fill_as_they_predict(spec, monkeypatch):
    network = distsam.TensorNetwork(spec, dtype=torch.float64)
    task(batch_size=2, rank=0, world_size=3).loss(network, 0).backward()
    assert all(torch.equal(core.grad, torch.zeros_like(core)) for core in network.parameters())
    at_once = task().fill(network, keep_known=False)
    assert task().predict(network, ENTRIES.indices) == pytest.approx(at_once.reshape(-1), rel=1e-12)
    monkeypatch.setattr(completion, "_DENSE_LIMIT", 0)
    assert task().fill(network, keep_known=False) == pytest.approx(at_once, rel=1e-12)


def test_two_passes_of_a_step_see_the_same_entries_and_the_next_step_others():
    model, minibatches = zeros(), task(batch_size=8, seed=3)
    for step in (0, 0, 1, 0):
        minibatches.loss(model, step)
    first, second, other, again = model.calls
    assert torch.equal(first, second)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_minibatches_of_an_epoch_are_the_training_entries():
    model, minibatches = zeros(), task(batch_size=8)
    for step in range(len(SPLIT.train) // 8):
        minibatches.loss(model, step)
    met = sorted(map(tuple, torch.cat(model.calls).tolist()))
    assert met == sorted(map(tuple, ENTRIES.indices[SPLIT.train].tolist()))


def test_the_loss_is_computed_in_the_dtype_asked_for():
    model = Table(np.zeros(SHAPE)).float()
    assert task(dtype=torch.float32).loss(model, 0).dtype == torch.float32


def test_evaluation_is_in_the_unit_of_the_data_with_the_mean_of_each_part():
    errors = np.random.default_rng(1).standard_normal(SHAPE)
    scores = task().evaluate(Table(learnt(TENSOR + errors)))
    assert len(scores) == 12
    for name in ("train", "validation", "heldout"):
        rows = tuple(ENTRIES.indices[getattr(SPLIT, name)].T)
        sse = np.sum(errors[rows] ** 2)
        values = TENSOR[rows]
        assert scores[f"{name}/rmse"] == pytest.approx(np.sqrt(sse / len(values)), rel=1e-12)
        assert scores[f"{name}/mae"] == pytest.approx(np.abs(errors[rows]).mean(), rel=1e-12)
        assert scores[f"{name}/r2"] == pytest.approx(1 - sse / np.sum((values - values.mean()) ** 2), rel=1e-12)
        assert scores[f"{name}/r2_uncentred"] == pytest.approx(1 - sse / np.sum(values**2), rel=1e-12)


def test_an_empty_part_scores_none_and_all_scores_are_plain():
    split = Split(train=np.arange(len(ENTRIES)), validation=np.arange(0), heldout=np.arange(0))
    scores = CompletionTask(ENTRIES, split, dtype=torch.float64).evaluate(zeros())
    assert all(scores[f"{part}/r2"] is None for part in ("validation", "heldout"))
    assert type(scores["train/r2"]) is float


def test_chunks_bound_the_calls_and_change_no_result(monkeypatch):
    model = Table(np.random.default_rng(2).standard_normal(SHAPE))
    whole = (task().evaluate(model), task().predict(model, ENTRIES.indices), task().fill(model))
    monkeypatch.setattr(completion, "_CHUNK", 7)
    model.calls.clear()
    cut = (task().evaluate(model), task().predict(model, ENTRIES.indices), task().fill(model))
    assert max(map(len, model.calls)) == 7
    assert cut[0] == pytest.approx(whole[0], rel=1e-12)
    assert np.array_equal(cut[1], whole[1])
    assert np.array_equal(cut[2], whole[2])


def test_every_rank_calls_the_model_equally_often(monkeypatch):
    # The forward of a sharded model is a collective: one call less on one rank would hang all others.
    monkeypatch.setattr(completion, "_CHUNK", 6)
    monkeypatch.setattr(completion, "FitMetric", lambda centre, sync: _Unsynced())
    calls = []
    for rank in range(5):
        model = zeros()
        with pytest.raises(RuntimeError, match="process group of 5 ranks"):
            task(rank=rank, world_size=5).evaluate(model)
        calls.append(len(model.calls))
    # 48 training entries over 5 ranks: slices of 9 and 10, both in 2 chunks of at most 6.
    assert calls == [2] * 5


class _Unsynced:
    def to(self, device):
        return self

    def update(self, predictions, values):
        pass

    def compute(self):
        return {"count": 1.0}


def test_evaluating_on_many_ranks_without_a_process_group_is_an_error_not_a_partial_score():
    with pytest.raises(RuntimeError, match="process group of 2 ranks"):
        task(rank=0, world_size=2).evaluate(zeros())


def test_evaluation_leaves_no_gradients_and_no_graph():
    model = zeros()
    task().evaluate(model)
    task().predict(model, ENTRIES.indices)
    assert model.values.grad is None


def test_predictions_are_in_the_unit_of_the_data_in_the_order_asked():
    rows = np.array([[5, 4, 3], [0, 0, 0], [5, 4, 3]], dtype=np.int32)
    model = Table(learnt(TENSOR))
    for given in (rows, torch.from_numpy(rows)):
        assert task().predict(model, given) == pytest.approx(TENSOR[tuple(rows.T)], rel=1e-12)
    assert task().predict(model, rows[:0]).shape == (0,)


def test_predicting_outside_the_tensor_is_refused():
    with pytest.raises(InputError, match=r"row 1 is \(0, 5, 0\).*0 to 4"):
        task().predict(zeros(), np.array([[0, 0, 0], [0, 5, 0]]))


def with_one_hole():
    tensor = TENSOR.copy()
    tensor[1, 2, 3] = np.nan
    return tensor, entries_from_dense(tensor)


@pytest.mark.parametrize("dense", [True, False])
def test_fill_keeps_the_known_entries_and_predicts_the_others(dense):
    tensor, entries = with_one_hole()
    split = split_entries(entries, 0.5, 0.2)
    filling = CompletionTask(entries, split, standardise=False, dtype=torch.float64)
    model = Table(np.full(SHAPE, 7.0))
    if dense:
        model.dense = lambda: model.values * 1
    filled = filling.fill(model)
    assert filled[1, 2, 3] == 7.0
    assert np.array_equal(np.where(np.isnan(tensor), 7.0, tensor), filled)
    assert np.array_equal(filling.fill(model, keep_known=False), np.full(SHAPE, 7.0))
    assert (len(model.calls) == 0) is dense
    assert model.values.min() == model.values.max() == 7.0


def test_a_tensor_too_large_to_fill_is_refused_with_its_size():
    entries = dataclasses.replace(ENTRIES, shape=(2**20, 2**20, 2**20))
    with pytest.raises(InputError, match=r"needs 8\.59e\+09 GiB"):
        CompletionTask(entries, SPLIT).fill(zeros())


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"batch_size": 0}, ["train.batch_size=0", "1 to 48"]),
        ({"batch_size": 49}, ["train.batch_size=49", "1 to 48", "null"]),
        ({"loss": "median"}, ["train.loss='median'", "'mean' or 'sum'"]),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_key(change, parts):
    with pytest.raises(InputError) as caught:
        task(**change)
    for part in parts:
        assert part in str(caught.value)


def test_predictions_far_from_zero_keep_what_the_network_knows():
    """In float32 a mean of 1e8 would swallow whatever it predicts beside it."""
    far = dataclasses.replace(ENTRIES, values=ENTRIES.values + 1e8)
    model = Table(learnt(TENSOR)).float()
    predicted = CompletionTask(far, SPLIT, dtype=torch.float32).predict(model, ENTRIES.indices)
    assert predicted == pytest.approx(far.values, abs=1e-5)
