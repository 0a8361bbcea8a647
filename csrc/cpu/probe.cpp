#include "probe.h"

namespace carzero::cpu {

CARZERO_DISPATCH(ProbeTable, probe_table, probe)

}  // namespace carzero::cpu
