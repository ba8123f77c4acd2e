"""What every engine promises: the step that the optimizer alone would take, state that goes on bit for bit."""

import json

import pytest
import torch
from engines import ENGINES, NUM_STEPS, build, build_alone, losses_of, weights
from methods import are_equal
from torch import Tensor

from distsam.engine import Engine
from distsam.errors import InputError

every_engine = pytest.mark.parametrize("engine", ENGINES)
every_method = pytest.mark.parametrize(
    ("engine", "method"), [(name, method) for name, engine in ENGINES.items() for method in engine.methods]
)


@every_method
def test_a_step_is_the_optimizers_own(engine: str, method: str) -> None:
    model, _, runner = build(engine, method)
    twin, optimizer = build_alone(engine, method)

    def closure() -> Tensor:
        optimizer.zero_grad()
        (compute_loss,) = losses_of(twin)
        loss = compute_loss()
        loss.backward()
        return loss

    for _ in range(3):
        loss = runner.step(losses_of(model))
        assert torch.equal(loss, optimizer.step(closure))
        trained = [p.detach() for p in twin.parameters() if p.requires_grad]
        assert len(trained) < len(twin.state_dict())  # what is frozen is no part of the weights
        assert are_equal(weights(runner), trained)


@every_method
@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_make_the_step_of_the_whole_batch(engine: str, method: str, count: int) -> None:
    model, _, runner = build(engine, method)
    whole, _, reference = build(engine, method)
    # Ten steps, in each of which some thousand numbers are added in another order.
    tolerance = 5000 * torch.finfo(ENGINES[engine].dtype).eps
    for _ in range(10):
        loss, expected = runner.step(losses_of(model, count)), reference.step(losses_of(whole))
        assert not loss.requires_grad
        assert loss.shape == ()
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    scale = max(float(w.abs().max()) for w in weights(reference))
    for left, right in zip(weights(runner), weights(reference), strict=True):
        assert float((left - right).abs().max()) < tolerance * scale


@every_method
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("done", [0, 2, 7])
def test_a_loaded_engine_goes_on_bit_for_bit(engine: str, method: str, base: str, done: int) -> None:
    model, _, runner = build(engine, method, base, has_schedules=True)
    for _ in range(done):
        runner.step(losses_of(model))
    state = json.loads(json.dumps(runner.state()))
    tensors = {name: tensor.clone() for name, tensor in runner.state_tensors().items()}
    start = {name: tensor.clone() for name, tensor in runner.weights().items()}
    for _ in range(NUM_STEPS - done):
        runner.step(losses_of(model))

    other, optimizer, resumed = build(engine, method, base, has_schedules=True)
    resumed.put_weights(start)
    resumed.load_state(state)
    room = resumed.allocate_state({name: (t.shape, t.dtype) for name, t in tensors.items()} | other_names())
    assert room.keys() == tensors.keys()
    for name, tensor in room.items():
        tensor.copy_(tensors[name])
    assert (resumed.num_steps, resumed.counters()) == (done, state["counters"])
    for _ in range(NUM_STEPS - done):
        resumed.step(losses_of(other))
    assert are_equal(weights(runner), weights(resumed))
    assert resumed.state() == runner.state()
    assert any(name.startswith("memory.") for name in resumed.state_tensors()) == (method == "memory")
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def other_names() -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Tensors of a checkpoint that are not an engine's."""
    names = ("model.bias", "best.bias", "optim.gone.exp_avg")
    return {name: (torch.Size([1]), torch.float64) for name in names}


@every_engine
def test_a_request_to_stop_is_known_after_the_next_step(engine: str) -> None:
    model, _, runner = build(engine, "sam")
    runner.step(losses_of(model))
    assert not runner.stop_requested
    runner.request_stop()
    runner.step(losses_of(model))
    assert runner.stop_requested
    assert runner.num_steps == 2


@every_method
def test_a_micro_batch_that_raises_leaves_the_weights_and_the_next_step_right(engine: str, method: str) -> None:
    model, _, runner = build(engine, method)
    before = weights(runner)

    def broken() -> Tensor:
        raise KeyError("no such batch")

    with pytest.raises(KeyError, match="no such batch"):
        runner.step([*losses_of(model, 2)[:1], broken])
    assert are_equal(weights(runner), before)
    twin, _, reference = build(engine, method)
    runner.step(losses_of(model, 2))
    reference.step(losses_of(twin, 2))
    assert are_equal(weights(runner), weights(reference))


@every_engine
def test_a_step_that_is_skipped_still_counts_for_schedules(engine: str) -> None:
    model, optimizer, runner = build(engine, "plain", has_schedules=True)
    before = weights(runner)
    runner.step([lambda: losses_of(model)[0]() * float("nan")])
    assert are_equal(weights(runner), before)
    assert optimizer.num_skipped == 1
    assert runner.state()["schedules"]["lr"] == {"step": 1}


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if "memory" not in engine.methods])
def test_an_ascent_that_keeps_tensors_is_refused_in_the_first_step(engine: str) -> None:
    model, _, runner = build(engine, "memory")
    with pytest.raises(InputError, match="stage: memory keeps tensors of whole parameters"):
        runner.step(losses_of(model))


@every_engine
def test_a_step_without_micro_batches_is_refused(engine: str) -> None:
    _, _, runner = build(engine, "plain")
    with pytest.raises(ValueError, match="losses: there is none"):
        runner.step([])


@every_engine
def test_an_engine_closed_twice_is_closed(engine: str) -> None:
    model, _, runner = build(engine, "plain")
    runner.step(losses_of(model))
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        runner.step(losses_of(model))


@every_engine
def test_an_engine_has_all_of_the_protocol(engine: str) -> None:
    _, _, runner = build(engine, "plain")
    names = [name for name in vars(Engine) if not name.startswith("_")]
    assert [name for name in names if not hasattr(runner, name)] == []
