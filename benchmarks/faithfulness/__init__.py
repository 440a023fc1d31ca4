"""Whether maps explain: what is trained, which maps are compared, and what is measured of them."""
