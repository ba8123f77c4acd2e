"""Tensorized layers compute what torch's layers compute with the weight that their cores stand for."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import distsam
from distsam.errors import ArgumentError
from distsam.tensornet.ranks import WEIGHT_FORMATS

DOUBLE = torch.float64
every_format = pytest.mark.parametrize("format", WEIGHT_FORMATS)
# tt_matrix pairs modes of the output with modes of the input; a kernel's have no partner.
every_kernel = pytest.mark.parametrize("format", [f for f in WEIGHT_FORMATS if f != "tt_matrix"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(inputs: int = 12, outputs: int = 18, **options: Any) -> distsam.TensorizedLinear:
    return distsam.TensorizedLinear(inputs, outputs, dtype=DOUBLE, generator=generator(), **options)


def assert_alike(layer: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """Values, and the gradients of every core and of the input, are those through the dense weight."""
    is_floating = x.is_floating_point()
    cores = list(layer.parameters())

    def results(compute: Any) -> list[Tensor]:
        given = x.clone().requires_grad_(is_floating)
        y = compute(given)
        weights = torch.linspace(-1, 1, y.numel(), dtype=DOUBLE).reshape(y.shape)
        grads = torch.autograd.grad((y * weights).sum(), [*cores, *([given] if is_floating else [])])
        return [y.detach(), *grads]

    for got, wanted in zip(results(layer), results(lambda given: dense(given)), strict=True):
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10 * scale)


class Dense(nn.Module):
    """A layer of torch's functions with the dense weight of a tensorized one."""

    def __init__(self, layer: Any, compute: Any) -> None:
        super().__init__()
        self.layer, self.compute = layer, compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.layer.weight)


@every_format
@pytest.mark.parametrize("rank", [1, 3, "ratio:2", "full"])
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (1, 12), (0, 12), (12,)])
def test_a_linear_layer_is_the_dense_one_in_values_and_gradients(format: str, rank: Any, shape: Any) -> None:
    layer = linear(format=format, rank=rank)
    x = torch.randn(shape, dtype=DOUBLE, generator=generator(1))
    assert_alike(layer, Dense(layer, lambda x, w: functional.linear(x, w, layer.bias)), x)


@every_format
@pytest.mark.parametrize("batch", [1, 16, 300, 2000])
def test_the_order_of_contraction_that_a_batch_takes_changes_nothing_but_rounding(format: str, batch: int) -> None:
    layer = distsam.TensorizedLinear(64, 64, False, dtype=DOUBLE, format=format, rank=4, generator=generator())
    x = torch.randn(batch, 64, dtype=DOUBLE, generator=generator(1))
    assert_alike(layer, Dense(layer, lambda x, w: functional.linear(x, w)), x)


@every_format
def test_an_embedding_is_the_dense_one_in_values_and_gradients(format: str) -> None:
    layer = distsam.TensorizedEmbedding(
        101, 12, 3, format=format, rank=3, pad=True, dtype=DOUBLE, generator=generator()
    )
    ids = torch.randint(0, 101, (5, 7), generator=generator(1))
    ids[0, 0] = 3
    assert_alike(layer, Dense(layer, lambda x, w: functional.embedding(x, w, padding_idx=3)), ids)
    assert not layer(ids)[0, 0].any()


@every_format
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_the_dense_one_in_values_and_gradients(format: str, mode: str) -> None:
    layer = distsam.TensorizedEmbeddingBag(
        40, 12, mode=mode, padding_idx=3, format=format, rank=3, dtype=DOUBLE, generator=generator()
    )
    ids = torch.randint(0, 40, (5, 7), generator=generator(1))
    ids[0, :] = 3  # a bag of nothing but padding
    dense = Dense(layer, lambda x, w: functional.embedding_bag(x, w, mode=mode, padding_idx=3))
    assert_alike(layer, dense, ids)
    flat, offsets = ids.flatten(), torch.tensor([0, 4, 4, 20])
    wanted = functional.embedding_bag(flat, layer.weight, offsets, mode=mode, padding_idx=3)
    torch.testing.assert_close(layer(flat, offsets), wanted, rtol=0, atol=1e-12)


PADDINGS = [(0, "zeros"), ("same", "circular"), (1, "reflect"), ("same", "zeros")]


@every_kernel
@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("padding", "padding_mode"), [(0, "zeros"), ("same", "circular"), (1, "reflect"), ("same", "zeros")]
)
def test_a_convolution_is_torchs_with_its_kernel(format: str, num_dims: int, padding: Any, padding_mode: str) -> None:
    ours = getattr(distsam, f"TensorizedConv{num_dims}d")
    theirs = getattr(nn, f"Conv{num_dims}d")
    arguments = (4, 6, 3, 1, padding, 2, 2, True, padding_mode)
    layer = ours(*arguments, dtype=DOUBLE, format=format, rank=2, generator=generator())
    dense = theirs(*arguments, dtype=DOUBLE)

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = functional_call(dense, {"weight": weight, "bias": layer.bias}, (x,))
        return result

    for batch in (0, 2):
        x = torch.randn(batch, 4, *[8] * num_dims, dtype=DOUBLE, generator=generator(1))
        assert_alike(layer, Dense(layer, compute), x)
    assert layer(x[0]).shape == layer(x)[0].shape


