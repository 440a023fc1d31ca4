"""Runs that end inside an epoch."""

import pytest
from running import train

import timm_hnc.training.fit


@pytest.fixture
def at_update():
    """Do something after an update of an epoch, until `at_update.undo()`."""
    original = timm_hnc.training.fit._after_update
    with pytest.MonkeyPatch.context() as patch:  # its own: what else is patched stays

        def install(epoch, update, action):
            def after(run, now_epoch, now_update, notice):
                if (now_epoch, now_update) == (epoch, update):
                    action()
                original(run, now_epoch, now_update, notice)

            patch.setattr(timm_hnc.training.fit, '_after_update', after)

        install.undo = patch.undo
        yield install


def interrupt():
    raise KeyboardInterrupt


def interrupted(at_update, argv, epoch, update, action=interrupt):
    """Run until an update of an epoch, which is not made, as after SIGKILL."""
    at_update(epoch, update, action)
    with pytest.raises(KeyboardInterrupt):
        train(*argv)
    at_update.undo()
