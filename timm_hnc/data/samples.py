"""Which samples stand for a data set."""


def evenly_spread(length: int, count: int) -> list[int]:
    """Indices of `count` of `length` samples, spread evenly from the first one on; all where there are no more.

    Example:
        >>> evenly_spread(10, 4)
        [0, 2, 5, 7]
    """
    count = min(count, length)
    return [index * length // count for index in range(count)]
