#include "isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace carzero::cpu {
namespace {

#if defined(__x86_64__)
uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

CpuFeatures detect() {
  CpuFeatures f{};
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c >> 27 & 1;
  if (!osxsave) return f;
  // the operating system must save the wide registers: 6 = xmm, ymm; 0xE0 = opmask, zmm; 0x60000 = AMX configuration, data
  const uint64_t saved = xcr0();
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = (saved & 0xE6) == 0xE6;
  const bool tiles = (saved & 0x60000) == 0x60000;
  f.fma = ymm && (c >> 12 & 1);
  f.f16c = ymm && (c >> 29 & 1);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && (b >> 5 & 1);
  f.avx512f = zmm && (b >> 16 & 1);
  f.avx512dq = zmm && (b >> 17 & 1);
  f.avx512bw = zmm && (b >> 30 & 1);
  f.avx512vl = zmm && (b >> 31 & 1);
  f.amx_bf16 = tiles && (d >> 22 & 1);
  f.amx_tile = tiles && (d >> 24 & 1);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512_bf16 = zmm && (a >> 5 & 1);
  return f;
}
#else
CpuFeatures detect() { return {}; }
#endif

std::string known_names() {
  std::string names;
  for (Isa isa : built_isas()) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

IsaChoice choose() {
  const char* asked = std::getenv("CARZERO_CPU_ISA");
  if (asked != nullptr && *asked != '\0') {
    return {isa_by_name(asked), std::string("CARZERO_CPU_ISA=") + asked};
  }
  Isa best = Isa::generic;
  for (Isa isa : built_isas()) {
    if (!is_emulated(isa) && cpu_runs(isa)) best = isa;
  }
  std::string reason = std::string("the strongest of this build (") + known_names() + ") that this CPU runs";
  return {best, reason};
}

std::mutex choice_mutex;
std::atomic<const IsaChoice*> chosen{nullptr};

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool request_amx() {
#if defined(__linux__) && defined(__x86_64__)
  // ARCH_REQ_XCOMP_PERM for state component 18, tile data; kernels before 5.16 do not know the call and have no AMX
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::generic: return "default";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::amx: return "amx";
    case Isa::emulated_avx512_bf16: return "emulated_avx512_bf16";
    case Isa::emulated_amx: return "emulated_amx";
  }
  return "unknown";
}

bool is_emulated(Isa isa) { return isa == Isa::emulated_avx512_bf16 || isa == Isa::emulated_amx; }

std::vector<Isa> built_isas() {
#define CARZERO_LIST_(enumerator, space, ...) Isa::enumerator,
  return {CARZERO_FOR_EACH_ISA(CARZERO_LIST_)};
#undef CARZERO_LIST_
}

bool cpu_runs(Isa isa) {
  const CpuFeatures& f = cpu_features();
  const bool avx2 = f.avx2 && f.fma && f.f16c;
  const bool avx512 = avx2 && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
  switch (isa) {
    case Isa::generic: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512_bf16: return avx512 && f.avx512_bf16;
    case Isa::amx: return avx512 && f.avx512_bf16 && f.amx_tile && f.amx_bf16 && request_amx();
    case Isa::emulated_avx512_bf16:
    case Isa::emulated_amx:
#if defined(__x86_64__)
      // compiled with -mavx2, for a bearable test time
      return avx2;
#else
      return true;
#endif
  }
  return false;
}

Isa isa_by_name(const std::string& name) {
  const std::string prefix = "CPU instruction set '" + name + "' ";
  for (Isa isa : built_isas()) {
    if (name != isa_name(isa)) continue;
    if (cpu_runs(isa)) return isa;
    std::string runnable;
    for (Isa other : built_isas()) {
      if (cpu_runs(other)) runnable += (runnable.empty() ? "" : ", ") + std::string(isa_name(other));
    }
    throw std::runtime_error(prefix + "was asked for (CARZERO_CPU_ISA), but this CPU does not run it; it runs: " +
                             runnable + ". Unset CARZERO_CPU_ISA to let carzero choose.");
  }
  throw std::runtime_error(prefix + "was asked for (CARZERO_CPU_ISA), but this build has only: " + known_names() +
                           ". Unset CARZERO_CPU_ISA to let carzero choose.");
}

const IsaChoice& isa_choice() {
  const IsaChoice* now = chosen.load(std::memory_order_acquire);
  if (now != nullptr) return *now;
  const std::lock_guard<std::mutex> lock(choice_mutex);
  now = chosen.load(std::memory_order_relaxed);
  if (now == nullptr) {
    // kept for the life of the process: references to earlier choices stay valid
    now = new IsaChoice(choose());
    chosen.store(now, std::memory_order_release);
  }
  return *now;
}

Isa selected_isa() { return isa_choice().isa; }

void force_isa(Isa isa) {
  const std::lock_guard<std::mutex> lock(choice_mutex);
  chosen.store(new IsaChoice{isa, "forced in this process"}, std::memory_order_release);
}

void reset_isa() {
  const std::lock_guard<std::mutex> lock(choice_mutex);
  chosen.store(nullptr, std::memory_order_release);
}

}  // namespace carzero::cpu
