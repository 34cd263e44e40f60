"""Float32 graph to a graph with 8-bit layers: ranges, insertion, and the search for which layers."""
