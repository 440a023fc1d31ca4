"""What happens to runs that are killed, to damaged files, and to command lines that nobody meant."""

import os

# before huggingface_hub is imported: nothing here is to wait for a network
os.environ.setdefault('HF_HUB_OFFLINE', '1')
