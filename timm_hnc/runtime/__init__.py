"""What a process sets up before it trains or evaluates: device, number formats, compilation, processes, logging."""
