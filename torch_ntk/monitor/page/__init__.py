"""The page of a training: its data as one document, and the file that contains both.

The page itself is `torch_ntk/tensorboard_plugin/static/`, which TensorBoard shows as well.
"""
