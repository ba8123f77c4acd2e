"""Who sees which data: the ranks of a run on named axes, and which of those are data axes.

The world is not the data axis: ranks that differ only along another axis (bonds, modes) see the same batch and hold
the same loss. Means of losses and gradients are taken over the data axes, norms over what each rank owns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.weak import WeakIdKeyDictionary

from distsam.sharding.collectives import new_group, world_size
from distsam.sharding.plan import Axes, Plan, coordinate_of
from distsam.sharding.world import World


@dataclass(frozen=True)
class Layout:
    """The ranks of a run on the axes of a plan.

    Attributes:
        world: this process among all.
        mesh: the device mesh of those axes; None in a world of one process, or where a run is planned only.
        axes: (name, size), slowest first.
        data_axes: those along which ranks see different data.
        data_group: the ranks that differ from this one only along data axes; None is the whole world.
    """

    world: World
    mesh: DeviceMesh | None
    axes: Axes
    data_axes: tuple[str, ...]
    data_group: ProcessGroup | None = field(default=None, compare=False)

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> "Layout":
        """The layout of one process."""
        return cls(World(0, 1, 0, torch.device(device)), None, (("replicate", 1),), ("replicate",))

    @property
    def data_rank(self) -> int:
        """Which part of the data is this rank's; 0 to data_size - 1."""
        rank = 0
        for (name, size), position in zip(self.axes, self._coordinate, strict=True):
            if name in self.data_axes:
                rank = rank * size + position
        return rank

    @property
    def data_size(self) -> int:
        """Into how many parts the data is divided."""
        return prod(size for name, size in self.axes if name in self.data_axes)

    @property
    def is_first_copy(self) -> bool:
        """True on one rank for each part of the data: the first along every axis that is no data axis."""
        return _is_first_copy(self.axes, self.data_axes, self._coordinate)

    @property
    def loss_weight(self) -> float:
        """The factor of this rank's loss: the sum over the world is then the mean over the data axes."""
        return 1 / self.data_size if self.is_first_copy else 0.0

    @property
    def _coordinate(self) -> Sequence[int]:
        return coordinate_of(self.world.rank, self.axes) if self.mesh is None else coordinate_on(self.mesh, self.axes)


def make_layout(world: World, plan: Plan) -> Layout:
    """Lay the world out on the axes of `plan`.

    Collectives: those of starting the groups of the mesh, once; every rank calls it.

    Raises:
        ArgumentError: the plan cannot serve this number of ranks.
    """
    axes = plan.axes(world.world_size)
    if world.world_size == 1:
        return Layout(world, None, axes, plan.data_axes)
    names, sizes = zip(*axes, strict=True)
    mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=names)
    group = None
    if set(plan.data_axes) < set(names):
        group = new_group(ranks_along(mesh, names, plan.data_axes))
    return Layout(world, mesh, axes, plan.data_axes, group)


def coordinate_on(mesh: DeviceMesh | None, axes: Axes) -> Sequence[int]:
    """This rank's position along every axis; zeros without a mesh."""
    coordinate = None if mesh is None else mesh.get_coordinate()
    return [0] * len(axes) if coordinate is None else coordinate


def ranks_along(mesh: DeviceMesh, names: Sequence[str], chosen: Sequence[str]) -> list[list[int]]:
    """The ranks of the mesh in groups that differ only along the `chosen` axes; the same list on every rank."""
    others = [dim for dim, name in enumerate(names) if name not in chosen]
    inside = [dim for dim, name in enumerate(names) if name in chosen]
    count = prod(mesh.size(dim) for dim in inside)
    return mesh.mesh.permute(*others, *inside).reshape(-1, count).tolist()


# Parameter -> the factor of this rank's loss, for the meter, which knows only parameters.
_LOSS_WEIGHTS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember_loss_weight(
    params: Iterable[nn.Parameter], mesh: DeviceMesh, axes: Axes, data_axes: Sequence[str]
) -> None:
    """Note for each parameter the factor of this rank's loss on the mesh on which it was placed."""
    is_first = _is_first_copy(axes, data_axes, coordinate_on(mesh, axes))
    weight = 1 / prod(size for name, size in axes if name in data_axes) if is_first else 0.0
    for param in params:
        _LOSS_WEIGHTS[param] = weight


def loss_weight_of(params: Iterable[nn.Parameter]) -> float:
    """The factor of this rank's loss in a model with these parameters: the sum over the world is then the mean over the
    data axes. 1 / world size where `shard` placed none of them.
    """
    return next((_LOSS_WEIGHTS[p] for p in params if p in _LOSS_WEIGHTS), 1 / world_size())


def _is_first_copy(axes: Axes, data_axes: Sequence[str], coordinate: Sequence[int]) -> bool:
    return all(position == 0 for (name, _), position in zip(axes, coordinate, strict=True) if name not in data_axes)
