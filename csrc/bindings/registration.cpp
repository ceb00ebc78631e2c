// The one list of what this library implements for CUDA.

#include "bindings/registration.h"

#include "bindings/build_info.h"
#include "bindings/device.h"

namespace p_eagle {
namespace {

template <class Visit>
void for_each_op(Visit const& visit) {
  for (auto const ops : {input_ops(), layer_ops(), attention_ops(), pruning_ops(), head_ops(),
                         gemm_ops(), row_ops(), tree_ops()}) {
    for (CudaOp const& op : ops) {
      visit(op);
    }
  }
}

}  // namespace

std::vector<std::string> cuda_ops() {
  std::vector<std::string> names;
  for_each_op([&](CudaOp const& op) { names.emplace_back(op.name); });
  return names;
}

}  // namespace p_eagle

P_EAGLE_LIBRARY_IMPL(m) {
  p_eagle::for_each_op([&](p_eagle::CudaOp const& op) { m.impl(op.name, op.boxed); });
}
