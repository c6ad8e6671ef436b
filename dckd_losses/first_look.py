"""A loss that looks at values in its first call, and not again until something has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dckd_losses.checks import is_recording


class LooksFirst(nn.Module):
    """Base of the losses. Looking waits for the device, so it is done once.

    The first call is the first eager one after construction, copying or `load_state_dict`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trusted = False  # whether values were looked at since something changed
        self.register_load_state_dict_post_hook(_distrust)  # type: ignore[no-untyped-call]

    def _look(self, check: Callable[..., None], *images: Tensor | None) -> None:
        """Let `check` look at the images of a first call."""
        if not self._trusted and not is_recording():
            check(*images)
            self._trusted = True

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks again."""
        return {**self.__dict__, "_trusted": False}


def _distrust(module: nn.Module, keys: object) -> None:
    """Look at values again after new state was loaded."""
    assert isinstance(module, LooksFirst)
    module._trusted = False
