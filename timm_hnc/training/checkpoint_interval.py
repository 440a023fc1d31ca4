"""When a checkpoint inside an epoch is due: every so many updates, or minutes."""

import time


class CheckpointInterval:
    """Says when it is time again.

    Args:
        text: such as '500' (updates) or '10m' (minutes); never if empty.

    Raises:
        ValueError: it is neither.
    """

    def __init__(self, text: str | None = None) -> None:
        self.updates, self.seconds = 0, 0.0
        if text and text.endswith('m'):
            self.seconds = 60 * float(text.removesuffix('m'))
        elif text:
            self.updates = int(text)
        if text and not (self.updates > 0 or 0 < self.seconds < float('inf')):
            raise ValueError(text)
        self._last = time.monotonic()

    def after(self, update: int) -> bool:
        """Whether a checkpoint is due after an update, counted from the start of the epoch."""
        return bool(self.updates) and update % self.updates == 0

    def passed(self) -> bool:
        """Whether the minutes have passed; then they begin again."""
        if not self.seconds or time.monotonic() - self._last < self.seconds:
            return False
        self._last = time.monotonic()
        return True
