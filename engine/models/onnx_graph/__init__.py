"""From an ONNX file alone to a torch network that can be pruned, fine-tuned and exported again.

    >>> network = convert("model.onnx")
    >>> groups = trace(network, torch.rand(2, 3, 224, 224))

The operators are those of feed-forward convolutional networks, opset 7 and later, whoever wrote
the file. Whatever else is in it is refused by its operator's name. What comes out answers as ONNX
Runtime does, which is tried on random images before it is given out.
"""

from engine.models.onnx_graph.convert import convert
from engine.models.onnx_graph.network import Network, Step
from engine.models.onnx_graph.norms import restore_batch_norms

__all__ = ["Network", "Step", "convert", "restore_batch_norms"]
