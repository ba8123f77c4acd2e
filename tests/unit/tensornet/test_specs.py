import re

import numpy as np
import pytest

from distsam import NetworkSpec, cp, einsum_network, tr, tt, tucker
from distsam.errors import ArgumentError
from distsam.tensornet.formats import einsum_of_shape


def test_cores_have_the_shapes_of_their_format():
    assert cp((5, 4, 3), 2).core_shapes == ((5, 2), (4, 2), (3, 2))
    assert tucker((5, 4, 3), (2, 3, 2)).core_shapes == ((2, 3, 2), (5, 2), (4, 3), (3, 2))
    assert tt((5, 4, 3), [2, 3]).core_shapes == ((5, 2), (2, 4, 3), (3, 3))
    assert tt((5, 4), 3).core_shapes == ((5, 3), (3, 4))
    assert tr((5, 4, 3), [2, 3, 1]).core_shapes == ((2, 5, 3), (3, 4, 1), (1, 3, 2))
    assert einsum_network("ab, bc -> ca", {"a": 3, "b": 3, "c": 4}).core_shapes == ((3, 3), (3, 4))


def test_a_spec_tells_shape_order_bonds_and_number_of_parameters():
    spec = tucker((5, 4, 3), (2, 3, 2))
    assert (spec.shape, spec.order, spec.num_cores) == ((5, 4, 3), 3, 4)
    assert spec.num_parameters == 12 + 10 + 12 + 6
    assert [spec.size(bond) for bond in spec.bonds] == [2, 3, 2]
    assert spec.core_names == ("central", "factor_0", "factor_1", "factor_2")


def test_a_spec_is_a_key_equal_to_one_made_alike_with_any_integers():
    spec = tt((5, 4), 3)
    assert {spec: 1}[tt(np.array([5, 4]), np.int64(3))] == 1
    assert type(cp((np.int32(5), 4), np.int64(2)).sizes[0][1]) is int


def test_indices_of_one_equation_may_be_modes_of_two_cores():
    spec = einsum_network("ir,ir->i", {"i": 3, "r": 2})
    assert (spec.modes, spec.bonds) == (("i",), ("r",))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cp((5, 0, 3), 2), "shape[1]: is 0; it must be an integer of at least 1"),
        (lambda: tt((5, 2.5), 2), "shape[1]: is 2.5"),
        (lambda: tt((5, True), 2), "is True"),
        (lambda: tr((5,), 2), "has 1 modes; a network of this format needs at least 2"),
        (
            lambda: cp((5, 4, 3), 13),
            "bond_dim: bond 'r' has size 13, larger than the tensor allows; it must be at most 12",
        ),
        (lambda: cp((5, 4), "3"), "bond_dim: is '3'"),
        (lambda: tt((5, 4, 3), 4), "bond_dim: bond 'b2' has size 4, larger than the tensor allows"),
        (lambda: tt((5, 4, 3), [2]), "bond_dim: [2] has 1 numbers; this shape needs 2"),
        (lambda: tt((5, 4, 3), [2, 0]), "bond_dim[1]: is 0"),
        (lambda: tucker((5, 4, 3), (6, 4, 3)), "ranks: bond 'r0' has size 6, larger than the tensor allows"),
        (lambda: tucker((5, 4, 3), (5, 2, 2)), "at most 4"),
        (lambda: tucker((5, 4, 3), (2, 2)), "ranks: [2, 2] has 2 numbers"),
        (lambda: tr((5, 4, 3), 4), "their product must be at most 12"),
        (lambda: einsum_network("ij,jk", {}), "equation: 'ij,jk' cannot be read"),
        (lambda: einsum_network("ij,->i", {}), "cannot be read"),
        (lambda: einsum_network("i...,j->ij", {}), "cannot be read"),
        (lambda: einsum_network("iir,r->i", {"i": 2, "r": 1}), "equation: 'iir,r->i' repeats 'i' in a core, 'iir'"),
        (lambda: einsum_network("ir,jr->iij", {"i": 2, "j": 2, "r": 1}), "repeats 'i' in the modes, 'iij'"),
        (lambda: einsum_network("ir,jr->ijk", {"i": 2, "j": 2, "r": 1, "k": 2}), "mode 'k' is in no core"),
        (lambda: einsum_network("ir,jr->ij", {"i": 2, "j": 2}), "sizes: has no size for 'r'"),
        (
            lambda: einsum_network("ir,jr->ij", {"i": 2, "j": 2, "r": 1, "z": 4}),
            "sizes: has 'z', which is not in the equation",
        ),
        (lambda: einsum_network("ir,jr->ij", {"i": 2, "j": -2, "r": 1}), "sizes[j]: is -2"),
        (lambda: einsum_network("ir,jr->ij", {"i": 2, "j": 3, "r": 3}), "sizes: bond 'r' has size 3"),
        (lambda: einsum_network("ir,j->ij", {"i": 2, "j": 3, "r": 2}), "at most 1"),
        (
            lambda: NetworkSpec("xx", (("i",), ("i",)), ("i",), (("i", 2),), ("a", "a")),
            "core_names: name 'a' stands 2",
        ),
        (
            lambda: NetworkSpec("xx", (("i",),), ("i", "j"), (("i", 2),), ("a",)),
            "modes: mode 'j' is carried by no",
        ),
        (
            lambda: NetworkSpec("xx", (("i", "i"),), ("i",), (("i", 2),), ("a",)),
            "core 'a': index 'i' stands 2 times",
        ),
        (lambda: NetworkSpec("xx", (("i",),), ("i", "i"), (("i", 2),), ("a",)), "modes: mode 'i' stands 2 times"),
        (lambda: NetworkSpec("xx", (("i",),), ("i",), (), ("a",)), "sizes: index 'i' has no size"),
        (lambda: NetworkSpec("einsum", (("*",),), ("*",), (("*", 2),), ("a",)), "index '*' of core 'a' is no name"),
        (lambda: NetworkSpec("einsum", (("i",), ()), ("i",), (("i", 2),), ("a", "b")), "core 'b' carries no index"),
        (lambda: NetworkSpec("einsum", (("i",),), ("i",), (("i", 2),), ()), "core_names: () for 1 cores"),
        (lambda: NetworkSpec("einsum", (), (), (), ()), "cores: is empty; a network needs at least one"),
        (
            lambda: NetworkSpec("einsum", (("i",),), ("i",), (("i", 2), ("i", 3)), ("a",)),
            "index 'i' stands 2 times",
        ),
    ],
)
def test_what_makes_no_network_is_refused_in_one_line_that_says_what_would_be_right(build, message):
    with pytest.raises(ArgumentError, match=re.escape(message)) as refusal:
        build()
    assert "\n" not in str(refusal.value)


def test_an_einsum_takes_the_sizes_of_its_modes_from_the_shape():
    expected = einsum_network("ir,jr->ij", {"i": 4, "j": 5, "r": 2})
    assert set(einsum_of_shape("ir,jr->ij", {"r": 2}, (4, 5)).sizes) == set(expected.sizes)
    assert set(einsum_of_shape("ir,jr->ij", {"r": 2, "i": 4}, (4, 5)).sizes) == set(expected.sizes)
    with pytest.raises(ArgumentError, match=r"^equation: 'ir,jr->ij' has 2 modes after '->'; the tensor has 3"):
        einsum_of_shape("ir,jr->ij", {"r": 2}, (4, 5, 6))
    with pytest.raises(ArgumentError, match=r"^sizes: j is 4; it is mode 1 of the tensor, of size 5"):
        einsum_of_shape("ir,jr->ij", {"r": 2, "j": 4}, (4, 5))