@every_format
def test_gradcheck_of_a_linear_layer(format: str) -> None:
    layer = linear(4, 6, format=format, rank=2)
    x = torch.randn(3, 4, dtype=DOUBLE, generator=generator(1), requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    weights = [parameter.detach().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(
        lambda x, *w: functional_call(layer, dict(zip(names, w, strict=True)), (x,)), (x, *weights)
    )


@settings(deadline=None, max_examples=40)
@given(
    format=st.sampled_from(WEIGHT_FORMATS),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    rank=st.integers(1, 5),
    batch=st.integers(0, 3),
    pad=st.booleans(),
)
def test_any_sizes_and_ranks_give_the_dense_layer(
    format: str, inputs: int, outputs: int, rank: int, batch: int, pad: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rank above what small sizes can use
        layer = linear(inputs, outputs, format=format, rank=rank, pad=pad)
    x = torch.randn(batch, inputs, dtype=DOUBLE, generator=generator(1))
    assert_alike(layer, Dense(layer, lambda x, w: functional.linear(x, w, layer.bias)), x)


def root_mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


@every_format
@pytest.mark.parametrize("width", [64, 256, 1024])
def test_a_start_has_the_dense_layers_size_and_equal_core_norms(format: str, width: int) -> None:
    layer = distsam.TensorizedLinear(width, width, format=format, rank=8, generator=generator())
    # torch's start is uniform on +-1/sqrt(width): of standard deviation 1/sqrt(3 width).
    assert root_mean_square(layer.weight) == pytest.approx(1 / math.sqrt(3 * width), rel=1e-5)
    norms = [float(core.detach().norm()) for core in layer.network.cores]
    assert max(norms) == pytest.approx(min(norms), rel=1e-6)
    table = distsam.TensorizedEmbedding(width, 32, format=format, rank=4, generator=generator())
    assert root_mean_square(table.weight) == pytest.approx(1, rel=1e-5)


@every_format
@pytest.mark.parametrize("width", [64, 1024, 4096])
def test_outputs_have_the_variance_of_the_dense_layers(format: str, width: int) -> None:
    """Over white inputs the mean square of the outputs is ||W||^2 / width = 1/3 for any W of this root mean square.

    B rows of inputs estimate it: x W^T has per row the mean square |W x|^2 / width, whose variance over x is
    2 ||W W^T||_F^2 / width^2 <= 2 ||W||^4 / width^2, largest for a W of rank 1. So the mean over B rows lies within
    5 sqrt(2 / B) of 1/3, relatively, but for one time in a million.
    """
    layer = distsam.TensorizedLinear(width, width, False, format=format, rank=8, generator=generator())
    rows = 4096
    with torch.no_grad():
        y = layer(torch.randn(rows, width, generator=generator(1)))
    assert float(y.square().mean()) == pytest.approx(1 / 3, rel=5 * math.sqrt(2 / rows))


@every_format
def test_torch_compile_takes_a_layer_as_one_graph(format: str) -> None:
    for layer, x in (
        (linear(format=format, rank=3), torch.randn(5, 12, dtype=DOUBLE)),
        (distsam.TensorizedEmbedding(30, 12, format=format, rank=3), torch.tensor([[1, 29], [0, 3]])),
    ):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)


@every_format
def test_an_exported_program_takes_any_batch(format: str) -> None:
    layer = linear(format=format, rank=3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (torch.randn(5, 12, dtype=DOUBLE),), dynamic_shapes=({0: batch},))
    for num in (2, 200):
        x = torch.randn(num, 12, dtype=DOUBLE)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-10, atol=1e-10)


@every_format
def test_autocast_and_bfloat16_layers(format: str) -> None:
    layer = distsam.TensorizedLinear(32, 48, format=format, rank=4, generator=generator())
    x = torch.randn(64, 32, generator=generator(1))
    wanted = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    low_layer = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    # bfloat16 keeps 8 bits; each of up to seven products in a row rounds once more.
    for y in (low, low_layer):
        assert float((y.detach().float() - wanted).norm() / wanted.norm()) < 8 * 2**-8
    low.float().sum().backward()
    assert all(core.grad is not None and torch.isfinite(core.grad).all() for core in layer.network.cores)


@every_format
def test_copies_state_dicts_and_checkpointed_passes_keep_the_numbers(format: str) -> None:
    layer = linear(format=format, rank=3)
    x = torch.randn(5, 12, dtype=DOUBLE, generator=generator(1), requires_grad=True)
    names = [f"network.cores.{k}" for k in range(len(layer.network.cores))]
    assert list(layer.state_dict()) == ["bias", *names]
    twin = copy.deepcopy(layer)
    other = linear(format=format, rank=3)
    other.reset_parameters(generator(5))
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    for same in (twin, other):
        assert torch.equal(same(x), layer(x))
    again = checkpoint(layer, x, use_reentrant=False)
    plain = layer(x)
    wanted = torch.autograd.grad(plain.sum(), list(layer.parameters()))
    got = torch.autograd.grad(again.sum(), list(layer.parameters()))
    assert torch.equal(again, plain)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@every_format
def test_a_layer_on_the_meta_device_is_drawn_later(format: str) -> None:
    with torch.device("meta"):
        layer = distsam.TensorizedLinear(12, 18, format=format, rank=3)
    assert all(parameter.is_meta for parameter in layer.parameters())
    layer.to_empty(device="cpu").reset_parameters(generator())
    wanted = distsam.TensorizedLinear(12, 18, format=format, rank=3, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), wanted.parameters(), strict=True))


