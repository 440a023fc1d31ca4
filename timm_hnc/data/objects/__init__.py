"""Where the objects of an image lie, before and behind its transform: boxes and masks."""
