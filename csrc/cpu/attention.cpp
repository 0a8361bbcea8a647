#include "attention.h"

#include "isa.h"

namespace carzero::cpu {

CARZERO_DISPATCH(AttentionOps, attention_ops_table, attention_ops)

}  // namespace carzero::cpu