def test_non_contiguous_inputs_are_taken() -> None:
    layer = linear()
    x = torch.randn(12, 7, dtype=DOUBLE, generator=generator(1)).T
    torch.testing.assert_close(layer(x), layer(x.contiguous()), rtol=0, atol=1e-14)


BAD = [
    (
        lambda: linear(in_shape=[5, 5]),
        r"in_shape: \[5, 5\] has the product 25; it must be 12; for a larger one",
    ),
    (lambda: linear(in_shape=[3, 3], pad=True), r"in_shape: \[3, 3\] has the product 9; it must be at least 12"),
    (lambda: linear(format="mps"), "format: is 'mps'; use one of cp, tucker, tt, tt_matrix, tr"),
    (lambda: linear(rank="ratio:x"), "rank: is 'ratio:x'"),
    (lambda: linear(rank=[2, 2]), r"rank: \[2, 2\] has 2 numbers; tt of this shape needs 3"),
    (lambda: linear(rank=0), "rank: is 0; it must be an integer of at least 1"),
    (lambda: linear(rank="ratio:500"), "with bonds of 1 this weight reaches ratio:"),
    (lambda: distsam.TensorizedLinear(0, 3), "in_features: is 0"),
    (lambda: linear()(torch.zeros(2, 12)), "input: is of torch.float32; this layer is of torch.float64"),
    (lambda: linear()(torch.zeros(2, 12).half()), "input: is of torch.float16; this layer is of torch.float64"),
    (lambda: linear()(torch.zeros(2, 11, dtype=DOUBLE)), r"input: has shape \(2, 11\); layer takes 12 along dim -1"),
    (lambda: distsam.TensorizedConv2d(4, 6, 3, groups=3), "in_channels: is 4; 3 groups must divide it"),
    (lambda: distsam.TensorizedConv2d(4, 6, 3, format="tt_matrix"), "format: tt_matrix has no place"),
    (lambda: distsam.TensorizedConv2d(4, 6, 3, 2, "same"), "padding: is same, which needs a stride of 1"),
    (lambda: distsam.TensorizedEmbedding(4, 6, 9, rank=2), "padding_idx: is 9; it must be an integer from -4 to 3"),
    (
        lambda: distsam.TensorizedEmbedding(4, 6, rank=2)(torch.zeros(2)),
        "input: is of torch.float32; it must be a",
    ),
    (lambda: distsam.TensorizedEmbeddingBag(4, 6, mode="min"), "mode: is 'min'; use sum, mean or max"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_is_said_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_number_beyond_the_table_is_refused_though_the_padded_network_has_a_row_for_it() -> None:
    table = distsam.TensorizedEmbedding(101, 8, pad=True)
    assert math.prod(table.out_shape) > 101
    for ids in ([101], [-1]):
        with pytest.raises(IndexError, match="the table has rows 0 to 100"):
            table(torch.tensor(ids))


def test_a_rank_above_the_largest_is_clamped_and_said() -> None:
    with pytest.warns(UserWarning, match="rank 99 is above what the weight can use; it is clamped to 12"):
        layer = linear(rank=99)
    assert max(layer.network.spec.size(bond) for bond in layer.network.spec.bonds) == 12


def test_a_ratio_is_kept_and_the_next_rank_would_not() -> None:
    for format in WEIGHT_FORMATS:
        layer = distsam.TensorizedLinear(256, 256, False, format=format, rank="ratio:10")
        parameters = sum(core.numel() for core in layer.network.cores)
        assert 256 * 256 / parameters >= 10
        bonds = [layer.network.spec.size(bond) for bond in layer.network.spec.bonds]
        larger = distsam.TensorizedLinear(256, 256, False, format=format, rank=max(bonds) + 1)
        assert 256 * 256 / sum(core.numel() for core in larger.network.cores) < 10
