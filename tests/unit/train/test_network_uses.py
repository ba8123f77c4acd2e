"""What is seen of the networks in a pass of shapes: kinds and rows; the model stays as it was."""

import torch
from torch import Tensor, nn

import distsam
from distsam.tensornet.layers import TensorizedLinear
from distsam.train.network_uses import seen_uses

CPU = torch.device("cpu")


class Net(nn.Module):
    """A tensorized layer with dropout and running statistics before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout()
        self.layer = TensorizedLinear(16, 16, format="tt_matrix", rank=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(self.drop(self.norm(x))))


class Task:
    """A loss; it may take values into numpy, which a pass of shapes has not."""

    def __init__(self, looks: bool = False) -> None:
        self.looks = looks

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss * model.norm.weight.detach().numpy().sum() if self.looks else loss


def test_calls_of_a_layer_are_seen_and_the_model_stays_as_it_was() -> None:
    model, batch = Net(), torch.randn(8, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places, state = {name: id(p) for name, p in model.named_parameters()}, torch.get_rng_state()
    [use] = seen_uses(Task(), model, batch, times=4, device=CPU)  # type: ignore[arg-type]
    assert (use.kind, use.num_rows, use.num_calls) == ("multiply", 32, 2)
    assert use.network.parameters == tuple(name for name in places if "cores" in name)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: id(p) for name, p in model.named_parameters()} == places
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.isfinite(model(batch)).all()


def test_networks_without_numbers_are_seen_too() -> None:
    with distsam.tensornet.deferred_draws():
        model = distsam.TensorNetwork(distsam.cp((8, 6, 4), 2))
    indices = torch.zeros(5, 3, dtype=torch.int64)
    [use] = seen_uses(Task(), model, indices, times=1, device=CPU)  # type: ignore[arg-type]
    assert (use.kind, use.num_rows) == ("entries", 5)
    assert model.is_deferred


def test_of_a_loss_that_needs_values_nothing_is_seen() -> None:
    assert seen_uses(Task(looks=True), Net(), torch.randn(8, 16), times=1, device=CPU) == ()  # type: ignore[arg-type]
