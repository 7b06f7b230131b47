"""Process groups, checkpoints, logging, weights, video decoding and the command line: nothing of the paper."""
