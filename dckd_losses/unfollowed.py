"""Notices that a student is trained while nobody moves its history."""

from __future__ import annotations

import warnings

from torch import nn

from dckd_losses.history import HistoryModel


class Unfollowed:
    """Counts a student's steps by its weights' versions, without a look at the device; warns once.

    So calls between two steps count once, as with gradient accumulation; of a student that is not
    known (an unpickled loss's) each call counts. A history that anyone has moved or stepped since
    it was made is nothing to warn of.

    Args:
        resumed: the last update may be any time ago, and the next be due after the longest
            interval only.
    """

    def __init__(self, resumed: bool = False) -> None:
        self._resumed = resumed
        self._versions: int | None = None
        self._weights = 0  # how many different ones were seen
        self._said = False

    def notice(self, history: HistoryModel, student: nn.Module | None) -> None:
        """Take note of one training call."""
        if self._said or history.followed:
            return
        versions = None if student is None else sum(p._version for p in student.parameters())
        self._weights += versions is None or versions != self._versions
        self._versions = versions
        if self._weights <= (history.max_interval if self._resumed else history.interval):
            return
        self._said = True
        warnings.warn(
            f"the student has been trained for {self._weights - 1} steps and its history has "
            "followed none, so negatives stay those of old weights: attach the loss, or this copy "
            "of one, to the optimizer that steps, or call history.step(student) yourself",
            stacklevel=2,
        )
