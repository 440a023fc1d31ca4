"""Signals that ask a run to stop; `_after_update` in fit.py saves it first."""

import signal
import threading
from types import FrameType

from timm_hnc.data.loading.worker_signals import STOP_SIGNALS


class RunStopped(Exception):
    """A signal stopped the run after it was saved."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f'Stopped by {signal.Signals(number).name} {where}')
        self.exit_code = 130 if number == signal.SIGINT else 0


class StopSignals:
    """Notes signals while a run trains; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
