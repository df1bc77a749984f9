"""The layers of images as plain loops over positions, in float64: what the fast ones must give."""

import numpy as np

from dbdask.models.losses import sigmoid


def activated(name, values):
    values = values.copy()
    if name == "sigmoid":
        sigmoid(values)
    return {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}.get(name, lambda v: v)(values)


def locally_connected(images, weights, bias, stride, activation="linear"):
    """Outputs, (examples, rows, columns, maps), from weights by row, column and map."""
    rows, columns, maps, high, wide, _ = weights.shape
    outputs = np.empty((len(images), rows, columns, maps))
    for example, row, column, filters in np.ndindex(outputs.shape):
        top, left = row * stride[0], column * stride[1]
        patch = images[example, top : top + high, left : left + wide]
        product = (patch * weights[row, column, filters]).sum()
        outputs[example, row, column, filters] = product + bias[row, column, filters]
    return activated(activation, outputs)


def l2_pool(images, size, stride):
    rows = (images.shape[1] - size[0]) // stride[0] + 1
    columns = (images.shape[2] - size[1]) // stride[1] + 1
    outputs = np.empty((len(images), rows, columns, images.shape[3]))
    for example, row, column, channel in np.ndindex(outputs.shape):
        top, left = row * stride[0], column * stride[1]
        window = images[example, top : top + size[0], left : left + size[1], channel]
        outputs[example, row, column, channel] = np.sqrt((window**2).sum() + 1e-6)
    return outputs


def local_average(images, size):
    """The weighted mean over windows and channels, (examples, rows, columns, 1)."""
    _, rows, columns, channels = images.shape
    means = np.zeros((*images.shape[:3], 1))
    for row, column in np.ndindex(rows, columns):
        total = 0.0
        for down in range(-(size[0] // 2), size[0] // 2 + 1):
            for right in range(-(size[1] // 2), size[1] // 2 + 1):
                if 0 <= row + down < rows and 0 <= column + right < columns:
                    weight = np.exp(-8 * ((down / size[0]) ** 2 + (right / size[1]) ** 2))
                    total += weight * channels
                    values = images[:, row + down, column + right].sum(axis=1)
                    means[:, row, column, 0] += weight * values
        means[:, row, column] /= total
    return means


def local_contrast_norm(images, size):
    centred = images - local_average(images, size)
    return centred / np.maximum(0.01, np.sqrt(local_average(centred**2, size)))
