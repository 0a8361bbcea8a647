// Functions of headers that are compiled once per instruction set must leave no out-of-line copy: the linker keeps one
// for the whole module, and it could be the AVX-512 one.
#pragma once

#define CARZERO_INLINE static inline __attribute__((always_inline))
// an explicit specialisation takes no storage class
#define CARZERO_INLINE_SPECIALISATION inline __attribute__((always_inline))
