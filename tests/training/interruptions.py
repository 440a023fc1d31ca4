"""Runs that end inside an epoch."""

import pytest
from running import train

import timm_hnc.training.fit


@pytest.fixture
def at_update(monkeypatch):
    """Do something after an update of an epoch."""
    original = timm_hnc.training.fit._after_update

    def install(epoch, update, action):
        def after(run, now_epoch, now_update, notice):
            if (now_epoch, now_update) == (epoch, update):
                action()
            original(run, now_epoch, now_update, notice)

        monkeypatch.setattr(timm_hnc.training.fit, '_after_update', after)

    return install


def interrupt():
    raise KeyboardInterrupt


def interrupted(at_update, monkeypatch, argv, epoch, update, action=interrupt):
    """Run until an update of an epoch, which is not made, as after SIGKILL."""
    at_update(epoch, update, action)
    with pytest.raises(KeyboardInterrupt):
        train(*argv)
    monkeypatch.undo()
