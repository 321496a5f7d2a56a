"""Lightning callbacks that watch the Neural Tangent Kernel during training."""

if __name__ != "torch_ntk.callbacks":
    # Started from the repository root, Python would also find this folder under its own name,
    # and two copies of each class would not recognize each other.
    raise ImportError("Import this package as `torch_ntk.callbacks`, not as `callbacks`.")
