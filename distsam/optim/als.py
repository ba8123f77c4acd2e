"""Alternating least squares: each core in turn is the exact minimiser of the loss while the others stay.

Legend: f the loss, w its factor, A the sum of e e^T over a row's entries, b that of e y, g the row, lambda the decay.
"""

# R rows of a core, P unknowns of a row.

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distsam.errors import ArgumentError
from distsam.sharding.collectives import all_reduce_sum_, broadcast_from_first_
from distsam.tensornet import CoreNetwork
from distsam.tensornet.environments import Environments, row_form
from distsam.tensornet.normal_equations import Block, sort_into_blocks

# A row of more unknowns has a matrix of more than 128 MiB, and takes more than 20 Gflop to solve.
MOST_UNKNOWNS = 4096
# How many times larger the damping gets where a matrix still could not be factored, and how often.
_MORE, _MOST_TRIES = 1e3, 4


class ALS(Optimizer):
    """A step is one sweep of alternating least squares over the cores of one network; gradients are not looked at.

    Core by core, with the others fixed, it minimises
        f = factor * sum over the entries of all ranks of (T[i] - y)^2 + lambda / 2 * sum over cores of ||G_k||^2
    which is what torch's SGD with `weight_decay` lambda descends. f never rises beyond rounding. A row of a core that
    no entry touches goes to 0, and without decay stays as it is; so does whatever part of a row the entries leave open.

    All is summed and solved in float64, whatever the dtype of the cores. Every rank must hold all cores, and its own
    part of the entries.

    Args:
        network: whose cores are solved for.
        indices: (B, order) int64 on the device of the cores: this rank's entries; B may be 0.
        targets: (B,) their values.
        factor: of the sum of squares.
        weight_decay: lambda, under this key in the parameter group.
        lr: not used here: for rescales around it, which read it.

    Memory: about 12 bytes for each entry and core, on top of the entries; beside that about 200 MiB, or the matrix of
        one row a few times.

    Collectives: of each step, for every core all_reduce(sum) of R P (P + 1) float64 in blocks of at most 64 MiB, and a
        broadcast of the core.

    Raises:
        ArgumentError: a core has more than 4,096 unknowns a row.
    """

    def __init__(
        self,
        network: CoreNetwork,
        indices: Tensor,
        targets: Tensor,
        factor: float,
        *,
        weight_decay: float = 0.0,
        lr: float = 1.0,
    ) -> None:
        super().__init__(list(network.cores), {"lr": lr, "weight_decay": weight_decay})
        if network.spec is None:
            raise ArgumentError("network", f"{network.name!r} has no spec: its cores cannot be told apart")
        self._spec, self._factor = network.spec, factor
        for k, name in enumerate(network.core_names):
            count = row_form(network.spec, k).num_unknowns
            if count > MOST_UNKNOWNS:
                problem = f"has {count:,} unknowns that hang together; at most {MOST_UNKNOWNS:,} can be solved for"
                raise ArgumentError("network", f"core {name} {problem}: take smaller bonds")
        self._columns = indices.T.contiguous()
        on_host, values = self._columns.cpu().numpy(), targets.double().cpu().numpy()
        self._blocks: list[list[Block]] = [
            sort_into_blocks(network.spec, k, on_host, values, indices.device) for k in range(network.spec.num_cores)
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One sweep over all cores; every rank calls it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        decay = float(group["weight_decay"])
        cores = [core.double() for core in group["params"]]
        for k, core in enumerate(group["params"]):
            if core.requires_grad:
                core.copy_(self._solved(k, cores, decay))
                # Machines of different make may round otherwise; the copies must stay the same bits.
                broadcast_from_first_([core])
                # As rounded to its dtype: the cores that follow make up for it.
                cores[k] = core.double()
        return loss

    def _solved(self, k: int, cores: list[Tensor], decay: float) -> Tensor:
        """Core k at the minimum."""
        form = row_form(self._spec, k)
        environments = Environments(self._spec, k, cores, self._columns)
        old_RP = form.rows_of(cores[k])
        new = []
        for block in self._blocks[k]:
            count = form.num_unknowns
            sums = old_RP.new_zeros(block.last - block.first, count, count + 1)
            block.known.add_to(sums, environments)
            all_reduce_sum_(sums).mul_(2 * self._factor)
            new.append(minimisers(sums, old_RP[block.first : block.last], decay))
        return form.core_of(torch.cat(new))


def minimisers(sums_RPQ: Tensor, old_RP: Tensor, decay: float) -> Tensor:
    """(R, P) the rows g that minimise g A g / 2 - b g + lambda / 2 ||g||^2, each by itself; finite where `old_RP` is.

    Solved for the step d = g - old, (A + (lambda + mu) I) d = -(A old - b + lambda old), whose error shrinks with it.
    mu is a weight on ||d||^2 / 2: where the entries leave a part of g open it stays as it is, instead of anything. With
    an error E in the matrix that is really inverted, the step lowers the function by d (A / 2 + lambda / 2 + mu + E) d:
    it descends if mu is above the norm of E. Cholesky's E is at most (P + 1) eps trace A (Higham, Accuracy and
    Stability of Numerical Algorithms, theorem 10.3; |R^T| |R| is bounded by its trace), and summing entries in blocks
    adds a few eps trace A: so mu = 4 (P + 1) eps trace A, too small to be seen beside what the entries determine.

    Args:
        sums_RPQ: (R, P, P + 1) float64, A and behind it b.
        old_RP: (R, P) float64 rows to begin from.
        decay: lambda.
    """
    count = old_RP.shape[1]
    a_RPP, b_RP1 = sums_RPQ[:, :, :count], sums_RPQ[:, :, count:]
    old_RP1 = old_RP.unsqueeze(2)
    minus_gradient = b_RP1 - a_RPP @ old_RP1 - decay * old_RP1
    trace_R = a_RPP.diagonal(dim1=1, dim2=2).sum(1)
    damping_R = 4 * (count + 1) * torch.finfo(torch.float64).eps * trace_R
    # Of a row without entries and decay: any number, because its gradient is 0.
    damping_R = torch.where((trace_R == 0) & (decay == 0), torch.ones_like(damping_R), damping_R)
    for _ in range(_MOST_TRIES):
        matrix = a_RPP.clone()
        matrix.diagonal(dim1=1, dim2=2).add_((decay + damping_R).unsqueeze(1))
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not bool(info.any()):
            break
        damping_R = torch.where(info == 0, damping_R, damping_R * _MORE)
    step = torch.cholesky_solve(minus_gradient, factor).squeeze(2)
    # Of numbers beyond float64's range there is no step.
    usable = (info == 0).unsqueeze(1) & step.isfinite().all(1, keepdim=True)
    return old_RP + torch.where(usable, step, torch.zeros_like(step))
