// From a queued launch to resident blocks and back to a record of what it did.
#pragma once

#include "machine.h"

namespace hostsim {

// Marks a grid as running and works out what its threads have seen of earlier ones.
void begin_grid(Grid& grid);
// Makes the next cluster of `grid` resident; its warps are ready to run.
Cluster& start_cluster(Grid& grid);
// Called when all threads of a block have left.
void finish_block(Block& block);
// Called when nothing of the grid is left: keeps the record, frees the rest.
void finish_grid(Grid& grid);

}  // namespace hostsim
