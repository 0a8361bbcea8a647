#include "rowops.h"

#include "isa.h"

namespace carzero::cpu {

CARZERO_DISPATCH(RowOps, row_ops_table, row_ops)

}  // namespace carzero::cpu
