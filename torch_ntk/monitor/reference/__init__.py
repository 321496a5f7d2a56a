"""The network from which its movement is measured, and its file beside checkpoints."""
