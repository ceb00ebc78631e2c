// Barriers of a block, of the lanes of a warp, and of a cluster.
#pragma once

#include "bind.h"
#include "machine.h"

namespace hostsim {

// To be called whenever lanes have left the kernel, the last ones of the block included: a barrier
// waits for those who are still there, so some of the block's barriers, of its warps' and of its
// cluster's may be complete now.
void threads_exited(Block& block);

void cluster_threads_exited(Cluster& cluster);  // threads_exited() of the cluster's barrier

void add_cluster(BinderTable& table);  // barrier.cluster, mapa, getctarank: part of add_barrier()

}  // namespace hostsim
