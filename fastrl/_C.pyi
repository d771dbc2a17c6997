from typing import Any

import numpy as np
import numpy.typing as npt

def grade(
    completions: list[bytes], golds: list[bytes], is_answer: bool, budget_ops: int, threads: int
) -> npt.NDArray[np.int64]: ...
def philox(
    counter: tuple[int, int, int, int], key0: int, key1: int
) -> tuple[int, int, int, int]: ...
def uniforms(
    c0: npt.NDArray[np.uint32],
    draw: npt.NDArray[np.uint32],
    c2: npt.NDArray[np.uint32],
    c3: int,
    key0: int,
    key1: int,
    vocab: int,
    threads: int,
) -> npt.NDArray[np.float32]: ...
def paged_attention(*arguments: Any) -> None: ...
