"""The op in other repositories: their decoders as its weights, and published-style modules swapped in place.

from carzero.dropin import decoder_weights, pair_logits
logits = pair_logits(memory, queries, decoder_weights(module.decoder, module.head))     # or: carzero.patch(module)

docs/drop-in.md shows each case; needs torch and numpy alone.
"""

from __future__ import annotations

from carzero.ops import pair_logits

from .patching import Patch, patch, unpatch
from .weights import decoder_weights

__all__ = ["Patch", "decoder_weights", "pair_logits", "patch", "unpatch"]
