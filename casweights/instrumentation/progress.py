"""Progress bars in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from casweights.events import Reporter, Stage

if TYPE_CHECKING:
    from typing import Any

_TITLES = {
    Stage.COMMIT: "Committing",
    Stage.CHECKOUT: "Checking out",
    Stage.LOAD: "Loading",
    Stage.VERIFY: "Verifying",
    Stage.REPAIR: "Looking for lost chunks",
    Stage.REPACK: "Repacking",
    Stage.MAINTAIN: "Merging packs",
    Stage.FOLD: "Folding",
    Stage.TRANSFER: "Transferring",
}


class ProgressBars(Reporter):
    """Draws a progress bar for each stage, and removes it when the stage ends.

    Args:
        file: The stream to draw on; by default the standard error.
        delay: Seconds that a stage must last before its bar appears.

    Example:
        >>> store = casweights.open("./store", reporter=ProgressBars())
    """

    def __init__(self, *, file: TextIO | None = None, delay: float = 0.3) -> None:
        self._file = file
        self._delay = delay
        self._bars: dict[Stage, tqdm[Any]] = {}

    def started(self, stage: Stage, total: int) -> None:
        self._bars[stage] = tqdm(
            total=total,
            desc=_TITLES[stage],
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            file=self._file,
            delay=self._delay,
        )

    def advanced(self, stage: Stage, nbytes: int) -> None:
        bar = self._bars.get(stage)
        if bar is not None:  # another thread in the same stage may have closed the bar
            bar.update(nbytes)

    def finished(self, stage: Stage) -> None:
        bar = self._bars.pop(stage, None)
        if bar is not None:
            bar.close()
