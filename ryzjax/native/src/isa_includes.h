// The includes of the headers that all_kernels.h includes.
//
// all_kernels.h is included inside a namespace, where its headers cannot include the standard library themselves. Each
// instruction set's file therefore includes this header first, outside every namespace.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "numbers.h"
