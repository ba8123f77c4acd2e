import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from distsam.errors import InputError
from distsam.runs import checkpoints
from distsam.runs.checkpoints import damage, finished_checkpoints
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import load_tensors, read_index, read_state, tensor_shapes


def tensors() -> dict[str, Tensor]:
    return {"model.a": torch.arange(6.0).view(2, 3), "optim.a.step": torch.tensor(3.0)}


def empty() -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in tensors().items()}


def save(folder: Path, *steps: int, keep: int = 3) -> Checkpointer:
    checkpointer = Checkpointer(folder, keep, rank=0)
    for step in steps:
        checkpointer.save(step, tensors(), {"note": "x"})
    checkpointer.wait()
    return checkpointer


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    [path] = finished_checkpoints(tmp_path)
    loaded = empty()
    load_tensors(path, loaded)
    assert all(torch.equal(loaded[name], value) for name, value in tensors().items())
    assert json.loads((path / "state.json").read_text()) == {"step": 7, "note": "x"}
    assert tensor_shapes(path)["model.a"] == (torch.Size([2, 3]), torch.float32)


def test_changes_after_save_has_returned_do_not_leak_into_the_file(tmp_path: Path) -> None:
    weights = {"model.a": torch.ones(1000, 1000)}
    checkpointer = Checkpointer(tmp_path, 1, rank=0)
    checkpointer.save(1, weights, {})
    weights["model.a"].zero_()
    checkpointer.wait()
    loaded = {"model.a": torch.zeros(1000, 1000)}
    load_tensors(tmp_path / "step-00000001", loaded)
    assert torch.equal(loaded["model.a"], torch.ones(1000, 1000))


def test_the_last_ones_are_kept_in_order(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, 20, keep=2)
    assert [p.name for p in finished_checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]
    assert len(list(tmp_path.iterdir())) == 2


def test_poll_publishes_only_what_is_done(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, 2, rank=0)
    checkpointer.poll()
    checkpointer.save(1, tensors(), {})
    assert not finished_checkpoints(tmp_path)
    assert checkpointer._pending is not None
    checkpointer._pending[1].result()
    checkpointer.poll()
    assert [p.name for p in finished_checkpoints(tmp_path)] == ["step-00000001"]


def test_a_step_is_not_saved_twice(tmp_path: Path) -> None:
    checkpointer = save(tmp_path, 4)
    before = (tmp_path / "step-00000004" / ".metadata").stat().st_mtime_ns
    checkpointer.save(4, tensors(), {})
    checkpointer.wait()
    assert (tmp_path / "step-00000004" / ".metadata").stat().st_mtime_ns == before


def test_a_checkpoint_cut_short_is_never_offered_and_is_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, keep=4)
    (tmp_path / "step-00000002" / ".metadata").unlink()
    (tmp_path / "step-00000003" / "state.json").unlink()
    (tmp_path / "step-00000004").rename(tmp_path / "step-00000004.tmp")
    assert [p.name for p in finished_checkpoints(tmp_path)] == ["step-00000001"]
    newest, lines = Checkpointer(tmp_path, 4, rank=0).newest()
    assert newest == tmp_path / "step-00000001"
    assert [line.partition(": ")[2] for line in lines] == [
        f"is damaged and not used: {name} is missing" for name in ("state.json", ".metadata")
    ]
    assert not (tmp_path / "step-00000004.tmp").exists()


