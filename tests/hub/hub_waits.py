"""The Hub's client in the process that imports this does not wait between its attempts."""

import time
import types

import huggingface_hub.file_download
import huggingface_hub.utils._http

WAITS: list[float] = []  # the seconds that it would have waited
no_waiting = types.SimpleNamespace(**{**vars(time), 'sleep': WAITS.append})
huggingface_hub.utils._http.time = huggingface_hub.file_download.time = no_waiting
