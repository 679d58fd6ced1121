"""From what is read and heard of a device to a verdict: whether it can be relied on."""
