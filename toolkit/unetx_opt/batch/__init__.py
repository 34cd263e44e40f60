"""Folders of radiographs in, results out: what is written of each, by worker processes or a cluster, resumable."""
