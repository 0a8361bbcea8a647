"""The other all-pairs similarities of the field, with the op's contract: ``[M, Q]``, tiles, recompute, row counts.

from carzero.similarities import max_sim
scores = max_sim(patches, words, token_count=count)     # [M, P, D], [Q, T, D] -> [M, Q]

None has weights. docs/similarities.md has their equations and when to use which; needs torch and numpy alone.
"""

from __future__ import annotations

from .functional import cosine, max_sim, vl_cabs, word_region
from .registration import choose

__all__ = ["choose", "cosine", "max_sim", "vl_cabs", "word_region"]
