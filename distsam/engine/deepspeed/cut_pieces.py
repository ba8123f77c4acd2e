"""This rank's pieces of parameters under ZeRO stage 3: each parameter is cut, and whole only while a pass reads it."""

from torch import Tensor, nn

from distsam.engine.deepspeed import library
from distsam.engine.deepspeed.pieces import FlatPieces


class CutPieces(FlatPieces):
    """Pieces of ZeRO stage 3: every rank holds an equal part of each flattened parameter, frozen ones too.

    DeepSpeed pads the last parts; what is padding is in no piece. Arguments as for FlatPieces.
    """

    def weights(self) -> list[Tensor]:
        """P flat pieces of the weights that passes gather."""
        return [library.cut_weights(p) for p in self.params]

    def _owns(self, part: library.Part | None) -> bool:
        return True

    def _gradient(self, param: nn.Parameter, part: library.Part) -> Tensor:
        # A copy, which the base steps along unless another pass follows: that one would write over DeepSpeed's own.
        return library.copy_gradient(self._zero, part)

    def publish(self) -> None:
        """Drop the whole weights that were made of the parts as they were. Collectives: one all_gather of the small
        parameters, which DeepSpeed keeps whole between passes."""
        library.gather_again(self._zero)
