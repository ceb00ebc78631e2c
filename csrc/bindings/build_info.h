// What the library says of itself to the Python module.
#pragma once

#include <string>
#include <vector>

namespace p_eagle {

// The ops that this build registers for CUDA, as they are called in torch.ops.p_eagle.
[[gnu::visibility("default")]] std::vector<std::string> cuda_ops();

}  // namespace p_eagle
