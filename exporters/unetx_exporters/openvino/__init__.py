"""OpenVINO engines: an IR pair, opened with each precision that the CPU has, and the proof of what it computes."""
