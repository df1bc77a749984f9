"""The networks of the image pipeline: the paper's in small, and a dense one beside it."""

from collections.abc import Sequence

import dbdask

PAPER = ("8x10", "16x10", "36x10")
"""The stages of the paper, section 5: patches of 10 x 10, 8 to 36 maps."""
BY_SIDE = ((76, PAPER), (40, ("8x7", "16x5", "32x3")), (20, ("16x5", "32x3", "64x3")))
SMALLEST = ("8x3", "16x2", "32x2")
LEAST_POOLED_SIDE = 4
"""Pools of smaller images overlap, so that something remains of them."""


def default_stages(side: int) -> tuple[str, ...]:
    """Return stages for squares of this side, as MAPSxPATCH each."""
    return next((stages for least, stages in BY_SIDE if side >= least), SMALLEST)


def stage_of(text: str) -> tuple[int, int]:
    """Return maps and patch of one of `--stages`.

    Examples
    --------
    >>> stage_of("8x5")
    (8, 5)
    """
    maps, _, patch = text.partition("x")
    if not (maps.isdigit() and patch.isdigit() and int(maps) and int(patch)):
        raise SystemExit(f"--stages must be MAPSxPATCH each, such as 8x5, got {text!r}")
    return int(maps), int(patch)


def local_network(
    input_shape: tuple[int, ...], stages: Sequence[str], outputs: int, activation: str = "linear"
) -> dbdask.Network:
    """Return stages of local filters, L2 pooling and contrast normalisation, then one-vs-all.

    Parameters
    ----------
    input_shape
        Rows, columns and channels.
    stages
        MAPSxPATCH each.
    outputs
        Classes.
    activation
        Of the filters.

    Raises
    ------
    SystemExit
        The pictures are too small for the stages.
    """
    layers: list[dbdask.LocallyConnected | dbdask.L2Pool | dbdask.LocalContrastNorm] = []
    rows, columns = input_shape[:2]
    for maps, patch in map(stage_of, stages):
        rows, columns = rows - patch + 1, columns - patch + 1
        least = min(rows, columns)
        if least < 1:
            raise SystemExit(
                f"--stages {' '.join(stages)} leaves nothing of pictures of {input_shape[0]} x "
                f"{input_shape[1]}: take smaller patches, fewer stages, or a larger --size"
            )
        pool = min(2, least)
        stride = pool if least >= LEAST_POOLED_SIDE else 1
        rows, columns = (1 + (length - pool) // stride for length in (rows, columns))
        window = next(size for size in (5, 3, 1) if size <= max(1, min(rows, columns) // 2 + 1))
        layers += [
            dbdask.LocallyConnected(maps, patch, activation=activation),
            dbdask.L2Pool(pool, stride=stride),
        ]
        if window * maps > 1:
            layers.append(dbdask.LocalContrastNorm(window))
    return dbdask.Network(
        input_shape=input_shape, layers=[*layers, dbdask.Dense(outputs)], loss="logistic"
    )


def dense_network(
    input_shape: tuple[int, ...], hidden: Sequence[int], outputs: int
) -> dbdask.Network:
    """Return a network of dense layers with the same inputs and outputs."""
    layers = [dbdask.Dense(units, "relu") for units in hidden]
    return dbdask.Network(
        input_shape=input_shape, layers=[*layers, dbdask.Dense(outputs)], loss="logistic"
    )
