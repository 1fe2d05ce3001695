// GNUstep's headers ask for it where a compiler has blocks; libobjc of GCC has none.
#pragma once

#include <Block.h>
