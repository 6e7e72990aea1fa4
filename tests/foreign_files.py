"""Files as other frameworks write them, and what their networks answer, by NumPy alone."""

import numpy as np

CLASSES = 3


def conv(images, kernel, stride=1):
    """Convolution of NCHW images with an OIHW kernel, padded by half its size."""
    size = kernel.shape[-1]
    pad = size // 2
    framed = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(framed, (size, size), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], kernel, optimize=True)


class Drawn:
    """Arrays at random under the names of a PyTorch module, drawn when first asked for."""

    def __init__(self, seed=0):
        self.random, self.arrays = np.random.default_rng(seed), {}

    def __call__(self, name, shape, low=None):
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.3
        values = self.random.normal(size=shape) * spread if low is None else None
        values = self.random.uniform(low, low + 1, shape) if low is not None else values
        self.arrays[name] = values.astype(np.float32)
        return self.arrays[name].astype(np.float64)

    def conv(self, maps, name, width, size=3, stride=1, bias=False):
        found = conv(maps, self(f"{name}.weight", (width, maps.shape[1], size, size)), stride)
        return found + self(f"{name}.bias", (width,))[:, None, None] if bias else found

    def norm(self, maps, name):
        width = maps.shape[1]
        scale, shift = self(f"{name}.weight", (width,), 0.5), self(f"{name}.bias", (width,))
        mean, var = (
            self(f"{name}.running_mean", (width,)),
            self(f"{name}.running_var", (width,), 0.5),
        )
        self.arrays[f"{name}.num_batches_tracked"] = np.asarray(7, np.int64)
        column = [values[:, None, None] for values in (scale, shift, mean, var)]
        return (maps - column[2]) / np.sqrt(column[3] + 1e-5) * column[0] + column[1]

    def linear(self, features, name, width=CLASSES):
        # Logits of size one, however large the features have become.
        size = np.sqrt(np.square(features).sum(axis=1).mean())
        weight = self(f"{name}.weight", (width, features.shape[1])) / size
        self.arrays[f"{name}.weight"] = weight.astype(np.float32)
        return features @ weight.T + self(f"{name}.bias", (width,))


def relu(maps):
    return np.maximum(maps, 0)


def resnet(images, widths, blocks, *, shortcut="downsample", head="fc", bottleneck=False):
    """State dict and logits of a residual network for CIFAR; `shortcut` "A" has no weights."""
    drawn = Drawn()
    maps = relu(drawn.norm(drawn.conv(images, "conv1", widths[0]), "bn1"))
    for stage, (width, number) in enumerate(zip(widths[1:], blocks, strict=True), 1):
        for block in range(number):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            plan = [(width, 3, stride), (width, 3, 1)]
            if bottleneck:
                plan = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            change = maps
            for layer, (channels, size, step) in enumerate(plan, 1):
                change = relu(change) if layer > 1 else change
                change = drawn.conv(change, f"{name}.conv{layer}", channels, size, step)
                change = drawn.norm(change, f"{name}.bn{layer}")
            if change.shape != maps.shape:
                if shortcut == "A":
                    more = (change.shape[1] - maps.shape[1]) // 2
                    maps = np.pad(maps[:, :, ::2, ::2], ((0, 0), (more, more), (0, 0), (0, 0)))
                else:
                    maps = drawn.conv(maps, f"{name}.{shortcut}.0", change.shape[1], 1, stride)
                    maps = drawn.norm(maps, f"{name}.{shortcut}.1")
            maps = relu(maps + change)
    return drawn.arrays, drawn.linear(maps.mean(axis=(2, 3)), head)


def wide_resnet(images, blocks, widening):
    """State dict and logits of a wide residual network for CIFAR."""
    drawn = Drawn()
    maps = drawn.conv(images, "conv1", 16)
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            ready = relu(drawn.norm(maps, f"{name}.bn1"))
            change = drawn.conv(ready, f"{name}.conv1", widening * width, 3, stride)
            change = drawn.conv(
                relu(drawn.norm(change, f"{name}.bn2")), f"{name}.conv2", widening * width
            )
            if change.shape != maps.shape:
                maps = drawn.conv(ready, f"{name}.convShortcut", widening * width, 1, stride)
            maps = maps + change
    return drawn.arrays, drawn.linear(relu(drawn.norm(maps, "bn1")).mean(axis=(2, 3)), "fc")


def vgg(images, layers):
    """State dict and logits of a VGG network for images of 8 pixels."""
    drawn, maps = Drawn(), images
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        for layer in range(layers):
            maps = drawn.conv(maps, f"block{stage}.{3 * layer}", width, bias=True)
            maps = relu(drawn.norm(maps, f"block{stage}.{3 * layer + 1}"))
        if stage < 3:
            n, c, h, w = maps.shape
            maps = maps.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    return drawn.arrays, drawn.linear(maps.mean(axis=(2, 3)), "classifier")


def mlp(shape, *, layout="channels_first", batch="n", **changes):
    """An ONNX file of two dense layers, and their weights.

    Args:
        shape: Height, width and channels of the images.
        layout: Of the input.
        batch: Name or size of its first axis.
        changes: "tensors" and "opsets" replace what the model would have.
    """
    from onnx import TensorProto, helper, numpy_helper

    height, width, channels = shape
    random = np.random.default_rng(3)
    hidden = random.normal(size=(height * width * channels, 5)).astype(np.float32)
    last, bias = random.normal(size=(5, CLASSES)), random.normal(size=CLASSES)
    weights = {"hidden": hidden, "last": last.astype(np.float32), "bias": bias.astype(np.float32)}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "hidden"], ["before"]),
        helper.make_node("Relu", ["before"], ["features"]),
        helper.make_node("Gemm", ["features", "last", "bias"], ["logits"]),
    ]
    sizes = (channels, height, width) if layout == "channels_first" else shape
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *sizes])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, 5]),
        ],
        changes.get("tensors", tensors),
    )
    opsets = changes.get("opsets", [helper.make_opsetid("", 17)])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString(), weights


def mlp_answers(weights, images, layout="channels_first"):
    """Features and logits of `mlp` for NHWC images."""
    order = (0, 3, 1, 2) if layout == "channels_first" else (0, 1, 2, 3)
    flat = images.transpose(order).reshape(len(images), -1).astype(np.float64)
    features = relu(flat @ weights["hidden"])
    return features, features @ weights["last"] + weights["bias"]