def test_a_checkpoint_damaged_later_is_not_offered_and_can_be_written_anew(tmp_path: Path) -> None:
    """One whose tensors were truncated was offered, could not be loaded, and the whole one before it was not tried."""
    save(tmp_path, 1, 2, 3, 4, 5, keep=5)
    tensor_file, index = tmp_path / "step-00000003" / "__0_0.distcp", tmp_path / "step-00000004" / ".metadata"
    tensor_file.write_bytes(tensor_file.read_bytes()[:-1])
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    (tmp_path / "step-00000005" / "__0_0.distcp").unlink()
    assert [p.name[-1] for p in finished_checkpoints(tmp_path)] == ["1", "2", "4"]
    newest, [_, line, _] = Checkpointer(tmp_path, 5, rank=0).newest()
    assert newest == tmp_path / "step-00000002"
    assert line.endswith(
        "step-00000004: is damaged and not used: .metadata is not what was written (its checksum differs)"
    )
    save(tmp_path, 3, keep=5)
    assert [p.name[-1] for p in finished_checkpoints(tmp_path)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "contents.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
def test_damage_of_any_file_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path, name: str, how: str) -> None:
    """One flipped bit was loaded without a word; a cut state.json stopped every resume."""
    save(tmp_path, 1, 2)
    file = tmp_path / "step-00000002" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": bytes(content), "cut": file.read_bytes()[:-5], "empty": b""}[how])
    assert name in str(damage(file.parent))
    assert Checkpointer(tmp_path, 2, rank=0).newest()[0] == tmp_path / "step-00000001"


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000009")
    assert damage(tmp_path / "step-00000009") == "state.json says step 1"


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / "state.json").write_text("")
    with pytest.raises(InputError, match=r"step-00000002: is damaged and not used: state.json has 0 bytes.*start anew"):
        Checkpointer(tmp_path, 2, rank=0).newest()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_leftover_of_any_kind_is_cleared_away_and_not_followed(tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("kept")
    leftover = tmp_path / "c" / "step-00000001.tmp"
    leftover.parent.mkdir()
    {
        "file": leftover.touch,
        "link": lambda: leftover.symlink_to(precious),
        "folder": lambda: (leftover / "deep").mkdir(parents=True),
    }[kind]()
    checkpointer = Checkpointer(tmp_path / "c", 1, rank=0)
    checkpointer.save(1, tensors(), {})
    checkpointer.wait()
    assert checkpointer.newest()[0] == tmp_path / "c" / "step-00000001"
    assert (precious / "data").read_text() == "kept"


def test_a_save_that_fails_says_which_step_and_why(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "c", 1, rank=0)
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("in the way")
    checkpointer.save(3, tensors(), {})
    checkpointer.wait()
    assert re.match(r"the checkpoint of step 3 could not be written: rank 0: ", str(checkpointer.problem))
    (tmp_path / "c").unlink()
    checkpointer.save(3, tensors(), {})  # the same step, tried again
    checkpointer.wait()
    assert checkpointer.problem is None
    assert [p.name for p in finished_checkpoints(tmp_path / "c")] == ["step-00000003"]


def test_a_checkpoint_that_cannot_be_published_says_which_step_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    checkpointer = Checkpointer(tmp_path, 1, rank=0)
    checkpointer.save(3, tensors(), {})
    monkeypatch.setattr(checkpoints, "write_atomically", fill_the_disk)
    checkpointer.wait()
    assert re.match(r"the checkpoint of step 3 .*No space left on device", str(checkpointer.problem))
    assert not finished_checkpoints(tmp_path)


class Malicious:
    """Unpickled as a call of `touch`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_an_index_that_would_run_code_does_not(tmp_path: Path) -> None:
    save(tmp_path, 1)
    index = tmp_path / "step-00000001" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    metadata.planner_data = Malicious(tmp_path / "ran")
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"\.metadata: is no index of a checkpoint .* it names .*"):
        load_tensors(index.parent, empty())
    assert not (tmp_path / "ran").exists()
    pickle.loads(index.read_bytes())
    assert (tmp_path / "ran").exists(), "the test's own pickle must be able to run"


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch.serialization.load"])
def test_the_index_may_name_nothing_but_its_own_classes(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(InputError, match=f"it names {name}"):
        read_index(tmp_path)


def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    index = tmp_path / "step-00000001" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"points outside its folder, to \.\./\.\./secret"):
        load_tensors(index.parent, empty())


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": 1})])
def test_a_damaged_index_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match=r"\.metadata: is no index of a checkpoint of distsam"):
        read_index(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_values_that_are_no_tensors_are_never_unpickled(tmp_path: Path) -> None:
    dcp.save({"model.a": Malicious(tmp_path / "ran")}, checkpoint_id=tmp_path / "c")
    with pytest.raises(InputError, match=r"it names .*BytesStorageMetadata"):
        load_tensors(tmp_path / "c", {"model.a": torch.zeros(2)})
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step-00000001"
    with pytest.raises(InputError, match=r"model.a has shape \(2, 3\), the model has \(3, 2\)"):
        load_tensors(path, {"model.a": torch.zeros(3, 2)})
    with pytest.raises(InputError, match=r"holds no tensor model.b; it is a checkpoint of another model"):
        load_tensors(path, {"model.b": torch.zeros(3, 2)})


def test_truncated_tensors_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step-00000001"
    (path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(InputError, match=r"step-00000001: cannot be loaded: "):
        load_tensors(path, empty())


@pytest.mark.parametrize("content", ["", "[]", '{"step": "x"}'])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(InputError, match=r"state.json: "):
        read_state(tmp_path)


STATE = {
    "step": 2,
    "fingerprint": "f",
    "data_sha256": "d",
    "engine": {
        "counters": {"num_steps": 2, "num_skipped": 0, "num_in_a_row": 0},
        "groups": [{"lr": 0.1}],
        "built": [{"lr": 0.1}],
        "base": {},
        "schedules": {},
    },
    "best_value": None,
    "best_step": None,
    "num_stale": 0,
    "last_is_best": False,
    "elapsed_s": 1.0,
}
ENGINE = STATE["engine"]
assert isinstance(ENGINE, dict)


@pytest.mark.parametrize("key", [*STATE, *ENGINE, *ENGINE["counters"]])
@pytest.mark.parametrize("value", ["absent", "wrong"])
def test_a_state_that_lacks_what_a_resume_needs_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    state = json.loads(json.dumps(STATE))
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert read_state(tmp_path) == STATE
    holder = next(h for h in (state, state["engine"], state["engine"]["counters"]) if key in h)
    if value == "absent":
        del holder[key]
    else:
        holder[key] = ["wrong"] if key in ("fingerprint", "data_sha256") else "wrong"
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=f"state.json: holds no {key} that can be used"):
        read_state(tmp_path)


def test_the_state_is_plain_json(tmp_path: Path) -> None:
    save(tmp_path, 2)
    assert json.loads((tmp_path / "step-00000002" / "state.json").read_text())["step"] == 2


@pytest.mark.parametrize("given", [{}, {"das/clipped": "wrong"}])
def test_a_state_without_the_counters_of_this_engine_is_refused_by_name(tmp_path: Path, given: dict[str, str]) -> None:
    """A run of DAS went on with no count of what was clipped before, as if nothing had been."""
    state = json.loads(json.dumps(STATE))
    state["engine"]["counters"] |= given
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert read_state(tmp_path) == state
    with pytest.raises(InputError, match=r"state.json: holds no das/clipped that can be used"):
        read_state(tmp_path, counters=["num_steps", "das/clipped"])


def test_a_damaged_checkpoint_is_not_counted_among_those_that_are_kept(tmp_path: Path) -> None:
    """The one good checkpoint was removed, and the damaged one stayed."""
    save(tmp_path, 1, 2)
    with (tmp_path / "step-00000002" / "__0_0.distcp").open("r+b") as stream:
        byte = stream.read(1)
        stream.seek(0)
        stream.write(bytes([byte[0] ^ 1]))
    (tmp_path / "step-00000001.bak").mkdir()
    checkpointer = Checkpointer(tmp_path, 2, rank=0)
    newest, [line] = checkpointer.newest()
    assert newest == tmp_path / "step-00000001"
    assert "step-00000002: is damaged" in line
    checkpointer.save(3, tensors(), {})
    checkpointer.wait()
    assert damage(tmp_path / "step-00000001") is None
    assert damage(tmp_path / "step-00000003") is None


def test_a_state_that_is_no_json_is_said_by_every_rank(tmp_path: Path) -> None:
    """The rank whose share does not hold it raised, and the others waited for it."""
    save(tmp_path, 7)
    state = tmp_path / "step-00000007" / "state.json"
    state.write_bytes(b"\xff" + state.read_bytes()[1:])
    for part in range(2):
        assert "state.json" in str(damage(tmp_path / "step-00000007", part, 2))
