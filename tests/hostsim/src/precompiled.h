// What most files include, compiled once for all of them (see build.py). It is included before each
// file, which must name what it uses all the same.

#include <algorithm>
#include <cstring>

#include "bind.h"
#include "machine.h"
