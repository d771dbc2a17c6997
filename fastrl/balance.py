"""Sequences shared out to processes, so that all have about as many rows to compute.

Groups stay whole, which lets their prompt be computed once, until that costs more than `SLACK`.
"""

from __future__ import annotations

import numpy as np

SLACK = 0.1  # over an even share


def share_out(rows_S: np.ndarray, groups_S: np.ndarray, size: int) -> np.ndarray:
    """The process of each of S sequences, int64 [S], the same wherever it is computed.

    `rows_S`: what each sequence costs; `groups_S`: the number of its group. The groups go to the
    process with the least, the largest first (Graham 1969); then single sequences move from the
    process with the most to that with the least, while it has over 1 + SLACK of an even share and
    the move makes the larger of the two smaller.
    """
    if size == 1 or not len(rows_S):
        return np.zeros(len(rows_S), np.int64)
    names, index_S = np.unique(groups_S, return_inverse=True)
    rows_P = np.bincount(index_S, rows_S, len(names)).astype(np.int64)
    load = np.zeros(size, np.int64)
    owner_P = np.zeros(len(names), np.int64)
    for p in np.argsort(-rows_P, kind="stable"):
        owner_P[p] = load.argmin()
        load[owner_P[p]] += rows_P[p]
    owner_S = owner_P[index_S]
    bound = (1 + SLACK) * load.sum() / size
    while load.max() > bound:
        most, least = load.argmax(), load.argmin()
        movable = np.flatnonzero(owner_S == most)
        after = np.maximum(load[most] - rows_S[movable], load[least] + rows_S[movable])
        s = movable[after.argmin()]
        if after.min() >= load[most]:
            break
        owner_S[s] = least
        load[[most, least]] += [-rows_S[s], rows_S[s]]
    return owner_S
