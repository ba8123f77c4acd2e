"""What every format of a network promises; a new one joins FORMATS by one line."""

import string
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

import distsam
from distsam import NetworkSpec, TensorNetwork
from distsam.errors import ArgumentError

SHAPE = (6, 5, 4)
# size -> the format with bonds of that size; by which argument a bond that is too large is named.
Build = Callable[[int], NetworkSpec]
FORMATS: dict[str, tuple[Build, str]] = {
    "cp": (lambda size: distsam.cp(SHAPE, size), "bond_dim"),
    "tucker": (lambda size: distsam.tucker(SHAPE, (size, size, size)), "ranks"),
    "tt": (lambda size: distsam.tt(SHAPE, size), "bond_dim"),
    "tr": (lambda size: distsam.tr(SHAPE, size), "bond_dim"),
    "einsum": (
        lambda size: distsam.einsum_network("ia,jab,kb->ijk", {"i": 6, "j": 5, "k": 4, "a": size, "b": size}),
        "sizes",
    ),
}
every_format = pytest.mark.parametrize("build", [build for build, _ in FORMATS.values()], ids=FORMATS)


def draw(spec: NetworkSpec, **changes: object) -> TensorNetwork:
    generator = torch.Generator().manual_seed(7)
    return TensorNetwork(spec, dtype=torch.float64, generator=generator, **changes)  # type: ignore[arg-type]


def einsum(spec: NetworkSpec, cores: list[Tensor]) -> np.ndarray:
    letter = dict(zip(dict(spec.sizes), string.ascii_letters, strict=False))
    *words, modes = ("".join(letter[index] for index in indices) for indices in (*spec.cores, spec.modes))
    return np.einsum(f"{','.join(words)}->{modes}", *(core.detach().numpy() for core in cores))


def close(found: Tensor, wanted: Tensor | np.ndarray) -> bool:
    wanted = torch.as_tensor(wanted)
    return bool((found - wanted).abs().max() <= 1e-12 * wanted.abs().max())


@every_format
def test_a_spec_says_shape_bonds_parameters_and_unique_names(build: Build) -> None:
    spec = build(2)
    assert spec.shape == SHAPE
    assert spec == build(2)
    assert hash(spec) == hash(build(2))
    assert len(set(spec.core_names)) == len(spec.core_names) == spec.num_cores >= 2
    assert spec.num_parameters == sum(prod(shape) for shape in spec.core_shapes)
    assert all(spec.size(bond) == 2 for bond in spec.bonds)
    assert spec.format


@every_format
def test_a_network_has_cores_of_the_shapes_of_its_spec_as_parameters(build: Build) -> None:
    network = draw(build(2))
    assert tuple(tuple(core.shape) for core in network.cores) == network.spec.core_shapes
    assert [name for name, _ in network.named_parameters()] == [f"cores.{k}" for k in range(network.spec.num_cores)]
    [found] = distsam.core_networks(network)
    assert all(a is b for a, b in zip(found.cores, network.cores, strict=True))


@every_format
@pytest.mark.parametrize("size", [1, 2])
def test_dense_and_entries_equal_the_einsum_of_the_cores(build: Build, size: int) -> None:
    network = draw(build(size))
    expected = einsum(network.spec, list(network.cores))
    assert close(network.dense().detach(), expected)
    everywhere = torch.from_numpy(np.argwhere(np.ones(SHAPE)))
    for indices in (everywhere, everywhere[:7], everywhere[[3, 3]]):
        assert close(network.at(indices).detach(), expected[tuple(indices.T.numpy())])
    assert network.at(everywhere[:0]).shape == (0,)


@every_format
def test_a_start_has_equal_core_norms_and_exactly_the_wanted_std(build: Build) -> None:
    network = draw(build(2), std=0.3)
    assert float(network.dense().detach().square().mean().sqrt()) == pytest.approx(0.3, rel=1e-13)
    norms = [float(core.detach().norm()) for core in network.cores]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-13)


@every_format
def test_a_start_has_the_norm_ratios_asked_for_and_the_same_std(build: Build) -> None:
    ratios = [float(k + 1) for k in range(build(2).num_cores)]
    network = draw(build(2), std=0.3, norms=ratios)
    norms = np.array([float(core.detach().norm()) for core in network.cores])
    assert norms / norms[0] == pytest.approx(ratios, rel=1e-13)
    assert float(network.dense().detach().square().mean().sqrt()) == pytest.approx(0.3, rel=1e-13)


@every_format
def test_a_start_is_a_function_of_its_generator(build: Build) -> None:
    assert all(torch.equal(a, b) for a, b in zip(draw(build(2)).cores, draw(build(2)).cores, strict=True))


@every_format
def test_the_tensor_is_linear_in_each_core(build: Build) -> None:
    network = draw(build(2))
    start = [core.detach().clone() for core in network.cores]
    for k in range(network.spec.num_cores):
        other = torch.randn(start[k].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        parts = []
        for core in (start[k], other, 2 * start[k] - 3 * other):
            network.load_cores([*start[:k], core, *start[k + 1 :]])
            parts.append(network.dense().detach().clone())
        assert close(parts[2], 2 * parts[0] - 3 * parts[1])


@every_format
def test_the_inner_product_of_core_and_gradient_is_the_same_for_every_core(build: Build) -> None:
    """Euler's identity, on which every law of the norms rests (<G_k, g_k> = <T, dL/dT>)."""
    network = draw(build(2))
    tensor = network.dense()
    target = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (tensor - target).square().sum().backward()
    expected = float((tensor * 2 * (tensor - target)).detach().sum())
    for core in network.cores:
        assert core.grad is not None
        assert float((core.detach() * core.grad).sum()) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("build", "argument"), FORMATS.values(), ids=FORMATS)
def test_a_bond_larger_than_the_tensor_allows_is_refused_by_the_name_it_was_given_by(
    build: Build, argument: str
) -> None:
    for size, problem in ((1000, "tensor allows"), (0, "at least 1"), (1.5, "integer")):
        with pytest.raises(ArgumentError, match=problem) as caught:
            build(size)  # type: ignore[arg-type]
        assert caught.value.argument.partition("[")[0] == argument
        assert "\n" not in str(caught.value)
