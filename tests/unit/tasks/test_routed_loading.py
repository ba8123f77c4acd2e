import tracemalloc
import zipfile

import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks import files, observations, routed
from distsam.tasks.files import read_entries, stream_entries
from distsam.tasks.observations import HeldObservations
from distsam.tasks.routed import load_routed
from distsam.tasks.sources import lowrank, lowrank_tensor
from distsam.tasks.split import PARTS, split_entries, split_identity
from distsam.tasks.task import TaskContext

SHAPE, MODE, NUM = (11, 40, 7), 1, 900
RNG = np.random.default_rng(0)
FLAT = RNG.permutation(np.prod(SHAPE))[:NUM]
INDICES = np.stack(np.unravel_index(FLAT, SHAPE), axis=1)
VALUES = np.where(RNG.random(NUM) < 0.1, np.nan, RNG.standard_normal(NUM) * 3 + 10)
SIZES = [(1, None), (2, None), (4, None), (4, 2)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that end inside what is loaded, so that what is carried from one to the next is tested."""
    for module in (files, observations, routed):
        monkeypatch.setattr(module, "BLOCK", 64)


def written(path, save=np.savez, indices=INDICES, values=VALUES, shape=SHAPE):
    save(path, indices=indices, values=values, shape=np.array(shape))
    return path


def context(rank, size, num_ranges=None, mode=MODE):
    return TaskContext(data_rank=rank, data_size=size, routed_mode=mode, num_ranges=num_ranges)


def assert_shared(entries, split, loaded, num_ranges=None, mode=MODE):
    """What the ranks have loaded is, together and in order, what one process has."""
    number_of = {tuple(row): n for n, row in enumerate(entries.indices.tolist())}
    met = {part: [] for part in PARTS}
    for rank, (own, parts, routing) in enumerate(loaded):
        assert own.shape == entries.shape
        numbers = np.array([number_of[tuple(row)] for row in own.indices.tolist()], dtype=np.int64)
        assert (np.diff(numbers) > 0).all()
        assert np.array_equal(own.values, entries.values[numbers])
        place = rank % (num_ranges or len(loaded))
        rows = own.indices[:, mode]
        assert ((routing.bounds[place] <= rows) & (rows < routing.bounds[place + 1])).all()
        for part in PARTS:
            met[part] += numbers[getattr(parts, part)].tolist()
            assert len(getattr(parts, part)) <= routing.most[part]
            values = entries.values[getattr(split, part)]
            assert routing.spreads[part].count == len(values)
            assert (routing.spreads[part].low, routing.spreads[part].high) == (values.min(), values.max())
        assert np.array_equal(split.train[routing.own_train], numbers[parts.train])
        assert routing.identity == split_identity(entries.sha256(), {part: [getattr(split, part)] for part in PARTS})
    for part in PARTS:
        assert sorted(met[part]) == getattr(split, part).tolist()
        largest = max(len(getattr(one.split, part)) for one in loaded)
        assert {one.routing.most[part] for one in loaded} == {largest}


FORMS = {
    "C order": INDICES,
    "Fortran order": np.asfortranarray(INDICES),
    "small integers": INDICES.astype(np.uint8),
    "big endian": INDICES.astype(">i4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "num_ranges"), SIZES)
def test_ranks_stream_what_one_process_loads(tmp_path, save, form, size, num_ranges):
    path = written(tmp_path / "t.npz", save, FORMS[form])
    entries = read_entries(path)
    split = split_entries(entries, 0.7, 0.2, seed=4)
    contexts = [context(rank, size, num_ranges) for rank in range(size)]
    loaded = [load_routed(stream_entries(path), one, 0.7, 0.2, seed=4) for one in contexts]
    assert_shared(entries, split, loaded, num_ranges)


@pytest.mark.parametrize("fibre_mode", [None, 0, 1, 2])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_split_and_the_digest_are_those_of_one_process(tmp_path, fibre_mode, mode):
    path = written(tmp_path / "t.npz")
    entries = read_entries(path)
    split = split_entries(entries, 0.6, 0.3, fibre_mode, seed=2)
    loaded = [load_routed(stream_entries(path), context(r, 2, mode=mode), 0.6, 0.3, fibre_mode, 2) for r in (0, 1)]
    assert_shared(entries, split, loaded, mode=mode)
    held = [routed.route_entries(entries, split, context(r, 2, mode=mode)) for r in (0, 1)]
    assert_shared(entries, split, held, mode=mode)
    assert loaded[0].routing.spreads == loaded[1].routing.spreads


def test_values_may_be_of_any_real_type(tmp_path):
    values = np.arange(NUM) % 200
    for dtype in (np.float32, np.int16, np.uint8, np.longdouble):
        path = written(tmp_path / "t.npz", values=values.astype(dtype))
        [loaded] = [load_routed(stream_entries(path), context(0, 1), 0.7, 0.2)]
        assert np.array_equal(loaded.entries.values, values)
        assert loaded.entries.values.dtype == np.float64


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_dense_files_and_synthetic_tensors_come_in_the_order_of_one_process(tmp_path, kind):
    tensor = RNG.standard_normal(SHAPE)
    tensor[RNG.random(SHAPE) < 0.3] = np.nan
    path = tmp_path / f"t.{kind}"
    (np.save if kind == "npy" else np.savez)(path, tensor)
    entries = read_entries(path)
    loaded = [load_routed(stream_entries(path), context(rank, 2), 0.7, 0.2) for rank in range(2)]
    assert_shared(entries, split_entries(entries, 0.7, 0.2), loaded)


def test_a_synthetic_tensor_is_the_same_dense_and_as_entries():
    arguments = ("ia,ja->ij", {"i": 30, "j": 20, "a": 2})
    entries, tensor = lowrank(*arguments, noise=0.1, seed=3), lowrank_tensor(*arguments, noise=0.1, seed=3)
    assert np.array_equal(entries.values, tensor.reshape(-1))
    loaded = [load_routed(HeldObservations(entries), context(rank, 2, mode=0), 0.7, 0.2) for rank in range(2)]
    assert_shared(entries, split_entries(entries, 0.7, 0.2), loaded, mode=0)


def message(call):
    with pytest.raises(ArgumentError) as caught:
        call()
    return str(caught.value)


def changed(array, row, value):
    array = array.copy()
    array[row] = value
    return array


BAD = {
    "outside": {"indices": changed(INDICES, 700, (3, 40, 1))},
    "negative": {"indices": changed(INDICES, 800, (-1, 0, 1))},
    "twice": {"indices": changed(INDICES, 850, INDICES[10])},
    "infinite": {"values": changed(VALUES, 333, np.inf)},
    "too large": {"values": changed(VALUES, 899, 1e200)},
    "vanishing": {"values": VALUES * 1e-200},
    "none": {"values": np.full(NUM, np.nan)},
    "lengths": {"values": VALUES[:-1]},
    "complex": {"values": VALUES * 1j},
    "objects": {"values": np.array([None] * NUM, dtype=object)},
    "real indices": {"indices": INDICES * 1.0},
    "order": {"indices": INDICES[:, :2]},
    "two dims": {"values": VALUES[:, None]},
    "shape": {"shape": (11, 40.0, 7)},
}


@pytest.mark.parametrize("name", BAD)
def test_what_one_process_refuses_a_stream_refuses_in_the_same_words(tmp_path, name):
    path = written(tmp_path / "t.npz", **BAD[name])
    expected = message(lambda: read_entries(path))
    assert message(lambda: load_routed(stream_entries(path), context(0, 1), 0.7, 0.2)) == expected


def test_an_entry_that_is_there_twice_is_found_by_the_rank_that_owns_its_row(tmp_path):
    """Also where one of the two has no value, or where ranks share the rows and each would have one of them."""
    values = changed(VALUES, 851, np.nan)
    path = written(tmp_path / "t.npz", indices=changed(INDICES, 851, INDICES[10]), values=values)
    expected, said = message(lambda: read_entries(path)), []
    for rank in range(4):
        try:
            bounds = load_routed(stream_entries(path), context(rank, 4, 2), 0.7, 0.2).routing.bounds
        except ArgumentError as error:
            said.append(str(error))
        else:
            assert not bounds[rank % 2] <= INDICES[10, MODE] < bounds[rank % 2 + 1]
    assert said == [expected, expected]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_files_cut_short_are_refused(tmp_path, save, kept):
    whole = written(tmp_path / "t.npz", save).read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[: int(len(whole) * kept)])
    expected = message(lambda: read_entries(tmp_path / "t.npz"))
    assert message(lambda: load_routed(stream_entries(tmp_path / "t.npz"), context(0, 1))) == expected


@pytest.mark.parametrize("form", ["C order", "Fortran order"])
def test_a_changed_byte_is_found_by_the_checksum(tmp_path, form):
    path = written(tmp_path / "t.npz", indices=FORMS[form].astype(np.int64, order="K"))
    content = bytearray(path.read_bytes())
    place = content.find(np.asarray(VALUES).tobytes())
    content[place + 8 * 5 + 3] ^= 1  # a digit of a value, which stays a value
    path.write_bytes(content)
    assert "damaged" in message(lambda: load_routed(stream_entries(path), context(0, 1)))


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = written(tmp_path / "t.npz")
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in arrays.items():
            archive.writestr(name, b"text" if name == "values.npy" else content)
    assert "'values' is no numpy array" in message(lambda: load_routed(stream_entries(path), context(0, 1)))


def test_fibres_beyond_int64_are_refused(tmp_path):
    shape = (2**40, 2**40, 3)
    path = written(tmp_path / "t.npz", indices=np.array([[0, 0, 1], [2, 3, 2]]), values=VALUES[:2], shape=shape)
    with pytest.raises(ArgumentError, match="fibre_mode: is 2, along which there are 2"):
        load_routed(stream_entries(path), context(0, 1, mode=2), 1.0, 0.0, fibre_mode=2)


def test_one_of_four_ranks_needs_a_small_part_of_the_memory_of_all(tmp_path, monkeypatch):
    block, num, shape = 2**16, 2_000_000, (200, 5000, 40)
    for module in (files, observations, routed):
        monkeypatch.setattr(module, "BLOCK", block)
    flat = np.random.default_rng(0).permutation(np.prod(shape))[:num]
    indices = np.stack(np.unravel_index(flat, shape), axis=1)
    path = written(tmp_path / "t.npz", indices=indices, values=flat * 1e-7, shape=shape)
    del flat, indices

    def peak(load):
        tracemalloc.start()
        try:
            load()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def whole():
        entries = read_entries(path)
        return entries, split_entries(entries, 0.8, 0.1)

    loaded = []
    own_peak = peak(lambda: loaded.append(load_routed(stream_entries(path), context(1, 4), 0.8, 0.1)))
    own = len(loaded[0].entries)
    assert own < 0.3 * num
    # Own entries of 24 + 8 + 1 + 1 + 8 + 8 bytes as blocks and, joined, a second time; their positions to sort and the
    # parts of all are there as well. Before, while the parts are drawn: 8 + 1 bytes of each of all. And blocks.
    assert own_peak < max(2 * 50 * own + num, 9 * num) + 200 * block + 24 * shape[1]
    assert own_peak < 0.35 * peak(whole)
