"""The article's table on this device and these data, and an answer to each of its claims."""
