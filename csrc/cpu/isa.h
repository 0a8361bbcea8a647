// Choice of the instruction set at run time.
//
// A file named *_isa.cpp is compiled once per instruction set (CMakeLists.txt) with the macro CARZERO_ISA naming the
// namespace carzero::cpu::CARZERO_ISA. It must put everything into that namespace and must not instantiate templates of
// the standard library: their out-of-line copies are shared by the whole module, so one compiled for AVX-512 could be
// called on a CPU without it. What it offers to the rest is one constant table of function pointers per set:
//
//   rowops.h        struct RowOps { void (*layer_norm)(...); ... };   const RowOps& row_ops();
//   rowops_isa.cpp  namespace carzero::cpu::CARZERO_ISA { extern const RowOps row_ops_table; const RowOps ... = {...}; }
//   rowops.cpp      CARZERO_DISPATCH(RowOps, row_ops_table, row_ops)
#pragma once
#include <string>
#include <vector>

// X(enumerator, namespace, ...) for each instruction set of this build, weakest first. The emulated ones run the code
// of the wide sets (64-byte vectors, bf16 pairs, AMX tiles) on any CPU, for tests only: never chosen on their own.
#define CARZERO_FOR_EACH_ISA(X, ...)                                                    \
  X(generic, isa_default, __VA_ARGS__)                                                  \
  CARZERO_X_AVX2(X, __VA_ARGS__) CARZERO_X_AVX512(X, __VA_ARGS__)                       \
  CARZERO_X_AVX512_BF16(X, __VA_ARGS__) CARZERO_X_AMX(X, __VA_ARGS__)                   \
  CARZERO_X_EMULATED(X, __VA_ARGS__)

#ifdef CARZERO_HAVE_AVX2
#define CARZERO_X_AVX2(X, ...) X(avx2, isa_avx2, __VA_ARGS__)
#else
#define CARZERO_X_AVX2(X, ...)
#endif
#ifdef CARZERO_HAVE_AVX512
#define CARZERO_X_AVX512(X, ...) X(avx512, isa_avx512, __VA_ARGS__)
#else
#define CARZERO_X_AVX512(X, ...)
#endif
#ifdef CARZERO_HAVE_AVX512_BF16
#define CARZERO_X_AVX512_BF16(X, ...) X(avx512_bf16, isa_avx512_bf16, __VA_ARGS__)
#else
#define CARZERO_X_AVX512_BF16(X, ...)
#endif
#ifdef CARZERO_HAVE_AMX
#define CARZERO_X_AMX(X, ...) X(amx, isa_amx, __VA_ARGS__)
#else
#define CARZERO_X_AMX(X, ...)
#endif
#ifdef CARZERO_HAVE_EMULATED
#define CARZERO_X_EMULATED(X, ...)                                  \
  X(emulated_avx512_bf16, isa_emulated_avx512_bf16, __VA_ARGS__)    \
  X(emulated_amx, isa_emulated_amx, __VA_ARGS__)
#else
#define CARZERO_X_EMULATED(X, ...)
#endif

// Defines `const Type& function(Isa)`, and `const Type& function()` for the selected set, from the constants `table` of
// every set's namespace. For namespace scope inside carzero::cpu.
#define CARZERO_DISPATCH(Type, table, function)             \
  CARZERO_FOR_EACH_ISA(CARZERO_DECLARE_TABLE_, Type, table) \
  const Type& function(Isa isa) {                           \
    switch (isa) {                                          \
      CARZERO_FOR_EACH_ISA(CARZERO_TABLE_CASE_, table)      \
      default: return isa_default::table;                   \
    }                                                       \
  }                                                         \
  const Type& function() { return function(selected_isa()); }
#define CARZERO_DECLARE_TABLE_(enumerator, space, Type, table) \
  namespace space {                                            \
  extern const Type table;                                     \
  }
#define CARZERO_TABLE_CASE_(enumerator, space, table) \
  case Isa::enumerator: return space::table;

namespace carzero::cpu {

// `generic` is the plain build (any x86-64, any other architecture); it is called "default" by users.
enum class Isa { generic, avx2, avx512, avx512_bf16, amx, emulated_avx512_bf16, emulated_amx };

const char* isa_name(Isa isa);
std::vector<Isa> built_isas();
bool is_emulated(Isa isa);

// Whether this CPU and its operating system run the set; an emulated one runs where the build has it and AVX2 is there.
bool cpu_runs(Isa isa);

// By name; throws std::runtime_error with a sentence for an unknown name, a set that is not in this build, or one that
// this CPU does not run.
Isa isa_by_name(const std::string& name);

struct IsaChoice {
  Isa isa;
  std::string reason;
};

// The strongest set of build and CPU, or what the environment variable CARZERO_CPU_ISA asks for. Read once, at the first
// call that needs it; throws std::runtime_error (see isa_by_name), and reads it again at the next call after that.
const IsaChoice& isa_choice();
Isa selected_isa();

// Replaces the choice until reset_isa(); for tests and benchmarks that compare sets in one process. Not thread-safe
// against running operations. Tensors packed for bf16 operands need a set with bf16 operands.
void force_isa(Isa isa);
void reset_isa();

// AMX tiles need a permission from the kernel, once per process. True where it was given (or nothing needs it).
bool request_amx();

struct CpuFeatures {
  bool avx2, fma, f16c, avx512f, avx512bw, avx512vl, avx512dq, avx512_bf16, amx_tile, amx_bf16;
};
const CpuFeatures& cpu_features();

}  // namespace carzero::cpu
