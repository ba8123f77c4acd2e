"""core_networks finds what other packages make, and what a user has marked."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import distsam
from distsam.errors import ArgumentError


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)


def test_marked_parameters_are_a_network_looked_up_at_each_call() -> None:
    model = nn.Sequential(Attention(), Attention())
    distsam.mark_network(model[1], "qk", ["query.weight", "key.weight"])
    [network] = distsam.core_networks(model)
    assert (network.name, network.core_names) == ("1.qk", ("query.weight", "key.weight"))
    model[1].query.weight = nn.Parameter(torch.zeros(4, 6))  # as sharding does
    [network] = distsam.core_networks(model)
    assert network.cores[0] is model[1].query.weight
    optimizer = distsam.DAS(torch.optim.SGD(model.parameters(), lr=0.1), [network], alpha=0.1)
    assert optimizer is not None


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        (["query.weigth", "key.weight"], "cores: has 'query.weigth', which is no parameter; there are query.weight"),
        (["query.weight"], "a network has at least two, each its own"),
        (["query.weight", "query.weight"], "a network has at least two, each its own"),
    ],
)
def test_a_mark_that_names_no_network_is_refused(cores: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        distsam.mark_network(Attention(), "qk", cores)


def peft_model() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1", "3"])
    return peft.get_peft_model(model, config)


def test_every_pair_of_a_peft_model_is_found_and_trained_by_das_and_nbar() -> None:
    ids = torch.randint(0, 20, (4, 5))
    for rescale in (distsam.DAS, lambda base, networks, alpha: distsam.BAR(base, networks, alpha=alpha, rule="nbar")):
        model = peft_model()
        networks = distsam.core_networks(model)
        assert [network.name.removeprefix("base_model.model.") for network in networks] == [
            "0.default",
            "1.default",
            "3.default",
        ]
        assert [tuple(core.shape) for core in networks[1].cores] == [(8, 3), (3, 6)]
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {id(p) for p in trained} == {id(core) for network in networks for core in network.cores}
        optimizer: Any = rescale(torch.optim.SGD(trained, lr=0.1), networks, alpha=0.1)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(ids) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]


def tltorch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tltorch")


@pytest.mark.parametrize(
    ("factorization", "names"),
    [
        ("cp", ["weights", "factors.factor_0", "factors.factor_1", "factors.factor_2", "factors.factor_3"]),
        ("tucker", ["core", "factors.factor_0", "factors.factor_1", "factors.factor_2", "factors.factor_3"]),
        ("blocktt", ["factors.factor_0", "factors.factor_1"]),
    ],
)
def test_the_factorized_tensors_of_tensorly_torch_are_found(factorization: str, names: list[str]) -> None:
    layers = tltorch()
    rank = (2, 2, 2, 2) if factorization == "tucker" else 2
    model = nn.Sequential(
        layers.FactorizedLinear((4, 3), (3, 4), rank=rank, factorization=factorization, implementation="reconstructed")
    )
    [network] = distsam.core_networks(model)
    assert network.name == "0.weight"
    assert list(network.core_names) == names
    assert {id(core) for core in network.cores} == {id(p) for n, p in model.named_parameters() if "bias" not in n}


METHODS: dict[str, Any] = {
    "sam": lambda base, model: distsam.SAM(base, rho=0.05),
    "das": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1),
    "nbar": lambda base, model: distsam.BAR(base, distsam.core_networks(model), alpha=0.1, rule="nbar"),
    "sam+das": lambda base, model: distsam.SAM(distsam.DAS(base, distsam.core_networks(model), alpha=0.1), rho=0.05),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("factorization", "format"), [("tucker", "tucker"), ("blocktt", "tt_matrix")])
def test_a_layer_of_tensorly_torch_trains_as_ours_from_the_same_start(
    factorization: str, format: str, method: str
) -> None:
    """Two ways to contract the same cores in float64: what differs is rounding, over 40 steps."""
    torch.manual_seed(7)
    sizes = {"in_tensorized_features": (4, 3), "out_tensorized_features": (3, 4)}
    rank: Any = (2, 3, 2, 3) if factorization == "tucker" else 3
    theirs = tltorch().FactorizedLinear(
        **sizes, bias=False, rank=rank, factorization=factorization, implementation="reconstructed"
    )
    theirs.double()
    ours = distsam.TensorizedLinear(
        12, 12, False, format=format, rank=list(rank) if format == "tucker" else 3, out_shape=(3, 4), in_shape=(4, 3)
    ).double()
    [network] = distsam.core_networks(theirs)
    with torch.no_grad():
        # Its own start is too near to zero to learn from.
        for core in network.cores:
            core.copy_(torch.randn(core.shape, dtype=torch.float64) * 0.5)
    cores = [core.detach().reshape(own.shape) for core, own in zip(network.cores, ours.network.cores, strict=True)]
    ours.network.load_cores(cores)
    x, y = torch.randn(64, 12, dtype=torch.float64), torch.randn(64, 12, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-12, atol=1e-12)
    losses: list[list[float]] = []
    for model in (theirs, ours):
        optimizer = METHODS[method](torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), model)

        def closure(model: nn.Module = model, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        losses.append([float(optimizer.step(closure).detach()) for _ in range(40)])
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
