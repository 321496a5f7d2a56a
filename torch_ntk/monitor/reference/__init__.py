"""The reference with which the network is compared, and its file next to checkpoints."""
