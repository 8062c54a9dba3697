"""The processes of one launch, and which one this is."""

import os

from flowers.distributed import check_world_size, start, told_to_use_cpu

_WAIT_S = 7 * 24 * 3600  # others wait while the main process lists the files; of a hundred million that takes long


class Group:
    """One process alone, which needs no Accelerate, or several that were launched together.

    They are only ever in step here, before the work begins; from then on they share a folder (see claims.py), and
    one that fails keeps nobody waiting.

    Attributes:
        device: where to compute; None: wherever it is fastest.

    Raises:
        ProcessError: the processes in the group are not those that were launched.
    """

    def __init__(self) -> None:
        self.world_size = int(os.environ.get("WORLD_SIZE") or "1")
        self.rank = int(os.environ.get("RANK") or "0") if self.world_size > 1 else 0
        self.device = "cpu" if told_to_use_cpu() else None
        if self.world_size > 1:
            self.device = str(start(timeout_s=_WAIT_S).device)
        else:
            check_world_size(1)

    @property
    def is_main(self) -> bool:
        """Whether this process lists the files and joins the parts."""
        return self.rank == 0
